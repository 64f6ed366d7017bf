"""decisions: what is remembered of an exchange says why it went as it did, is bounded, and is none of its content."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.decisions import MAX_FIELD, Decisions, Facts, render
from headgate.proxy.exchange import Exchange
from headgate.proxy.filter import Filter, SkipTarget
from headgate.proxy.replies import json_reply
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, config_for, gateway_over, gateway_over_two, running_gateway
from tests_support.upstream import RST, FakeUpstream

if TYPE_CHECKING:
    from headgate.proxy.attempt import Attempt
    from headgate.proxy.replies import Reply
    from tests_support.gateway import RunningGateway
    from tests_support.raw import Answer

WHOLE = json_response(chat_completion(), headers=[("x-request-id", "req_up")])
EXPLAIN = ("x-headgate-explain", "1")
VIEWER_KEY = "hg-viewer-canary-2Vb7nM4kJh9GfDsA"
SECRET = "prompt-canary-Qw8eR5tY2uI9"


class Answers(Filter):
    """Answers by itself."""

    def on_request(self, ex: Exchange) -> Reply:
        return json_reply({"ok": True})


class SkipsFirst(Filter):
    """Does not let the first provider be asked."""

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        if attempt.target.cluster.name == "up":
            raise SkipTarget("not today")


class Dislikes(Filter):
    """Vetoes the second provider, and ranks what is left."""

    def on_request(self, ex: Exchange) -> None:
        ex.veto(lambda target: "too dear" if target.cluster.name == "up2" else None)


class Notes(Filter):
    """Says something."""

    text = ""

    def on_request(self, ex: Exchange) -> None:
        ex.note(self.name, self.text)


def decision(gateway: RunningGateway, answer: Answer) -> dict[str, Any]:
    """Of this answer."""
    id_ = answer.header("x-headgate-decision-id")
    assert id_ is not None
    found = gateway.half.engine.decisions.find(id_)
    assert found is not None
    return found


def use(kind: type[Filter]) -> dict[str, Any]:
    """An entry for a filter of this file."""
    return {"use": f"{__name__}:{kind.__name__}", "name": kind.__name__.lower()}


async def test_a_fallback_is_explained_attempt_by_attempt() -> None:
    async with gateway_over_two([RST], WHOLE) as (gateway, first, second):
        answer = await gateway.post()
        found = decision(gateway, answer)
        endpoints = [up.base_url.removesuffix("/v1") for up in (first, second)]
    assert answer.header("x-headgate-decision-id") == answer.header("x-headgate-request-id") == found["id"]
    assert (found["endpoint"], found["key"], found["route"], found["model"]) == (
        "chat",
        "app",
        "default",
        "gpt-4o-mini",
    )
    assert (found["status"], found["outcome"], found["error"], found["strategy"]) == (200, "ok", None, "config-order")
    assert [(one["name"], one["verdict"], one["ms"]) for one in found["filters"]] == [
        ("auth", "passed", None),
        ("retry", "passed", None),
    ]
    assert [(one["provider"], one["rank"], one["veto"]) for one in found["candidates"]] == [
        ("up", 1, None),
        ("up2", 2, None),
    ]
    lost, good = found["attempts"]
    assert (lost["provider"], lost["endpoint"], lost["error"]["condition"]) == ("up", endpoints[0], "reset")
    assert (good["provider"], good["endpoint"], good["status"], good["error"]) == ("up2", endpoints[1], 200, None)
    assert (good["key"], good["request_id"]) == ("api_key", "req_up")
    assert 0 <= lost["started_ms"] <= lost["ended_ms"] <= good["started_ms"] <= good["head_ms"] <= good["ended_ms"]
    assert found["why"] == [
        "up/gpt-4o-mini was choice 1 by config-order.",
        "up2/gpt-4o-mini was choice 2 by config-order.",
        "Attempt 1 at up/gpt-4o-mini failed (reset).",
        "Attempt 2 at up2/gpt-4o-mini answered 200.",
    ]


@pytest.mark.parametrize(
    ("link", "verdicts", "why"),
    [
        (Answers, ["passed", "answered", "not reached"], "The filter 'answers' answered it."),
        (SkipsFirst, ["passed"] * 3, "up/gpt-4o-mini was not asked: not today."),
        (Dislikes, ["passed"] * 3, "up2/gpt-4o-mini was not asked: too dear."),
    ],
)
async def test_what_filters_did_is_in_it(link: type[Filter], verdicts: list[str], why: str) -> None:
    async with FakeUpstream(WHOLE) as first, FakeUpstream(WHOLE) as second:
        config = config_for(first, second)
        config["filters"].insert(1, use(link))
        async with running_gateway(config) as gateway:
            found = decision(gateway, await gateway.post())
    assert [one["verdict"] for one in found["filters"]] == verdicts
    assert why in found["why"]


async def test_a_refusal_says_who_refused_and_what_the_client_was_told() -> None:
    async with gateway_over([WHOLE]) as (gateway, _):
        found = decision(gateway, await gateway.post(key="hg-nobody-2Vb7nM4kJh9GfDsA"))
        nowhere = decision(gateway, await gateway.post(b"{"))
    assert found["filters"][0]["verdict"] == "refused"
    assert (found["error"]["code"], found["key"], found["attempts"]) == ("invalid_api_key", "-", [])
    assert found["why"][0] == "The filter 'auth' refused it."
    assert {one["verdict"] for one in nowhere["filters"]} == {"passed"}
    assert nowhere["why"][-1].startswith("The client was told invalid_json: ")


async def test_asked_for_it_stands_in_the_head_with_the_time_of_each_filter() -> None:
    async with gateway_over([WHOLE], auth=False) as (gateway, _):
        plain = await gateway.post(key=None)
        answer = await gateway.post(headers=[EXPLAIN], key=None)
        found = decision(gateway, answer)
    said = json.loads(answer.header("x-headgate-explain") or "")
    assert said["id"] == found["id"]
    assert [one["status"] for one in said["attempts"]] == [200]
    assert [one["ms"] is not None for one in found["filters"]] == [True]
    assert "filter.retry;dur=" in (answer.header("server-timing") or "")
    assert plain.header("x-headgate-explain") is None
    assert "filter." not in (plain.header("server-timing") or "")


async def test_only_keys_with_a_role_see_it_in_the_head() -> None:
    async with FakeUpstream(WHOLE) as upstream:
        config = config_for(upstream)
        config["filters"][0]["auth"]["keys"].append({"name": "ops", "key": VIEWER_KEY, "roles": ["viewer"]})
        async with running_gateway(config) as gateway:
            seen = {
                key: (await gateway.post(headers=[EXPLAIN], key=key)).header("x-headgate-explain") is not None
                for key in (CLIENT_KEY, VIEWER_KEY, "hg-nobody-2Vb7nM4kJh9GfDsA", None)
            }
    assert list(seen.values()) == [False, True, False, False]


async def test_nothing_of_the_content_and_no_key_is_in_it() -> None:
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"%s"}]}' % SECRET.encode()
    script = [error_response(500, f"about {SECRET}")]
    async with gateway_over_two(script, script) as (gateway, _, _):
        found = json.dumps(decision(gateway, await gateway.post(body, headers=[("x-mine", SECRET)])))
    for secret in (SECRET, CLIENT_KEY, PROVIDER_KEY):
        assert secret not in found


async def test_a_header_is_bounded_however_many_candidates_there_are() -> None:
    async with FakeUpstream(WHOLE) as upstream:
        config = config_for(upstream, auth=False)
        targets = [{"provider": "up", "model": f"{n:03}-{'m' * 200}"} for n in range(60)]
        config["models"] = {"many": {"targets": targets}}
        async with running_gateway(config) as gateway:
            answer = await gateway.post(b'{"model":"many","messages":[]}', headers=[EXPLAIN], key=None)
            assert len(decision(gateway, answer)["candidates"]) == 60
    value = answer.header("x-headgate-explain") or ""
    assert len(value) <= MAX_FIELD
    assert json.loads(value)["candidates_left_out"] == 56


@pytest.mark.parametrize("below", ["chat/completions", "embeddings", "audio/transcriptions"])
async def test_a_path_whose_model_is_no_text_is_refused_and_the_refusal_can_be_shown(below: str) -> None:
    form = [("content-type", "multipart/form-data; boundary=x")] if below.startswith("audio") else []
    async with gateway_over([WHOLE], auth=False) as (gateway, _):
        path = f"/openai/deployments/m%FF/{below}"
        answer = await gateway.send("POST", path, b'{"messages":[]}', [EXPLAIN, *form], key=None)
        json.dumps(decision(gateway, answer)).encode()
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "missing_model"


@pytest.mark.parametrize("note", ["\x7f", "\udcff", "\N{EURO SIGN}", "plain"])
async def test_what_a_header_may_not_hold_is_escaped_in_it(note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Notes, "text", note)
    async with gateway_over([WHOLE], auth=False, changes={"filters": [use(Notes)]}) as (gateway, _):
        value = (await gateway.post(headers=[EXPLAIN], key=None)).header("x-headgate-explain") or ""
    assert value.isascii()
    assert value.isprintable()
    assert json.loads(value)["filters"][0]["note"] == note


async def test_an_exchange_is_freed_although_its_decision_is_kept() -> None:
    async with gateway_over([WHOLE], auth=False) as (gateway, _):
        await gateway.post(key=None)
        gc.collect()
        gc.disable()
        try:
            others = [
                one for one in gc.get_objects() if isinstance(one, Exchange)
            ]  # an error of another test's holds them
            answer = await gateway.post(key=None)
            assert decision(gateway, answer)["status"] == 200
            assert not [one for one in gc.get_objects() if isinstance(one, Exchange) and one not in others]
        finally:
            gc.enable()


def exchange(id_: str, outcome: str = "ok") -> Any:
    """As much of one as is kept."""
    ex: Any = type("Kept", (), {})()
    for name in ("route", "error", "scorer", "plan", "timings", "inputs", "cache", "notes"):
        setattr(ex, name, None)
    ex.id, ex.outcome, ex.model, ex.wall, ex.started, ex.reached, ex.status = id_, outcome, "m", 0.0, 0.0, 0, 200
    ex.attempts, ex.overruled, ex.skipped = [], (), ()
    ex.graph = type("G", (), {"version": "v", "prefix": type("C", (), {"names": ()})})
    ex.face = ex.principal = type("N", (), {"name": "n"})
    return ex


def test_what_is_kept_is_bounded_and_failures_outlive_the_rest() -> None:
    kept = Decisions(kept=3, failed=2, unknown=1)
    for n in range(3):
        kept.keep(exchange(f"bad{n}", "upstream_error"), 1.0, known=True)
    for n in range(10):
        kept.keep(exchange(f"good{n}"), 1.0, known=True)
        kept.keep(exchange(f"nobody{n}", "refused"), 1.0, known=False)
    found = [name for n in range(10) for name in (f"bad{n}", f"good{n}", f"nobody{n}") if kept.find(name) is not None]
    assert found == ["bad1", "bad2", "good7", "good8", "good9", "nobody9"]


def test_what_a_filter_says_of_its_decision_stands_beside_its_verdict() -> None:
    facts = Facts(
        "hg_1", 0.0, 0.0, 1.0, "v", "chat", "app", "", "", ("auth", "limit"), 2, None, 200, "ok", "", "",
        "config-order", None, (), (), (), None, notes={"limit": "counted elsewhere"},
    )  # fmt: skip
    assert render(facts)["filters"] == [
        {"name": "auth", "verdict": "passed", "ms": None},
        {"name": "limit", "verdict": "passed", "ms": None, "note": "counted elsewhere"},
    ]


def test_a_client_that_left_in_a_filter_interrupted_it() -> None:
    facts = Facts(
        "hg_1", 0.0, 0.0, 1.0, "v", "chat", "app", "", "", ("slow", "next"), 0, [(0, 0.25)], 499, "cancelled", "", "",
        "config-order", None, (), (), (), None,
    )  # fmt: skip
    assert render(facts)["filters"] == [
        {"name": "slow", "verdict": "interrupted", "ms": 750.0},
        {"name": "next", "verdict": "not reached", "ms": None},
    ]
