"""The admin listener's answers over sockets, beside a gateway that serves: what each shows and what it hides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from headgate.control.admin.app import admin_app
from tests_support.admin import KEYS, MOCK, config_with, running_admin
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.edge import EchoAcceptor, running_edge
from tests_support.gateway import PROVIDER_KEY, config_for
from tests_support.raw import request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

GOOD = json_response(chat_completion())
TEXT = [("accept", "text/plain")]
EVENTS_FILTER = """
from headgate.proxy.filter import Filter

class Rewriting(Filter):
    def on_event(self, ex, event):
        return event
"""


async def test_ready_says_live() -> None:
    async with running_admin() as admin:
        answer = await admin.get("/ready")
        word = await admin.get("/ready", headers=TEXT)
        head = await admin.ask("HEAD", "/ready")
    assert answer.status == 200
    assert answer.json()["state"] == "LIVE"
    assert answer.json()["reasons"] == []
    assert any("auth is open" in warning for warning in answer.json()["warnings"])
    assert (word.status, word.body, word.header("content-type")) == (200, b"LIVE\n", "text/plain; charset=utf-8")
    assert (head.status, head.body) == (200, b"")


async def test_ready_says_why_not_and_only_to_those_who_may_know() -> None:
    async with running_admin(config_with(auth=True, public=True)) as admin:
        admin.gateway.half.ready = False
        stranger, operator = await admin.get("/ready"), await admin.get("/ready", key="viewer")
        word = await admin.get("/ready", headers=TEXT)
    assert (stranger.status, stranger.json()) == (503, {"state": "INITIALIZING"})
    assert (word.status, word.body) == (503, b"INITIALIZING\n")
    assert operator.status == 503
    assert operator.json()["reasons"] == ["starting"]


@pytest.mark.parametrize(
    ("reasons", "word"),
    [
        (["starting"], "INITIALIZING"),
        (["the ledger keeps crashing", "draining"], "DRAINING"),
        (["the ledger keeps crashing"], "UNAVAILABLE"),
    ],
)
async def test_one_word_says_what_keeps_traffic_away(
    reasons: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_admin() as admin:
        monkeypatch.setattr(admin.view, "readiness", lambda: reasons)
        answer = await admin.get("/ready")
    assert (answer.status, answer.json()["state"], answer.json()["reasons"]) == (503, word, reasons)


async def test_drain_turns_readiness_off_and_the_process_stays(capsys: pytest.CaptureFixture[str]) -> None:
    async with running_admin(config_with(auth=True)) as admin:
        first = await admin.ask("POST", "/drain", key="admin")
        assert (first.status, first.json()["state"]) == (200, "DRAINING")
        assert (await admin.ask("POST", "/drain", key="admin")).status == 200
        ready = await admin.get("/ready")
        assert (ready.status, ready.json()["reasons"]) == (503, ["draining"])
        refused = await admin.gateway.post()
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert (await admin.get("/metrics")).status == 200
    [line, _] = [line for line in capsys.readouterr().out.splitlines() if "admin_change" in line]
    assert "path=/drain" in line
    assert "key=admin" in line


async def test_stats_are_the_samples_of_metrics_and_the_filter_is_text_not_a_pattern() -> None:
    async with running_admin() as admin:
        await admin.gateway.post(key=None)
        everything = (await admin.get("/stats")).json()
        some = (await admin.get("/stats?filter=exchanges_total")).json()["stats"]
        labelled = (await admin.get("/stats?filter=gpt-4o")).json()["stats"]
        none = (await admin.get("/stats?filter=" + "(a%2B)%2B%24" * 20)).json()["stats"]
    assert (everything["state"], everything["config_version"]) == ("LIVE", admin.gateway.half.config.digest)
    assert some == [
        {
            "name": "headgate_exchanges_total",
            "type": "counter",
            "labels": {"endpoint": "chat", "outcome": "ok", "status": "200"},
            "value": 1.0,
        }
    ]
    assert {one["labels"]["gen_ai_request_model"] for one in labelled} == {"gpt-4o-mini"}
    [histogram] = [one for one in labelled if one["name"] == "gen_ai_server_request_duration_seconds"]
    assert (histogram["count"], sum(histogram["counts"])) == (1, 1)
    assert len(histogram["counts"]) == len(histogram["bounds"]) + 1
    assert none == []


async def test_clusters_show_every_provider_in_lines_and_as_json() -> None:
    async with FakeUpstream([GOOD]) as upstream:
        config = config_for(upstream, auth=False)
        config["providers"] |= {"spare": {"base_url": "https://spare.example/v1", "api_key": "${NOT_SET:-}"}}
        async with running_admin(config) as admin:
            await admin.gateway.post(key=None)
            lines = (await admin.get("/clusters")).body.decode().splitlines()
            told = (await admin.get("/clusters?format=json")).json()["cluster_statuses"]
        address = upstream.base_url.removesuffix("/v1")
    assert "up::rq_success::1" in lines
    assert f"up::{address}::cx_total::1" in lines
    assert f"up::{address}::rq_active::0" in lines
    assert f"up::{address}::health::healthy" in lines
    assert f"up::{address}::weight::1" in lines
    assert "up::default_priority::max_requests::1024" in lines
    assert "spare::unconfigured::true" in lines
    up, spare = told
    assert (up["name"], up["hosts"][0]["stats"]["cx_active"]) == ("up", 1)
    assert (spare["unconfigured"], spare["removed"]) == (True, False)


async def test_clusters_and_metrics_show_which_keys_and_targets_rest() -> None:
    answers = iter([error_response(401, "no"), error_response(429, "busy", headers=[("retry-after", "40")])])
    async with FakeUpstream(lambda _: next(answers, error_response(500, "no"))) as upstream:
        config = config_for(upstream, auth=False)
        keys = [{"name": name, "key": name * 20} for name in "abc"]
        config["providers"]["up"] = {"base_url": upstream.base_url, "api_keys": keys}
        config["filters"] = [{"circuit_breaker": {"failures": 3, "open_for": "50s"}}]
        async with running_admin(config) as admin:
            for _ in range(5):
                await admin.gateway.post(b'{"model":"m","messages":[]}', key=None)
            lines = (await admin.get("/clusters")).body.decode().splitlines()
            [told] = (await admin.get("/clusters?format=json")).json()["cluster_statuses"]
            metrics = (await admin.get("/metrics")).body.decode()
    resting = [line.rpartition("::") for line in lines if "::resting_key::" in line]
    assert [line[0] for line in resting] == [
        "up::resting_key::a::*::refused",
        "up::resting_key::b::m::limited",
    ]
    refused, limited = told["resting_keys"]
    assert (refused["key"], refused["model"], refused["state"], refused["workers"]) == ("a", "", "refused", 1)
    assert 50 < refused["seconds"] <= 60
    assert 30 < limited["seconds"] <= 40
    [circuit] = told["circuits"]
    assert (circuit["filter"], circuit["model"], circuit["state"]) == ("circuit_breaker", "m", "open")
    assert 40 < circuit["seconds"] <= 50
    assert any(line.startswith("up::circuit::circuit_breaker::m::open::") for line in lines)
    assert 'headgate_upstream_keys_resting{provider="up"} 2.0' in metrics
    assert 'headgate_upstream_circuits_open{provider="up"} 1.0' in metrics


async def test_server_info_says_which_process_serves_what() -> None:
    async with running_admin() as admin:
        info = (await admin.get("/server_info")).json()
    assert (info["state"], info["pid"]) == ("LIVE", os.getpid())
    assert info["config_version"] == admin.gateway.half.config.digest
    assert info["uptime_seconds"] >= 0
    [worker] = info["workers"]
    assert (worker["worker"], worker["ready"], worker["config_version"]) == ("0", True, info["config_version"])


async def test_config_dump_shows_settings_and_chains_and_no_secret() -> None:
    config = config_with(
        auth=True,
        providers={**MOCK, "paid": {"base_url": "https://paid.example/v1", "api_key": PROVIDER_KEY}},
        routes=[{"name": "odd", "match": {"model": "odd"}, "provider": "mock", "filters": {"retry": "off"}}],
    )
    config["filters"] = [*config["filters"], "retry"]
    async with running_admin(config) as admin:
        answer = await admin.get("/config_dump", key="viewer")
    dump = answer.json()
    assert dump["version"] == admin.gateway.half.config.digest
    assert dump["config"]["providers"]["paid"]["api_key"] == "***"
    assert dump["config"]["limits"]["drain"] == "30s"
    assert [chain["route"] for chain in dump["chains"]] == ["odd", "default"]
    odd, default = dump["chains"]
    assert (odd["match"], odd["provider"], odd["filters"], odd["prefix"]) == (
        {"model": "odd"}, "mock", ["auth"], ["auth"],
    )  # fmt: skip
    assert (default["filters"], default["byte_path"], default["off_byte_path"]) == (["auth", "retry"], True, [])


async def test_config_dump_names_the_filters_that_take_streams_off_the_byte_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewriting_filter.py").write_text(EVENTS_FILTER)
    monkeypatch.syspath_prepend(tmp_path)
    filters = [{"use": "rewriting_filter:Rewriting", "name": "mine"}]
    async with running_admin(config_with(filters=filters)) as admin:
        [chain] = (await admin.get("/config_dump")).json()["chains"]
    assert (chain["byte_path"], chain["off_byte_path"]) == (False, ["mine"])


async def test_no_answer_holds_a_secret() -> None:
    """Canaries: keys of callers and of the provider, whole or in part, after good and failing requests."""
    async with FakeUpstream([json_response({"error": {"message": f"bad key {PROVIDER_KEY}"}}, 401)]) as upstream:
        config = {**config_for(upstream), "filters": config_with(auth=True)["filters"]}
        async with running_admin(config) as admin:
            for key in (*KEYS.values(), "sk-a-key-that-nobody-knows-1234"):
                await admin.gateway.post(key=key)
            bodies = [
                (await admin.ask(method, path, key=key)).raw
                for path in ("/", "/ready", "/metrics", "/stats", "/clusters", "/server_info", "/config_dump",
                             "/admin/usage", "/admin/usage?by=model", "/nothing", "/drain")
                for method in ("GET", "DELETE")
                for key in (None, "nobody", "app", "viewer", "admin")
            ]  # fmt: skip
    for secret in (*KEYS.values(), PROVIDER_KEY, "sk-a-key-that-nobody-knows-1234"):
        for at in range(len(secret) - 8):
            assert not any(secret[at : at + 9].encode() in body for body in bodies), secret[at : at + 9]


async def test_every_answer_keeps_browsers_from_storing_guessing_and_framing() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        for path in ("/", "/ready", "/metrics", "/nothing", "/config_dump", "/drain"):
            answer = await admin.get(path)
            assert answer.header("cache-control") == "no-store", path
            assert answer.header("x-content-type-options") == "nosniff", path
            assert answer.header("x-frame-options") == "DENY", path
            assert not [name for name, _ in answer.headers if name.startswith("access-control-")], path


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/drain", 405)])
async def test_errors_have_the_gateways_own_shape(method: str, path: str, status: int) -> None:
    async with running_admin() as admin:
        answer = await admin.ask(method, path)
    assert answer.status == status
    assert set(answer.error) == {"message", "type", "param", "code", "request_id"}
    assert answer.error["request_id"] == answer.header("x-request-id")
    assert (answer.header("allow") == "POST") == (status == 405)


async def test_a_bug_is_500_with_the_traceback_in_the_log_alone(capsys: pytest.CaptureFixture[str]) -> None:
    async with running_admin() as admin:

        def broken() -> list[dict[str, Any]]:
            raise RuntimeError("boom in chains")

        admin.view.chains = broken  # type: ignore[method-assign]
        answer = await admin.get("/config_dump")
        assert (await admin.get("/ready")).status == 200
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"boom" not in answer.raw
    assert "boom in chains" in capsys.readouterr().out


async def test_a_bug_in_mid_answer_cuts_the_connection() -> None:
    async with running_admin() as admin:
        app = admin_app(admin.view)
        for route in app.routes:
            if route.path == "/metrics":  # type: ignore[attr-defined]
                route.app = half_an_answer  # type: ignore[attr-defined]
        async with running_edge(EchoAcceptor(), app=app) as edge:
            answer = await edge.ask(request("GET", "/metrics"))
    assert (answer.status, answer.whole) == (200, False)


async def half_an_answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("broken in the middle")


async def test_the_app_takes_part_in_a_lifespan_where_it_is_mounted() -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async with running_admin() as admin:
        await admin_app(admin.view)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_metrics_count_reloads_and_say_that_the_gateway_drains() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        admin.control.stats.reloads_refused += 2
        await admin.ask("POST", "/drain", key="admin")
        lines = (await admin.get("/metrics")).body.decode().splitlines()
    assert 'headgate_config_reloads_total{result="refused"} 2.0' in lines
    assert "headgate_ready 0.0" in lines
    assert "headgate_ledger_up 1.0" in lines


async def test_without_a_ledger_there_are_no_metrics_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_admin() as admin:
        monkeypatch.setattr(type(admin.view), "tailer", None)
        answer = await admin.get("/metrics")
    assert answer.status == 200
    assert b"headgate_ledger" not in answer.body
