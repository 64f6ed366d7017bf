"""rate_limit: each caller gets what its limits admit and not one call more, is told how it stands, and pays for what it
used."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import openai
import pytest

from headgate.config import ConfigError, RateLimitConfig, parse_config
from headgate.filters.rate_limit import RateLimit, rules_of
from headgate.filters.stores.memory import MemoryStore
from headgate.gateway import check_startable
from headgate.proxy.accounting.usage import NO_USAGE, Usage
from headgate.proxy.errors import ModelNotFoundError, OverLimitError, RateLimitError
from headgate.proxy.exchange import ANONYMOUS, Principal
from headgate.proxy.upstream.call import ResponseHead
from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.clock import FakeClock
from tests_support.gateway import CLIENT_KEY, config_for, gateway_over, load, running_gateway, written
from tests_support.raw import RawClient, request
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from pathlib import Path

    from headgate.proxy.exchange import Exchange

WHOLE = json_response(chat_completion())
OTHER_KEY = "hg-other-7Qm2xV9sLd4TzKpR"


def settings(text: str) -> RateLimitConfig:
    """Of the filter, as a file says them."""
    config = parse_config(f"filters: [{{rate_limit: {{{text}}}}}]", env={}).filters[0].config
    assert isinstance(config, RateLimitConfig)
    return config


class Limiter:
    """The filter with a clock and an estimate that the test sets."""

    def __init__(self, text: str = "", store: MemoryStore | None = None) -> None:
        self.clock = FakeClock()
        self.estimate = 0
        self.link = RateLimit(
            settings(text),
            place="rate_limit",
            store=store or MemoryStore(),
            monotonic=self.clock.monotonic,
            estimate=lambda ex: self.estimate,
        )

    def enter(self, ex: Exchange | None = None, **facts: Any) -> Exchange:
        ex = ex if ex is not None else exchange(**facts)
        self.link.on_request(ex)
        return ex

    def refuses(self, **facts: Any) -> RateLimitError:
        with pytest.raises(RateLimitError) as caught:
            self.enter(**facts)
        return caught.value

    def answer(self, ex: Exchange, *headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
        head = ResponseHead(200, list(headers))
        self.link.on_response(ex, head)
        return dict(head.headers)


class Models:
    """Names and what they lead to."""

    def resolve(self, name: str) -> list[Any]:
        if name == "nowhere":
            raise ModelNotFoundError("no")
        model = "gpt-4o" if name == "alias" else name
        return [SimpleNamespace(cluster=SimpleNamespace(name="up"), model=model)]


def exchange(
    key: str = "app",
    *,
    owner: str | None = None,
    team: str | None = None,
    address: str = "127.0.0.1",
    model: str = "gpt-4o",
    anonymous: bool = False,
) -> Exchange:
    """As much of one as the filter sees."""
    fields = {
        "principal": ANONYMOUS if anonymous else Principal(key, owner=owner, team=team),
        "head": SimpleNamespace(client=address),
        "face": SimpleNamespace(handler=None),
        "graph": SimpleNamespace(models=Models()),
        "model": model,
        "state": {},
        "usage": None,
        "outcome": "ok",
        "attempts": [],
        "rough_prompt": None,
        "error": None,
    }
    return cast("Exchange", SimpleNamespace(**fields))


def test_without_arguments_a_user_has_100_a_minute_and_an_address_1000() -> None:
    limiter = Limiter()
    for _ in range(100):
        limiter.enter(key="one")
    assert str(limiter.refuses(key="one")) == (
        "Rate limit reached: 100 requests per minute for each user, 0 left. Try again in 60 s."
    )
    for n in range(900):
        limiter.enter(key=f"k{n}")
    assert "1000 requests per minute for each address" in str(limiter.refuses(key="two"))
    assert (limiter.link.admitted, limiter.link.refused, limiter.link.crowded) == (1000, 2, 0)


def test_a_refusal_says_when_there_is_room_again_and_there_is() -> None:
    limiter = Limiter("requests_per_minute: 1")
    limiter.enter()
    limiter.clock.advance(12.5)
    error = limiter.refuses()
    assert error.retry_after == 47.5
    assert dict(error.fields) == {
        b"x-ratelimit-limit-requests": b"1",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"48s",
    }
    limiter.clock.advance(47.5)
    limiter.enter()


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("key", {"key": "a", "address": "::1"}, {"key": "b"}),
        ("key", {"anonymous": True}, {"anonymous": True, "address": "10.0.0.1"}),
        ("user", {"key": "a", "owner": "ann"}, {"key": "ann"}),
        ("user", {"key": "a"}, {"key": "b", "owner": "a"}),
        ("user", {"anonymous": True}, {"anonymous": True, "address": "10.0.0.1"}),
        ("team", {"key": "a", "team": "web"}, {"key": "a"}),
        ("model", {"key": "a", "model": "gpt-4o"}, {"key": "a", "model": "gpt-5"}),
        ("address", {"address": "2001:db8:1:2::7"}, {"address": "2001:db8:1:3::7"}),
        ("address", {"address": "not:an:address"}, {"address": ""}),
        ("[user, model]", {"key": "a", "model": "x"}, {"key": "a", "model": "y"}),
    ],
)
def test_calls_are_counted_together_by_what_per_says(per: str, same: dict[str, Any], other: dict[str, Any]) -> None:
    limiter = Limiter(f"per: {per}, requests_per_day: 1")
    limiter.enter(**same)
    limiter.refuses(**same)
    limiter.enter(**other)


@pytest.mark.parametrize(
    ("per", "one", "another"),
    [
        ("user", {"key": "a", "owner": "ann"}, {"key": "b", "owner": "ann"}),
        ("team", {"key": "a"}, {"key": "b"}),
        ("model", {"model": "alias"}, {"model": "gpt-4o"}),
        ("address", {"address": "2001:db8:1:2::7"}, {"address": "2001:db8:1:2:ffff::1"}),
        ("address", {"address": "fe80::1%eth0"}, {"address": "fe80::2"}),
    ],
)
def test_two_names_of_one_caller_are_one(per: str, one: dict[str, Any], another: dict[str, Any]) -> None:
    limiter = Limiter(f"per: {per}, requests_per_hour: 1")
    limiter.enter(**one)
    limiter.refuses(**another)


def test_models_that_nobody_has_count_as_one_and_a_list_of_models_has_none() -> None:
    limiter = Limiter("per: model, requests_per_hour: 1")
    limiter.enter(model="nowhere")
    limiter.refuses(model="nowhere")
    limiter.enter(model="")
    limiter.refuses(model="")


def test_a_window_and_an_even_refill_differ_in_what_comes_back() -> None:
    window, evenly = Limiter("requests_per_minute: 2"), Limiter("requests_per_minute: 2, refill: continuous")
    for limiter in (window, evenly):
        limiter.enter()
        limiter.enter()
        limiter.clock.advance(30)
    window.refuses()
    evenly.enter()
    assert evenly.refuses().retry_after == 30


def test_tokens_are_set_aside_and_then_corrected() -> None:
    limiter = Limiter("tokens_per_minute: 100")
    limiter.estimate = 60
    first = limiter.enter()
    error = limiter.refuses()
    assert (error.retry_after, dict(error.fields)[b"x-ratelimit-remaining-tokens"]) == (60, b"40")
    first.usage = Usage(10, 15)
    limiter.link.on_done(first)
    second = limiter.enter()
    assert limiter.answer(second)[b"x-ratelimit-remaining-tokens"] == b"15"


@pytest.mark.parametrize(
    ("usage", "outcome", "attempts", "charged"),
    [
        (Usage(10, 5), "ok", 1, 15),
        (Usage(10, 3, source="estimated"), "cancelled", 1, 13),
        (NO_USAGE, "cancelled", 1, 10),
        (None, "cancelled", 1, 10),
        (None, "cancelled", 0, 0),
        (None, "refused", 0, 0),
        (NO_USAGE, "upstream_error", 2, 0),
    ],
)
def test_a_call_is_charged_what_it_used(usage: Usage | None, outcome: Any, attempts: int, charged: int) -> None:
    limiter = Limiter("tokens_per_day: 100")
    limiter.estimate = 50
    ex = limiter.enter()
    ex.usage, ex.outcome = usage, outcome
    ex.attempts = cast("Any", [None] * attempts)
    ex.rough_prompt = cast("Any", SimpleNamespace(tokens=10))
    limiter.link.on_done(ex)
    limiter.estimate = 0
    assert limiter.answer(limiter.enter())[b"x-ratelimit-remaining-tokens"] == b"%d" % (100 - charged)


def test_what_will_never_fit_is_refused_for_good() -> None:
    limiter = Limiter("limits: [{tokens_per_day: 500}, {tokens_per_minute: 50}]")
    limiter.estimate = 51
    error = limiter.refuses()
    assert isinstance(error, OverLimitError)
    assert str(error) == (
        "This request may use 51 tokens, and the limit is 50 tokens per minute for each user. "
        "Shorten it, or set a lower max_tokens."
    )


def test_calls_at_once_are_counted_until_they_are_over() -> None:
    limiter = Limiter("concurrent: 2")
    calls = [limiter.enter(), limiter.enter()]
    error = limiter.refuses()
    assert str(error) == ("Rate limit reached: 2 requests at once for each user. Try again when one of them is over.")
    assert (error.retry_after, error.fields) == (1, ())
    assert limiter.answer(calls[0], (b"x-ratelimit-limit-requests", b"9")) == {b"x-ratelimit-limit-requests": b"9"}
    limiter.link.on_done(calls[0])
    limiter.enter()


def test_what_was_refused_gives_nothing_back() -> None:
    limiter = Limiter("concurrent: 1, requests_per_minute: 9")
    limiter.enter()
    ex = exchange()
    with pytest.raises(RateLimitError):
        limiter.link.on_request(ex)
    limiter.link.on_done(ex)
    limiter.refuses()
    assert limiter.answer(ex) == {}


def test_of_two_filters_the_answer_tells_the_one_with_less_left() -> None:
    first, second = Limiter("requests_per_minute: 5"), Limiter("requests_per_hour: 3")
    second.link.name = "hourly"
    ex = first.enter()
    second.enter(ex)
    below = second.answer(ex, (b"x-ratelimit-reset-tokens", b"1s"), (b"other", b"kept"))
    assert first.answer(ex, *below.items()) == {
        b"other": b"kept",
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"1h0m0s",
    }
    ex.error = RateLimitError("no", fields=[(b"x-ratelimit-limit-requests", b"1")])
    assert first.answer(ex) == {}


def test_of_two_filters_that_have_counted_many_the_answer_tells_the_one_with_less_left() -> None:
    first, second = Limiter("requests_per_minute: 50, tokens_per_day: 90"), Limiter("requests_per_hour: 30")
    third = Limiter("tokens_per_minute: 80")
    calls = [first.enter() for _ in range(3)]
    for ex in calls:
        second.enter(ex)
        third.enter(ex)
    told: dict[bytes, bytes] = {}
    for limiter in (third, second, first):
        told = limiter.answer(calls[-1], *told.items())
    assert told == {
        b"x-ratelimit-limit-requests": b"30",
        b"x-ratelimit-remaining-requests": b"27",
        b"x-ratelimit-reset-requests": b"1h0m0s",
        b"x-ratelimit-limit-tokens": b"80",
        b"x-ratelimit-remaining-tokens": b"80",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_of_two_filters_that_stand_alike_the_answer_tells_the_upper_one() -> None:
    first, second = Limiter("requests_per_minute: 5"), Limiter("requests_per_minute: 4")
    calls = [first.enter() for _ in range(3)]
    for ex in calls[1:]:
        second.enter(ex)
    told = first.answer(calls[-1], *second.answer(calls[-1]).items())
    assert (told[b"x-ratelimit-limit-requests"], told[b"x-ratelimit-remaining-requests"]) == (b"5", b"2")


def test_what_one_filter_refuses_is_told_by_none_above_it() -> None:
    first, second = Limiter("requests_per_minute: 50"), Limiter("requests_per_hour: 1")
    first.enter()
    ex = first.enter()
    second.enter()
    with pytest.raises(RateLimitError) as caught:
        second.enter(ex)
    ex.error = caught.value
    second.link.on_done(ex)
    assert first.answer(ex) == {}


def test_it_waits_for_the_body_only_where_it_must_know_it() -> None:
    texts = ("", "requests_per_day: 1, concurrent: 1", "tokens_per_day: 1", "per: [key, model], requests_per_day: 1")
    assert [Limiter(text).link.reads_body for text in texts] == [False, False, True, True]
    assert RateLimit.after == ("auth",)


def test_every_number_is_a_rule() -> None:
    rules = rules_of(settings("limits: [{per: [model, key], tokens_per_second: 7, concurrent: 2, refill: continuous}]"))
    assert [str(rule) for rule in rules] == [
        "7 tokens per second for each key and model",
        "2 requests at once for each key and model",
    ]
    assert [rule.kind.continuous for rule in rules] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per: user", "must have a number, such as requests_per_minute"),
        ("limits: [{per: user}]", "must have a number, such as requests_per_minute"),
        ("requests_per_minute: 0", "must be at least 1"),
        ("per: [], requests_per_minute: 1", "must name one of key, user, team, model, address"),
        ("per: [key, key], requests_per_minute: 1", "names one of them twice"),
        ("per: body, requests_per_minute: 1", "must be 'key', 'user', 'team', 'model' or 'address'"),
        ("requests_per_minute: 1, limits: [{concurrent: 1}]",
         "either limits, or one limit as it stands: requests_per_minute belongs into an entry of limits"),
        ("limits: [{per: [key, model], concurrent: 1}, {per: [model, key], concurrent: 2}]",
         "two limits with concurrent per key and model"),
        ("requests_per_minut: 1", "unknown key, did you mean 'requests_per_minute'?"),
    ],
)  # fmt: skip
def test_a_limit_that_says_nothing_or_two_things_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    assert message in [problem.message for problem in caught.value.problems]


def test_several_workers_cannot_count_in_the_memory_of_one() -> None:
    with pytest.raises(ConfigError, match="several workers cannot count") as caught:
        parse_config("{workers: 2, stores: {default: memory}}", env={})
    assert caught.value.problems[0].path == "stores.default"
    config = parse_config("stores: {default: memory}", env={}).model_copy(update={"workers": 2})
    with pytest.raises(ConfigError, match="several workers cannot count"):
        check_startable(config, FakeClock())


# -- over sockets


def limited(text: str, *more: Any, keys: bool = True) -> dict[str, Any]:
    """`changes` for a gateway."""
    names = [{"name": "app", "key": CLIENT_KEY}, {"name": "other", "key": OTHER_KEY}]
    return {"filters": [*([{"auth": {"keys": names}}] if keys else []), {"rate_limit": settings_of(text)}, *more]}


def settings_of(text: str) -> Any:
    return json.loads(text) if text else None


async def test_150_calls_in_a_minute_are_100_answers_and_50_times_429() -> None:
    async with gateway_over(WHOLE, changes=limited("")) as (gateway, upstream):
        answers = [await gateway.post() for _ in range(150)]
        other = await gateway.post(key=OTHER_KEY)
        rows = await gateway.rows(151)
    assert [answer.status for answer in answers] == [200] * 100 + [429] * 50
    assert (other.status, len(upstream.requests)) == (200, 101)
    assert [answer.header("x-ratelimit-remaining-requests") for answer in answers[:100]] == [
        str(n) for n in reversed(range(100))
    ]
    last = answers[-1]
    assert last.error["code"] == "rate_limit_exceeded"
    assert last.error["type"] == "rate_limit_error"
    assert 0 < int(last.header("retry-after") or "") <= 60
    assert last.header("x-ratelimit-limit-requests") == "100"
    assert sorted({(row.status, row.outcome) for row in rows}) == [(200, "ok"), (429, "refused")]


async def test_the_sdk_reads_how_it_stands_and_why_it_was_refused() -> None:
    changes = limited('{"requests_per_minute": 1, "tokens_per_hour": 50000}')
    script = json_response(chat_completion(), headers=[("x-ratelimit-remaining-tokens", "7")])
    async with (
        gateway_over(script, changes=changes) as (gateway, _),
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):
        chat = client.chat.completions.with_raw_response
        call = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
        answer = await chat.create(**cast("Any", call))
        with pytest.raises(openai.RateLimitError) as caught:
            await chat.create(**cast("Any", call))
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert 49_850 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 49_900
    assert answer.headers["x-ratelimit-reset-tokens"] in ("1h0m0s", "59m59s", "59m60s")
    assert caught.value.code == "rate_limit_exceeded"
    assert "1 requests per minute for each user" in caught.value.message


async def test_a_client_that_leaves_in_mid_answer_pays_for_what_it_got_and_frees_its_slot() -> None:
    chunks = sse(chat_chunks("Hello there."))
    cut = next(at for at, chunk in enumerate(chunks) if b"Hello" in chunk) + 1
    changes = limited('{"tokens_per_day": 5000, "concurrent": 1}')
    body = b'{"model":"gpt-4o","stream":true,"max_tokens":4000,"messages":[{"role":"user","content":"hello"}]}'
    async with gateway_over([*chunks[:cut], Pause()], changes=changes) as (gateway, _):
        async with RawClient(gateway.port) as client:
            fields = [("authorization", f"Bearer {CLIENT_KEY}")]
            await client.send(request("POST", "/v1/chat/completions", body, fields))
            await client.head()
            while b"Hello" not in await client.piece():
                pass
            assert (await gateway.post()).status == 429
        rows = await gateway.rows(2)
        cancelled = next(row for row in rows if row.outcome == "cancelled")
        fine = await gateway.send("GET", "/v1/models")
    assert cancelled.prompt_tokens + cancelled.completion_tokens < 50
    assert fine.status == 200
    left = int(fine.header("x-ratelimit-remaining-tokens") or "")
    assert left == 5000 - cancelled.prompt_tokens - cancelled.completion_tokens


async def test_a_route_has_limits_of_its_own_or_none() -> None:
    changes = {
        **limited('{"requests_per_minute": 1}'),
        "routes": [
            {"name": "free", "match": {"model": "free-*"}, "filters": {"rate_limit": "off"}},
            {"name": "two", "match": {"model": "two-*"}, "filters": {"rate_limit": {"requests_per_minute": 2}}},
        ],
    }
    async with gateway_over(WHOLE, changes=changes) as (gateway, _):
        statuses = {
            name: [(await gateway.post(json.dumps({"model": name, "messages": []}).encode())).status for _ in range(3)]
            for name in ("free-1", "two-1", "any")
        }
    assert statuses == {"free-1": [200, 200, 200], "two-1": [200, 200, 429], "any": [200, 429, 429]}


async def test_without_keys_the_address_is_the_user(tmp_path: Path) -> None:
    async with gateway_over(WHOLE, changes=limited('{"requests_per_day": 1}', keys=False), auth=False) as (gateway, _):
        answers = [await gateway.post(key=None) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[1].header("x-should-retry") == "false"
    assert int(answers[1].header("retry-after") or "") > 86_000


async def test_a_reload_keeps_what_was_counted_also_where_the_number_changes(tmp_path: Path) -> None:
    async with FakeUpstream(WHOLE) as upstream:
        first = {**config_for(upstream), **limited('{"requests_per_hour": 2}', "retry")}
        async with running_gateway(written(first, tmp_path)) as gateway:
            assert (await gateway.post()).status == 200
            same = {**first, "limits": {"drain": "29s"}}
            await gateway.half.reload(load(written(same, tmp_path)))
            second = await gateway.post()
            more = {**first, **limited('{"requests_per_hour": 3}', "retry")}
            await gateway.half.reload(load(written(more, tmp_path)))
            third, fourth = await gateway.post(), await gateway.post()
    assert [answer.status for answer in (second, third, fourth)] == [200, 200, 429]
    assert [answer.header("x-ratelimit-remaining-requests") for answer in (second, third)] == ["0", "0"]
