"""guard, with a service of the operator's: it sees the texts, its verdict holds, and without one its rule decides."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from headgate.config import ConfigError, parse_config
from headgate.filters.guard import Guard
from headgate.filters.guard_service import MOST_ANSWER, RESTS
from tests_support.answers import chat_chunks, chat_completion, event, json_response, response, sse
from tests_support.caller import eventually
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, RunningGateway, config_for, load, running_gateway, written
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Pause, Request, Sleep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EMAIL = "ann@example.com"
ALLOW = json_response({"action": "allow"})
BLOCK = json_response({"action": "block", "why": "not here"})
SECRET = "hg-guard-canary-6Yt9Lm2Xv4Rk"
GOOD = json_response(chat_completion("fine words"))


def redact(*texts: str) -> bytes:
    return json_response({"action": "redact", "texts": list(texts)})


@asynccontextmanager
async def guarded(
    says: Any, answer: Any = GOOD, *, more: list[dict[str, Any]] | None = None, path: str = "/judge", **rule: Any
) -> AsyncIterator[tuple[RunningGateway, FakeUpstream, FakeUpstream]]:
    """A gateway, its provider, and the service that its guard asks. `rule`: its settings; `more` stand before it."""
    async with FakeUpstream(answer) as provider, FakeUpstream(says) as service:
        http = {"url": service.base_url.removesuffix("/v1") + path, "timeout": "500ms", **rule.pop("http", {})}
        rules = [*(more or []), {"name": "policy", "http": http, **rule}]
        config = config_for(provider, retry=False)
        config["filters"].append({"guard": {"rules": rules}})
        async with running_gateway(config) as gateway:
            yield gateway, provider, service


def guard_of(gateway: RunningGateway) -> Guard:
    [link] = [one for one in gateway.half.engine.graph.default.chain.filters if isinstance(one, Guard)]
    return link


def asked_of(service: FakeUpstream) -> list[dict[str, Any]]:
    return [one.json() for one in service.requests]


# -- verdicts


async def test_it_is_told_the_texts_and_who_asks_and_what_it_allows_passes_byte_for_byte() -> None:
    body = b'{"model":"m", "messages":[{"role":"system","content":"be br\\u00efef"},{"role":"user","content":"hi"}]}'
    async with guarded(ALLOW, http={"api_key": SECRET}) as (gateway, provider, service):
        answer = await gateway.post(body)
        assert guard_of(gateway)._services[0].asked == 1
    assert answer.status == 200
    assert provider.requests[0].body == body
    [asked] = service.requests
    assert (asked.method, asked.target, asked.header("authorization")) == ("POST", "/judge", f"Bearer {SECRET}")
    assert asked.json() == {
        "id": answer.header("x-headgate-request-id"),
        "rule": "policy",
        "side": "request",
        "key": "app",
        "model": "m",
        "texts": ["be brïef", "hi"],
    }
    assert CLIENT_KEY not in asked.raw.decode()


async def test_what_it_blocks_is_not_sent() -> None:
    async with guarded(BLOCK) as (gateway, provider, _):
        answer = await gateway.post()
        assert guard_of(gateway).request_blocked == 1
        [row] = await gateway.rows(1)
    assert (answer.status, answer.error["code"]) == (400, "guard_blocked")
    assert "'policy'" in answer.error["message"]
    assert "not here" not in answer.error["message"]
    assert provider.requests == []
    assert (row.outcome, row.error_code) == ("refused", "guard_blocked")


async def test_what_it_redacts_is_put_in_place_and_nothing_else_changes() -> None:
    body = b'{ "model":"m", "messages":[{"role":"user","content":"one"},{"role":"user","content":"two"}], "n":1e0 }'
    async with guarded(redact("one", 'a "new" two\n')) as (gateway, provider, _):
        await gateway.post(body)
        assert guard_of(gateway).redacted == 1
    assert provider.requests[0].body == body.replace(b'"two"', b'"a \\"new\\" two\\n"')


async def test_several_are_asked_in_their_order_and_after_what_is_found_here() -> None:
    more = [{"name": "email", "pattern": "email", "action": "redact"}]
    async with FakeUpstream(redact("second: [email]")) as second:
        more.append({"name": "other", "http": {"url": second.base_url}})  # type: ignore[dict-item]
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": EMAIL}]}).encode()
        async with guarded(ALLOW, more=more) as (gateway, provider, service):
            await gateway.post(body)
        assert asked_of(second)[0]["texts"] == ["[email]"]
        assert asked_of(service)[0]["texts"] == ["second: [email]"]
    assert provider.requests[0].json()["messages"][0]["content"] == "second: [email]"


async def test_a_request_without_a_text_is_not_asked_about() -> None:
    async with guarded(BLOCK) as (gateway, provider, service):
        assert (await gateway.send("GET", "/v1/models")).status == 200
        assert (await gateway.post(b'{"model":"m","messages":[]}')).status == 200
    assert service.requests == []
    assert len(provider.requests) == 1


# -- answers


async def test_a_whole_answer_is_judged_before_a_byte_of_it_goes_down() -> None:
    pause = Pause()
    async with guarded([pause, redact("other words")], on=["answer"]) as (gateway, _, service):
        task = asyncio.create_task(gateway.post())
        await pause.reached()
        assert not task.done()
        pause.go()
        answer = await task
        [row] = await gateway.rows(1)
    [asked] = asked_of(service)
    assert (asked["side"], asked["texts"]) == ("answer", ["fine words"])
    assert answer.json()["choices"][0]["message"]["content"] == "other words"
    assert (row.outcome, row.bytes_out) == ("ok", len(answer.body))


async def test_an_answer_that_it_blocks_is_charged_and_not_shown() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    good = json_response(chat_completion("secret words", usage=usage))
    async with guarded(BLOCK, good, on=["answer"]) as (gateway, _, __):
        answer = await gateway.post()
        [row] = await gateway.rows(1)
        assert guard_of(gateway).answer_blocked == 1
    assert (answer.status, answer.error["code"]) == (403, "guard_blocked")
    assert b"secret words" not in answer.body
    assert (row.outcome, row.completion_tokens) == ("refused", 4)


async def test_an_answer_that_is_no_json_is_one_text() -> None:
    page = response(502, b"<p>oh no</p>", [("content-type", "text/html")])
    async with guarded(redact("<p>*</p>"), page, on=["answer"]) as (gateway, _, service):
        answer = await gateway.post()
    assert asked_of(service)[0]["texts"] == ["<p>oh no</p>"]
    assert answer.body == b"<p>*</p>"


async def test_bytes_that_are_no_text_are_told_and_pass_as_they_are() -> None:
    page = response(502, b"oh \xff no", [("content-type", "text/html")])
    async with guarded(ALLOW, page, on=["answer"]) as (gateway, _, service):
        answer = await gateway.post()
    assert asked_of(service)[0]["texts"] == ["oh \udcff no"]
    assert answer.body == b"oh \xff no"


async def test_both_sides_are_judged_with_an_sdk() -> None:
    async with (
        guarded(ALLOW, on=["request", "answer"]) as (gateway, _, service),
        AsyncOpenAI(api_key=CLIENT_KEY, base_url=gateway.base_url, max_retries=0) as sdk,
    ):
        made = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert made.choices[0].message.content == "fine words"
    assert [one["side"] for one in asked_of(service)] == ["request", "answer"]


# -- streams

ASKS_STREAM = CHAT_BODY[:-1] + b',"stream":true}'


async def test_where_answers_are_judged_streams_are_refused() -> None:
    async with guarded(ALLOW, on=["answer"]) as (gateway, provider, service):
        answer = await gateway.post(ASKS_STREAM)
    assert (answer.status, answer.error["code"]) == (400, "guard_unreadable")
    assert provider.requests == service.requests == []


async def test_a_stream_that_nobody_asked_for_is_refused_there_too() -> None:
    async with guarded(ALLOW, sse(chat_chunks()), on=["answer"]) as (gateway, _, __):
        answer = await gateway.post()
    assert b"chat.completion.chunk" not in answer.body
    assert b"guard_blocked" in answer.body


async def test_streams_may_pass_unjudged_if_the_rule_says_so_and_other_rules_still_hold() -> None:
    more = [{"name": "email", "pattern": "email", "action": "redact"}]
    stream = [*sse([event(one) for one in chat_chunks([f"to {EMAIL} now"])])]
    for rules, text in ((more, b"[email]"), (None, EMAIL.encode())):
        async with guarded(BLOCK, stream, more=rules, on=["answer"], streams="pass") as (gateway, _, service):
            answer = await gateway.post(ASKS_STREAM)
        assert answer.status == 200
        assert text in answer.body
        assert service.requests == []


async def test_a_stream_with_a_judged_request_stays_a_stream() -> None:
    async with guarded(ALLOW, sse(chat_chunks())) as (gateway, _, service):
        answer = await gateway.post(ASKS_STREAM)
        assert gateway.half.engine.graph.default.chain.byte_path
    assert answer.body.count(b"data: ") > 3
    assert len(service.requests) == 1


# -- no verdict

FAILURES: dict[str, Any] = {
    "garbage": [b"what?\r\n\r\n", FIN],
    "reset": [RST],
    "closed": [FIN],
    "silent": [STALL],
    "slow": [Sleep(1.5), ALLOW],
    "dripping": [b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n", *[b" ", Sleep(0.2)] * 20],
    "cut": [ALLOW[:-3], FIN],
    "500": response(500, b'{"action":"allow"}'),
    "redirect": response(302, b"", [("location", "http://127.0.0.1:9/")]),
    "no json": response(200, b"allow"),
    "a list": json_response(["allow"]),
    "no action": json_response({"verdict": "allow"}),
    "an unknown action": json_response({"action": "maybe"}),
    "no texts": json_response({"action": "redact"}),
    "too few texts": redact(),
    "too many texts": redact("a", "b"),
    "texts that are none": json_response({"action": "redact", "texts": [7]}),
    "too large": json_response({"action": "allow", "x": "y" * MOST_ANSWER}),
}


@pytest.mark.parametrize("fail", ["open", "closed"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_without_a_verdict_the_rule_decides(failure: str, fail: str) -> None:
    async with guarded(FAILURES[failure], fail=fail) as (gateway, provider, _):
        answer = await gateway.post()
        link = guard_of(gateway)
        assert (link.no_verdict, link.unjudged) == (1, int(fail == "open"))
        assert link._services[0].failed == 1
    if fail == "open":
        assert (answer.status, len(provider.requests)) == (200, 1)
    else:
        assert (answer.status, answer.error["code"]) == (503, "guard_unavailable")
        assert answer.header("retry-after") == str(int(RESTS.open_for))
        assert provider.requests == []


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_without_a_verdict_on_an_answer_the_rule_decides(fail: str) -> None:
    async with guarded([RST], fail=fail, on=["answer"]) as (gateway, _, __):
        answer = await gateway.post()
    assert answer.status == (200 if fail == "open" else 503)
    if fail == "closed":
        assert answer.error["code"] == "guard_unavailable"
        assert b"fine words" not in answer.body


async def test_a_dead_service_is_asked_no_more_for_a_while_and_said_once_and_then_tried_once() -> None:
    alive = False

    def says(asked: Request) -> Any:
        return [ALLOW] if alive else [STALL]

    async with guarded(says, fail="open", http={"timeout": "100ms"}) as (gateway, provider, service):
        link = guard_of(gateway)
        [judge] = link._services
        with capture_logs() as logged:
            answers = [await gateway.post() for _ in range(RESTS.failures + 20)]
            assert len(service.requests) == judge.asked == RESTS.failures
            assert link.unjudged == RESTS.failures + 20
            assert {one.status for one in answers} == {200}
            assert [line["event"] for line in logged if "guard" in line["event"]] == ["guard_away"]
            rests = judge._breaker.rests_until
            assert rests is not None
            judge._breaker.rests_until = 0.0  # the rest is over
            first, second = await asyncio.gather(gateway.post(), gateway.post())
            assert {first.status, second.status} == {200}
            assert judge.asked == RESTS.failures + 1  # one tries, which fails
            alive, judge._breaker.rests_until = True, 0.0
            await gateway.post()
            await gateway.post()
            assert judge.asked == RESTS.failures + 3
            assert link.unjudged == RESTS.failures + 22
            assert [line["event"] for line in logged if "guard" in line["event"]][-1] == "guard_back"
    assert len(provider.requests) == RESTS.failures + 24


async def test_more_calls_than_it_may_take_wait_and_still_more_fail() -> None:
    pause = Pause()
    async with guarded([pause, ALLOW], http={"concurrent": 1, "timeout": "5s"}) as (gateway, _, service):
        first = asyncio.create_task(gateway.post())
        await pause.reached()
        second = asyncio.create_task(gateway.post())
        await eventually(lambda: guard_of(gateway)._services[0].asked == 2)
        third = await gateway.post()
        assert (third.status, third.error["code"]) == (503, "guard_unavailable")
        assert len(service.requests) == 1
        pause.go()
        assert [(await one).status for one in (first, second)] == [200, 200]


async def test_a_client_that_leaves_meanwhile_ends_the_question() -> None:
    pause = Pause()
    async with guarded([pause, ALLOW], http={"timeout": "10s"}) as (gateway, provider, service):
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, CHAT_BODY, [("authorization", f"Bearer {CLIENT_KEY}")]))
            await pause.reached()
            client.leave(reset=True)
        [row] = await gateway.rows(1)
        await service.wait_closed()
        assert guard_of(gateway).no_verdict == 0
    assert (row.outcome, provider.requests) == ("cancelled", [])


async def test_its_key_and_the_texts_are_in_no_log() -> None:
    async with guarded(response(500, b"no"), http={"api_key": SECRET}) as (gateway, _, __):
        with capture_logs() as logged:
            for _ in range(RESTS.failures):
                await gateway.post(CHAT_BODY.replace(b"hello", EMAIL.encode()))
    said = json.dumps(logged, default=str)
    assert "guard_away" in said
    assert not [one for one in (SECRET, EMAIL) if one in said]


async def test_a_reload_with_another_service_closes_the_connections_to_the_first(tmp_path: Any) -> None:
    async with guarded(ALLOW) as (gateway, provider, service), FakeUpstream(ALLOW) as other:
        await gateway.post()
        config = config_for(provider, retry=False)
        config["filters"].append({"guard": {"rules": [{"name": "policy", "http": {"url": other.base_url}}]}})
        events = gateway.half.config.events
        config["events"] = {"path": str(events.path), "spool": {"path": str(events.spool.path)}}
        await gateway.half.reload(load(written(config, tmp_path)))
        await service.wait_closed()
        assert (await gateway.post()).status == 200
        assert len(other.requests) == 1


# -- config


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{name: a, http: {}}", "url"),
        ("{name: a, http: {url: 'ftp://x/'}}", "https:// or http://"),
        ("{name: a, http: {url: 'http://u:p@x/'}}", "no user"),
        ("{name: a, http: {url: 'http://x/?key=1'}}", "no user, query"),
        ("{name: a, http: {url: 'http://x:y/'}}", "must be a URL"),
        ("{name: a, http: {url: 'http://x/', timeout: 0s}}", "more than 0s"),
        ("{name: a, http: {url: 'http://x/'}, pattern: email}", "one of them alone"),
        ("{name: a, http: {url: 'http://x/'}, action: block}", "the service says"),
        ("{name: a, pattern: email, fail: open}", "fail: is for a rule with http"),
        ("{name: a, regex: abc, streams: pass}", "streams: is for a rule with http"),
    ],
)
def test_settings_of_a_service_that_mean_nothing_are_refused(rule: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(f"filters: [{{guard: {{rules: [{rule}]}}}}]", env={})
    assert words in str(refused.value)


def test_a_service_sees_requests_alone_unless_the_rule_says_otherwise() -> None:
    config = parse_config("filters: [{guard: {rules: [{name: a, http: {url: 'http://x/y'}}]}}]", env={})
    rule = config.filters[0].config.rules[0]  # type: ignore[union-attr]
    assert (rule.on, rule.fail, rule.streams) == (frozenset(["request"]), "closed", "refuse")
