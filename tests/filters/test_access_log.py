"""access_log: one line for each exchange with what the usage row has, and nothing a line must not have."""

from __future__ import annotations

import gc
import json
import os
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
from openai import AsyncOpenAI

from headgate.config import AccessLogConfig, ConfigError, parse_config
from headgate.config.access_log import DEFAULT_FIELDS, EVERY_FIELD
from headgate.filters.access_log import _FROM_RECORD, _READERS, AccessLog
from headgate.proxy.filter import Filter
from tests_support.answers import USAGE, chat_chunks, chat_completion, error_response, json_response, sse
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, RunningGateway, config_for, gateway_over, running_gateway
from tests_support.process import gateway_process
from tests_support.upstream import RST, FakeUpstream, Request, Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headgate.proxy.accounting.record import Done
    from headgate.proxy.exchange import Exchange

FROM_RECORD = tuple(name for name in EVERY_FIELD if name in _FROM_RECORD)
PROMPT = "hx-prompt-9Kd2"


def provider(asked: Request) -> Sequence[Step]:
    body = asked.json()
    if body["model"] == "broken":
        return [RST]
    if body["model"] == "bad":
        return [error_response(400, "no", code="bad")]
    if body.get("stream"):
        return sse(chat_chunks(usage=USAGE), headers=[("x-request-id", "req_up")])
    return [json_response(chat_completion("hx-answer-3Lp8"), headers=[("x-request-id", "req_up")])]


def link_of(gateway: RunningGateway) -> AccessLog:
    [link] = [one for one in gateway.half.engine.graph.default.chain.filters if isinstance(one, AccessLog)]
    return link


def lines_of(gateway: RunningGateway, file: Path) -> list[dict[str, Any]]:
    """Every line, after the filter has written what waited."""
    link_of(gateway).close()
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def link(config: AccessLogConfig, **options: Any) -> AccessLog:
    return AccessLog(config, now=lambda: 0.0, **options)


def without_an_answer() -> Exchange:
    """As much of one as is looked at."""
    return cast("Exchange", SimpleNamespace(status=200, attempt=None, usage=None))


class BothWays(Filter):
    """What is made of every record, and of its exchange: the whole of what a record has."""

    reads_body = False
    lines: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]] = []

    def on_record(self, ex: Exchange, record: Done | None) -> None:
        assert record is not None
        made = AccessLog(AccessLogConfig(fields=FROM_RECORD), now=lambda: ex.started + record.duration_ms / 1000)
        taken: list[bytes] = []
        made._writer.put = lambda line: not taken.append(line)  # type: ignore[method-assign,func-returns-value]
        made.on_record(ex, record)
        made.on_record(ex, None)
        of_record, of_exchange = [json.loads(line) for line in taken]
        self.lines.append((of_record, of_exchange))


def test_every_field_has_a_reader_and_the_default_leaves_out_what_names_a_person() -> None:
    assert set(_READERS) == set(EVERY_FIELD)
    assert set(EVERY_FIELD) - set(DEFAULT_FIELDS) == {"client.address", "user_agent.original", "process.pid"}


async def test_a_line_has_what_the_row_has(tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with FakeUpstream(provider) as upstream:
        config = config_for(upstream, price_as="openai")
        config["filters"].insert(1, {"access_log": {"path": str(file), "fields": list(EVERY_FIELD)}})
        async with (
            running_gateway(config) as gateway,
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            messages: Any = [{"role": "user", "content": PROMPT}]
            await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
            async for _ in await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True):
                pass
            whole_row, stream_row = await gateway.rows(2)
            whole, stream = lines_of(gateway, file)
            assert (link_of(gateway).logged, link_of(gateway).dropped, link_of(gateway).lost) == (2, 0, 0)
    for line, row in ((whole, whole_row), (stream, stream_row)):
        assert line["headgate.request_id"] == row.id
        assert line["http.response.status_code"] == row.status == 200
        assert (line["http.request.method"], line["url.path"]) == ("POST", "/v1/chat/completions")
        assert (line["http.request.body.size"], line["http.response.body.size"]) == (row.bytes_in, row.bytes_out)
        assert (line["headgate.key"], line["headgate.outcome"], line["headgate.route"]) == ("app", "ok", "default")
        assert (line["gen_ai.request.model"], line["gen_ai.response.model"]) == (row.model, row.upstream_model)
        assert (line["gen_ai.provider.name"], line["gen_ai.operation.name"]) == ("up", row.endpoint)
        assert line["gen_ai.usage.input_tokens"] == row.prompt_tokens == 9
        assert line["gen_ai.usage.output_tokens"] == row.completion_tokens == 12
        assert (line["headgate.cost_usd"], line["headgate.cost_source"]) == (row.cost_usd, row.cost_source)
        assert (line["headgate.usage_source"], line["headgate.attempts"]) == (row.usage_source, 1)
        assert (line["headgate.upstream_request_id"], line["headgate.config"]) == ("req_up", row.config)
        assert (line["client.address"], line["process.pid"]) == ("127.0.0.1", os.getpid())
        assert line["user_agent.original"].startswith("AsyncOpenAI/Python")
        assert line["start_time"].endswith("Z")
        assert 0 <= line["headgate.overhead_ms"] <= line["headgate.duration_ms"]
    assert (whole["headgate.stream"], "headgate.first_token_ms" in whole) == (False, False)
    assert (stream["headgate.stream"], stream["headgate.first_token_ms"] > 0) == (True, True)


async def test_a_record_and_its_exchange_make_the_same_line() -> None:
    BothWays.lines.clear()
    link = {"use": f"{__name__}:BothWays", "name": "both"}
    auth = {"auth": {"keys": [{"name": "app", "key": CLIENT_KEY, "team": "search", "owner": "ada"}]}}
    bodies = (b'{"model":"m"}', b'{"model":"m","stream":true}', b'{"model":"bad"}', b'{"model":"broken"}', b"{")
    async with gateway_over(provider, changes={"filters": [auth, link]}) as (gateway, _):
        for number, body in enumerate(bodies):
            await gateway.post(body, headers=[("x-request-id", f"client-{number}")] * (number % 2))
    assert len(BothWays.lines) == len(bodies)
    for of_record, of_exchange in BothWays.lines:
        if "headgate.overhead_ms" in of_record:
            own, of_own = (line.pop("headgate.overhead_ms") for line in (of_record, of_exchange))
            assert own == pytest.approx(of_own, abs=0.0011), "the time of the row is rounded to microseconds"
        assert of_record == of_exchange


async def test_whatever_way_an_exchange_went_its_line_has_the_same_fields(tmp_path: Path) -> None:
    lines: dict[bool, list[dict[str, Any]]] = {}
    for simple in (True, False):  # what the user agent is takes the general way
        file = tmp_path / f"{simple}"
        fields = [
            "headgate.attempts",
            *(() if simple else ("user_agent.original",)),
            "url.path",
            "gen_ai.provider.name",
        ]
        settings = {"path": str(file), "fields": [*fields, "client.address", "gen_ai.usage.output_tokens"]}
        async with gateway_over(provider, auth=False, changes={"filters": [{"access_log": settings}]}) as (gateway, _):
            for body in (b'{"model":"m"}', b"{", b'{"model":"m","stream":true}', b'{"model":"bad"}'):
                await gateway.post(body, key=None)
            lines[simple] = lines_of(gateway, file)
            assert link_of(gateway)._simple is simple
            assert link_of(gateway).logged == 4
    assert lines[True] == lines[False]
    assert [list(line) for line in lines[True][:2]] == [
        ["headgate.attempts", "url.path", "gen_ai.provider.name", "client.address", "gen_ai.usage.output_tokens"],
        ["headgate.attempts", "url.path", "client.address"],
    ]


async def test_a_failure_says_what_failed_and_no_line_has_a_secret_or_a_text(tmp_path: Path) -> None:
    file = tmp_path / "log"
    body = '{"model":"%s","messages":[{"role":"user","content":"' + PROMPT + '"}]}'
    async with FakeUpstream(provider) as upstream:
        config = config_for(upstream, retry=False)
        config["filters"].insert(1, {"access_log": {"path": str(file), "fields": list(EVERY_FIELD)}})
        async with running_gateway(config) as gateway:
            for model in ("broken", "bad", "fine"):
                await gateway.post((body % model).encode(), target="/v1/chat/completions?key=hx-query-5Tn1")
            await gateway.post(b"{")
            assert (await gateway.post(key="hx-wrong-key-7Bv4nM2k")).status == 401
            lines = lines_of(gateway, file)
    assert [(line["http.response.status_code"], line.get("error.type")) for line in lines] == [
        (502, "upstream_error"),
        (400, None),
        (200, None),
        (400, "invalid_json"),
    ]
    text = file.read_text()
    for secret in (CLIENT_KEY, PROVIDER_KEY, PROMPT, "hx-answer", "hx-query", "hx-wrong"):
        assert secret not in text


async def test_only_the_chosen_fields_in_their_order_from_a_status_on(tmp_path: Path) -> None:
    file = tmp_path / "log"
    settings = {"path": str(file), "fields": ["http.response.status_code", "headgate.key"], "min_status": 400}
    async with gateway_over(provider, auth=False, changes={"filters": [{"access_log": settings}]}) as (gateway, _):
        await gateway.post(key=None)
        await gateway.post(b"{", key=None)
        lines_of(gateway, file)
    assert file.read_bytes() == b'{"http.response.status_code":400,"headgate.key":"-"}\n'


async def test_what_a_client_writes_stays_within_its_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    settings = {"path": str(file), "fields": ["gen_ai.request.model", "user_agent.original", "url.path"]}
    async with gateway_over(provider, auth=False, changes={"filters": [{"access_log": settings}]}) as (gateway, _):
        headers = [("user-agent", "a\xe9\x85\x9b2J" + "x" * 5000)]
        await gateway.post(headers=headers, key=None)
        [line] = lines_of(gateway, file)
    assert len(file.read_text().splitlines()) == 1
    assert not {"\x9b", "\x85"} & set(file.read_text())
    assert len(line["user_agent.original"]) < 2100


def test_a_sample_is_as_large_as_it_says() -> None:
    made = link(AccessLogConfig(sample_percent=10, fields=("http.response.status_code",)), rng=Random(1))
    lines: list[object] = []
    made._writer.put = lambda line: not lines.append(line)  # type: ignore[method-assign,func-returns-value]
    ex = without_an_answer()
    for _ in range(5000):
        made.on_record(ex, None)
    assert 400 < len(lines) == made.logged < 600


def test_a_full_queue_is_counted_and_hurts_nobody() -> None:
    made = link(AccessLogConfig(fields=("http.response.status_code",)))
    made.close()
    made.on_record(without_an_answer(), None)
    assert (made.logged, made.dropped) == (0, 1)


def test_a_filter_that_is_let_go_of_has_written_everything(tmp_path: Path) -> None:
    file = tmp_path / "log"
    made = link(AccessLogConfig(path=file, fields=("http.response.status_code",)))
    ex = without_an_answer()
    for _ in range(300):
        made.on_record(ex, None)
    thread = made._writer._thread
    assert thread is not None
    del made
    gc.collect()
    thread.join(15)
    assert file.read_bytes() == b'{"http.response.status_code":200}\n' * 300


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{path: /nowhere/at/all}", "a file in a folder that exists"),
        ("{path: /tmp}", "a file in a folder that exists"),
        ("{fields: []}", "must name fields, each once"),
        ("{fields: [url.path, url.path]}", "must name fields, each once"),
        ("{fields: [prompt]}", "fields[0]"),
        ("{sample_percent: 101}", "sample_percent"),
        ("{min_status: 600}", "min_status"),
        ("{queue: 0}", "queue"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"filters: [{{access_log: {settings}}}]", env={})
    assert said in str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
async def test_at_the_end_of_the_command_every_worker_has_written_its_lines(workers: int, tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with FakeUpstream(provider) as upstream:
        config = {**config_for(upstream, retry=False), "workers": workers}
        config["filters"].insert(1, {"access_log": {"path": str(file), "fields": ["headgate.request_id"]}})
        async with gateway_process(config) as gateway:
            ids = [(await gateway.post()).header("x-headgate-request-id") for _ in range(20)]
    assert sorted(json.loads(line)["headgate.request_id"] for line in file.read_bytes().splitlines()) == sorted(
        filter(None, ids)
    )


async def test_without_a_path_lines_go_to_standard_output() -> None:
    async with FakeUpstream(provider) as upstream:
        config = config_for(upstream, retry=False)
        config["filters"].insert(1, {"access_log": {"fields": ["http.response.status_code"]}})
        async with gateway_process(config) as gateway:
            await gateway.post()
            stdout = gateway.process.stdout
            assert stdout is not None
            assert await stdout.readuntil(b"}\n") == b'{"http.response.status_code":200}\n'
