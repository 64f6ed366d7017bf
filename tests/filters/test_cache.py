"""cache: who asks exactly the same gets the same answer, nobody else does, and only good answers are given again."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import openai
import pytest

from headgate.config import ConfigError, parse_config
from headgate.filters.cache import Cache
from headgate.proxy.exchange import Principal
from headgate.proxy.filter import Filter
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
    sse,
)
from tests_support.cached import BODY, STREAM, CachedRelay
from tests_support.gateway import CLIENT_KEY, config_for, gateway_over, load, running_gateway, written
from tests_support.traffic import without_ours
from tests_support.upstream import FakeUpstream, Pause, in_turn

if TYPE_CHECKING:
    from pathlib import Path

    from headgate.proxy.exchange import Exchange
    from headgate.proxy.plan import Target
    from tests_support.downstream import FakeDownstream
    from tests_support.gateway import RunningGateway

ANSWER = json_response(chat_completion())
EMBEDDINGS = b'{"model":"e","input":["a"]}'


def asked(it: CachedRelay, body: bytes = BODY, answer: bytes = ANSWER, **how: Any) -> FakeDownstream:
    """One more request; where it makes a call, that is answered."""
    before = len(it.calls)
    client = it.ask(body, **how)
    if len(it.calls) > before:
        it.feed(answer)
    assert client.ended
    return client


def verdicts(it: CachedRelay, *bodies: bytes, **how: Any) -> list[str]:
    found = [asked(it, body, **how).header(b"x-headgate-cache") for body in bodies]
    return [one.decode() if one is not None else "" for one in found]


def with_fields(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


# -- hits


def test_the_same_request_gets_the_same_answer_until_it_is_too_old() -> None:
    it = CachedRelay(ttl="60s")
    assert verdicts(it, BODY, BODY) == ["miss", "hit"]
    it.relay.clock.advance(59)
    assert verdicts(it, BODY) == ["hit"]
    it.relay.clock.advance(1)
    assert verdicts(it, BODY, BODY) == ["miss", "hit"]
    assert (it.cache.hits, it.cache.misses, it.cache.stored) == (3, 2, 2)


def test_a_hit_has_the_answer_byte_for_byte_and_costs_nothing() -> None:
    it = CachedRelay()
    first, hit = asked(it), asked(it)
    assert hit.received == first.received == ANSWER.partition(b"\r\n\r\n")[2]
    assert hit.header(b"x-headgate-cost-usd") == b"0"
    assert hit.header(b"x-headgate-attempts") == b"0"
    assert hit.header(b"content-type") == first.header(b"content-type")
    row = it.row(hit)
    assert (row.cache, row.cost_usd, row.outcome, row.status) == ("hit", 0.0, "ok", 200)
    assert it.at_rest()


def test_how_a_request_is_spelt_makes_no_difference() -> None:
    it = CachedRelay()
    other = b'{ "messages": [ {"content":"\\u0068i", "role":"user"} ],\n "model": "m" }'
    assert verdicts(it, BODY, other) == ["miss", "hit"]


@pytest.mark.parametrize(
    "how",
    [
        {"headers": [(b"openai-beta", b"x")]},
        {"headers": [(b"x-lora", b"x")]},
        {"headers": [(b"x-headgate-provider", b"up0")]},
        {"headers": [(b"x-headgate-region", b"eu")]},
        {"query": b"api-version=2"},
        {"body": with_fields(temperature=0.5)},
        {"body": with_fields(user="u")},
        {"body": with_fields(model="n")},
        {"body": with_fields(stream=False)},
        {"path": "/v1/completions"},
        {"path": "/openai/deployments/m/chat/completions"},
    ],
)
def test_what_may_change_the_answer_makes_another_request(how: dict[str, Any]) -> None:
    it = CachedRelay()
    asked(it)
    asked(it, **how)
    assert len(it.calls) == 2
    assert it.cache.misses == 2


@pytest.mark.parametrize(
    "field",
    [
        (b"user-agent", b"curl"), (b"x-stainless-retry-count", b"2"), (b"traceparent", b"00-1"),
        (b"x-request-id", b"7"), (b"authorization", b"Bearer x"), (b"x-headgate-explain", b"1"),
        (b"x-headgate-timeout-ms", b"5000"),         (b"x-of-ours", b"1"), (b"x-trace-4", b"1"),
    ],
)  # fmt: skip
def test_who_asks_and_by_what_way_makes_no_difference(field: tuple[bytes, bytes]) -> None:
    it = CachedRelay(ignore_headers=["X-Of-Ours", "x-trace-4"])
    asked(it)
    assert asked(it, headers=[field]).header(b"x-headgate-cache") == b"hit"


def test_a_filter_above_that_changes_the_model_changes_the_request() -> None:
    class Chooser(Filter):
        name = "chooser"
        model = "m"

        def on_request(self, ex: Exchange) -> None:
            ex.model = self.model

    chooser = Chooser()
    it = CachedRelay(above=[chooser])
    asked(it)
    chooser.model = "n"
    assert verdicts(it, BODY) == ["miss"]


def test_another_policy_makes_other_answers() -> None:
    it = CachedRelay()
    asked(it)
    it.relay.engine.graph.policy = "another"
    assert verdicts(it, BODY) == ["miss"]


# -- tenants


class As(Filter):
    """Everybody is whom it says."""

    name = "as"

    def __init__(self) -> None:
        self.principal = Principal("nobody")

    def on_request(self, ex: Exchange) -> None:
        ex.principal = self.principal


def test_two_tenants_never_share_an_answer_and_one_does() -> None:
    who, rng = As(), Random(4)
    it = CachedRelay(above=[who])
    teams, prompts = ("red", "blue"), [with_fields(user=f"prompt {n}") for n in range(1000)]

    def ask_as(team: str, prompt: bytes) -> str | None:
        """Its answer is a secret of the team that asked first; returns the cache's word."""
        who.principal = Principal(f"{rng.choice('ab')}-{team}", team=team)
        client = asked(it, prompt, json_response(chat_completion(f"secret of {team}: {rng.random()}")))
        assert json.loads(client.received)["choices"][0]["message"]["content"].startswith(f"secret of {team}:")
        return (client.header(b"x-headgate-cache") or b"").decode()

    asking = [(team, prompt) for prompt in prompts for team in teams]
    assert {ask_as(*one) for one in asking} == {"miss"}
    assert {ask_as(*one) for one in rng.sample(asking, 500)} == {"hit"}
    assert it.cache.hits == 500


def test_tenants_who_ask_at_the_same_time_make_calls_of_their_own() -> None:
    who = As()
    it = CachedRelay(above=[who])
    for principal in (
        Principal("k", team="x"), Principal("k", owner="x"), Principal("x"), Principal("y", team="x"),
    ):  # fmt: skip
        who.principal = principal
        it.ask()
    assert len(it.calls) == 3


def test_who_may_not_ask_a_model_gets_no_answer_of_it() -> None:
    class Policy(Filter):
        name = "policy"
        closed = False

        def on_request(self, ex: Exchange) -> None:
            if self.closed:
                ex.veto(self.check)

        def check(self, target: Target) -> str | None:
            return "policy"

    policy = Policy()
    it = CachedRelay(above=[policy])
    asked(it)
    policy.closed = True
    refused = asked(it)
    assert refused.status == 403
    assert refused.header(b"x-headgate-cache") == b"bypass"
    policy.closed = False
    assert verdicts(it, BODY) == ["hit"]


# -- what passes by


@pytest.mark.parametrize(
    "field",
    [
        (b"x-headgate-cache", b"no-store"), (b"cache-control", b"no-store"), (b"cache-control", b"max-age=0, No-Cache"),
        (b"x-headgate-cache", b"No-Store"),
    ],
)  # fmt: skip
def test_who_wants_a_new_answer_gets_one_and_leaves_none(field: tuple[bytes, bytes]) -> None:
    it = CachedRelay()
    asked(it)
    assert verdicts(it, BODY, headers=[field]) == ["bypass"]
    assert len(it.calls) == 2
    assert verdicts(it, BODY) == ["hit"]
    fresh = CachedRelay()
    asked(fresh, headers=[field])
    assert verdicts(fresh, BODY) == ["miss"]
    assert fresh.row(fresh.ask(BODY)).cache == "hit"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", with_fields(store=True)),
        ("/v1/responses", b'{"model":"m","input":"hi"}'),
        ("/v1/responses", b'{"model":"m","input":"hi","store":false,"conversation":"c_1"}'),
        ("/v1/responses", b'{"model":"m","input":"hi","store":false,"background":true}'),
        ("/v1/chat/completions", with_fields(tools=[{"type": "function"}])),
        ("/v1/chat/completions", with_fields(functions=[{"name": "f"}])),
        ("/v1/chat/completions", with_fields(web_search_options={})),
        ("/v1/images/generations", b'{"model":"m","prompt":"a cat"}'),
        ("/v1/audio/speech", b'{"model":"m","input":"hi","voice":"v"}'),
    ],
)
def test_what_acts_or_is_kept_by_the_provider_passes_by(path: str, body: bytes) -> None:
    it = CachedRelay()
    assert verdicts(it, body, body, path=path) == ["bypass", "bypass"]
    assert (it.cache.bypassed, len(it.calls)) == (2, 2)
    assert [row.cache for row in it.rows()] == ["bypass"] * 2


def test_tools_and_other_endpoints_are_cached_where_the_operator_says_so() -> None:
    it = CachedRelay(tools=True, operations=["chat", "images"])
    tools = with_fields(tools=[{"type": "function"}])
    assert verdicts(it, tools, tools) == ["miss", "hit"]
    picture = b'{"model":"m","prompt":"a cat"}'
    assert verdicts(it, picture, picture, path="/v1/images/generations") == ["miss", "hit"]
    assert verdicts(it, EMBEDDINGS, path="/v1/embeddings") == ["bypass"]


@pytest.mark.parametrize(
    ("temperature", "verdict"), [(0, "miss"), (0.0, "miss"), (0.1, "bypass"), (None, "bypass"), ("x", "bypass")]
)
def test_with_a_bound_hotter_requests_pass_by(temperature: object, verdict: str) -> None:
    it = CachedRelay(max_temperature=0)
    body = BODY if temperature is None else with_fields(temperature=temperature)
    assert verdicts(it, body) == [verdict]
    assert verdicts(it, EMBEDDINGS, EMBEDDINGS, path="/v1/embeddings") == ["miss", "hit"]


def test_what_is_no_exchange_with_a_model_is_not_even_counted() -> None:
    it = CachedRelay()
    from tests_support.downstream import FakeDownstream as Client

    client = Client(method="GET", path="/v1/models")
    it.relay.accept(client)
    assert client.header(b"x-headgate-cache") is None
    assert it.cache.bypassed == 0


# -- what is kept


@pytest.mark.parametrize(
    "answer",
    [
        json_response(chat_completion(finish_reason="content_filter")),
        json_response({"error": {"message": "no"}}, 400),
        json_response({"error": {"message": "no"}}),
        json_response(chat_completion("x" * 3000)),
    ],
)
def test_what_is_flagged_failed_or_too_large_is_not_kept(answer: bytes) -> None:
    it = CachedRelay(max_entry="2KiB", size="1MiB")
    it.relay.clock.advance(1)
    client = it.ask(BODY)
    for _ in range(3):  # its retries are answered the same
        it.feed(answer)
        it.relay.clock.advance(0.3)
    assert client.ended
    before = len(it.calls)
    it.ask(BODY)
    assert len(it.calls) == before + 1
    assert (it.cache.stored, it.cache.unfit) == (0, 1)


def test_a_stream_that_the_provider_s_filter_stopped_is_not_kept() -> None:
    it = CachedRelay()
    it.ask()
    it.feed(response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]))
    stopped = event(chat_chunk({}, finish_reason="content_filter"))
    it.feed(chunk(event(chat_chunk({"content": "x"}))), chunk(stopped), chunk(event(DONE)), LAST_CHUNK)
    assert it.cache.unfit == 1


def test_room_is_made_by_age_of_use() -> None:
    it = CachedRelay(size=3000, max_entry=1024)
    bodies = [with_fields(user=str(n)) for n in range(5)]
    verdicts(it, *bodies)
    assert it.cache.evicted > 0
    assert verdicts(it, bodies[4]) == ["hit"]
    assert verdicts(it, bodies[0]) == ["miss"]
    assert it.cache.stored_bytes > 5 * 512


def test_an_answer_of_a_filter_below_is_shared_and_not_kept() -> None:
    from headgate.proxy.replies import Reply, json_reply

    class Canned(Filter):
        name = "canned"

        def on_request(self, ex: Exchange) -> Reply:
            return json_reply({"mine": True})

    it = CachedRelay(below=[Canned()])
    assert [it.ask(BODY).received for _ in range(2)] == [b'{"mine":true}'] * 2
    assert it.cache.unfit == 2
    assert it.at_rest()


def test_a_decision_says_what_the_cache_had_to_do_with_it() -> None:
    it = CachedRelay()
    first, hit, passed = asked(it), asked(it), asked(it, headers=[(b"cache-control", b"no-store")])
    found = [
        it.relay.engine.decisions.find((one.header(b"x-headgate-decision-id") or b"").decode())
        for one in (first, hit, passed)
    ]
    assert [one["cache"]["verdict"] for one in found if one] == ["miss", "hit", "bypass"]
    assert found[0] is not None
    assert found[1] is not None
    assert [one["provider"] for one in found[0]["attempts"]] == ["up0"]
    assert [one["verdict"] for one in found[0]["filters"]] == ["passed", "passed"]
    assert [one["verdict"] for one in found[1]["filters"]] == ["answered", "not reached"]
    by = (first.header(b"x-headgate-request-id") or b"").decode()
    assert found[1]["cache"]["why"] == f"the answer was made 0.0 s before, for {by}"
    assert f"For the cache it was a hit: {found[1]['cache']['why']}." in found[1]["why"]


# -- config


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("{max_entry: 5MiB}", "at most 4MiB"),
        ("{size: 10KiB, max_entry: 20KiB}", "max_entry: must be at most size"),
        ("{ttl: 0s}", "more than 0s"),
        ("{operations: []}", "operations"),
        ("{operations: [files]}", "operations"),
        ("{max_temperature: 3}", "max_temperature"),
        ("{store: redis}", "store: needs a server"),
        ("{ignore_headers: [x-headgate-provider]}", "none of the gateway's own"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(f"filters: [cache: {settings}]")


def test_the_policy_changes_with_what_may_change_an_answer_and_with_nothing_else() -> None:
    def policy(text: str) -> str:
        return parse_config(text).policy

    plain = policy("filters: [cache]")
    assert plain == policy(
        "filters: [{rate_limit: {requests_per_minute: 5}}, {cache: {ttl: 1h}}, retry]\nlimits: {drain: 5s}"
    )
    changed = {
        policy('providers: {a: {base_url: "http://127.0.0.1:1/v1"}}\nfilters: [cache]'),
        policy('providers: {a: {base_url: "http://127.0.0.1:2/v1"}}\nfilters: [cache]'),
        policy("filters: [{guard: {rules: [{name: r, pattern: email, action: redact}]}}, cache]"),
    }
    assert len({plain, *changed}) == 4


# -- over sockets

CACHED = {
    "filters": [
        {"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}},
        {"rate_limit": {"requests_per_minute": 1000}},
        "cache",
        "retry",
    ]
}


def cache_of(gateway: RunningGateway) -> Cache:
    [found] = [link for link in gateway.half.engine.graph.default.chain.filters if isinstance(link, Cache)]
    return found


MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def test_the_sdk_gets_the_same_completion_twice_for_one_call() -> None:
    async with (
        gateway_over(ANSWER, changes=CACHED) as (gateway, upstream),
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):
        raw = [await client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES) for _ in range(2)]
        rows = await gateway.rows(2)
    assert [one.headers["x-headgate-cache"] for one in raw] == ["miss", "hit"]
    assert raw[0].content == raw[1].content
    assert raw[1].parse().choices[0].message.content == "Hello there."
    assert len(upstream.requests) == 1
    assert [int(one.headers["x-ratelimit-remaining-requests"]) for one in raw] == [999, 998]
    assert [(row.cache, row.cost_usd if row.cache == "hit" else "") for row in rows] == [("miss", ""), ("hit", 0.0)]


async def test_a_hundred_sdk_streams_make_one_call_and_go_on_when_the_leader_leaves() -> None:
    pause, words = Pause(), [f"word {n} " for n in range(20)]
    head, *rest = sse(chat_chunks(words))
    begun, everybody = asyncio.Semaphore(0), asyncio.Event()
    async with (
        gateway_over([head, *rest[:5], pause, *rest[5:]], changes=CACHED) as (gateway, upstream),
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):

        async def read(*, leaves: bool = False) -> str:
            text = ""
            async with await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                async for part in stream:
                    before, text = text, text + (part.choices[0].delta.content or "" if part.choices else "")
                    if text and not before:
                        begun.release()
                    if leaves and text:
                        await everybody.wait()
                        break
            return text

        leader = asyncio.create_task(read(leaves=True))
        await pause.reached()
        others = [asyncio.create_task(read()) for _ in range(99)]
        for _ in range(100):
            await begun.acquire()
        everybody.set()
        await leader
        pause.go()
        texts = await asyncio.gather(*others)
        rows = await gateway.rows(100)
    assert set(texts) == {"".join(words)}
    assert len(upstream.requests) == 1
    assert sorted(row.outcome for row in rows) == ["cancelled", *["ok"] * 99]
    assert sorted(row.cache for row in rows) == [*["joined"] * 99, "miss"]


async def test_five_hundred_at_the_moment_of_expiry_make_one_call() -> None:
    pause = Pause()
    async with gateway_over(in_turn(ANSWER, [pause, ANSWER]), changes={"filters": ["cache", "retry"]}) as (
        it,
        upstream,
    ):
        await it.post(key=None)
        cache_of(it)._answers._shelf.expire(float("inf"))
        clients = [asyncio.create_task(it.post(key=None)) for _ in range(500)]
        await pause.reached()
        for _ in range(2000):
            if len(it.half.engine.live) == 500:
                break
            await asyncio.sleep(0.01)
        pause.go()
        answers = await asyncio.gather(*clients)
        rows = await it.rows(501)
    assert [one.status for one in answers] == [200] * 500
    assert len({one.body for one in answers}) == 1
    assert len(upstream.requests) == 2
    assert sorted(row.cache for row in rows) == [*["joined"] * 499, "miss", "miss"]
    assert sum(row.attempts for row in rows) == 2


async def test_a_route_has_a_cache_of_its_own_or_none() -> None:
    routes = [
        {"name": "fresh", "match": {"model": "live-*"}, "filters": {"cache": "off"}},
        {"name": "tools", "match": {"model": "agent-*"}, "filters": {"cache": {"tools": True}}},
    ]
    changes = {**CACHED, "routes": routes}
    async with gateway_over(ANSWER, changes=changes) as (gateway, _):
        said = {}
        for model in ("live-1", "agent-1", "any"):
            body = with_fields(model=model, tools=[{"type": "function"}])
            said[model] = [(await gateway.post(body)).header("x-headgate-cache") for _ in range(2)]
    assert said == {"live-1": [None, None], "agent-1": ["miss", "hit"], "any": ["bypass", "bypass"]}


async def test_a_reload_with_flights_under_way_breaks_nothing(tmp_path: Path) -> None:
    pause = Pause()
    head, *rest = sse(chat_chunks())
    async with FakeUpstream([head, *rest[:2], pause, *rest[2:]]) as upstream:
        config = {**config_for(upstream), **CACHED}
        async with running_gateway(written(config, tmp_path)) as gateway:
            clients = [asyncio.create_task(gateway.post(STREAM)) for _ in range(5)]
            await pause.reached()
            config["filters"] = [*CACHED["filters"][:2], {"cache": {"ttl": "1h"}}, "retry"]
            await gateway.half.reload(load(written(config, tmp_path)))
            pause.go()
            answers = await asyncio.gather(*clients)
            again = await gateway.post(STREAM)
    assert len({without_ours(one.body) for one in answers}) == 1
    assert again.header("x-headgate-cache") == "miss"
    assert len(upstream.requests) == 2
