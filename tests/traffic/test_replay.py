"""Recorded traffic over real sockets: what a provider said is what the client gets, byte for byte.

Cuts over sockets are few, because test_cuts.py makes all of them without: at each boundary of one event of every kind,
one byte before it, one after, and once inside.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import LAST_CHUNK, chunk, response_head
from tests_support.gateway import CLIENT_KEY, bearer, config_for, gateway_over, running_gateway
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import (
    Row,
    chat_rows,
    data_of,
    error_events,
    events,
    finish_reasons,
    has_done,
    ids,
    without_ours,
)
from tests_support.upstream import FIN, RST, FakeUpstream, Sleep, Step

if TYPE_CHECKING:
    from tests_support.upstream import Request

pytestmark = pytest.mark.shared_data

ROWS = chat_rows()
STREAMS = [row for row in ROWS if row.stream]
AZURE = [row for row in ROWS if row.asked_at.startswith("/openai/deployments/")]
PASSED = {"x-request-id", "openai-processing-ms", "openai-version", "x-ratelimit-limit-requests", "retry-after"}


def script(row: Row) -> list[Step]:
    """The recorded answer, with its own fields and framing by chunks."""
    head = response_head(row.status, [*row.headers, ("transfer-encoding", "chunked")])
    if row.stream:
        return [head, *map(chunk, events(row.body)), LAST_CHUNK]
    return [head, chunk(row.body), LAST_CHUNK]


@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
async def test_an_answer_comes_down_byte_for_byte(row: Row, no_leaks: None) -> None:
    async with gateway_over(script(row), retry=False) as (gateway, upstream):
        answer = await gateway.post(row.sent)
        [record] = await gateway.rows(1)
    assert answer.status == row.status
    assert answer.whole
    assert without_ours(answer.body) == row.expected
    recorded = [field for field in row.headers if field[0] in PASSED]
    assert [field for field in answer.headers if field in recorded] == recorded
    sent, asked = json.loads(row.sent), upstream.requests[0].json()
    if not row.stream:
        assert upstream.requests[0].body == row.sent
    else:
        assert asked.pop("stream_options") == {**(sent.pop("stream_options", None) or {}), "include_usage": True}
    assert asked == sent
    failed = row.status >= 400 or bool(error_events(row.body)) or (not row.stream and "error" in json.loads(row.body))
    assert record.outcome == ("upstream_error" if failed else "ok")


@pytest.mark.parametrize("row", AZURE, ids=ids(AZURE))
async def test_so_it_does_at_the_path_of_azures_clients(row: Row) -> None:
    """The deployment is the model; what a provider of this dialect gets has no `api-version`."""
    deployment = row.asked_at.split("/")[3]
    async with gateway_over(script(row), retry=False) as (gateway, upstream):
        answer = await gateway.post(row.sent, target=row.asked_at)
        [record] = await gateway.rows(1)
    assert (answer.status, answer.whole) == (row.status, True)
    assert without_ours(answer.body) == row.expected
    sent, asked = json.loads(row.sent), upstream.requests[0].json()
    assert upstream.requests[0].target == CHAT
    if row.stream:
        assert asked.pop("stream_options") == {**(sent.pop("stream_options", None) or {}), "include_usage": True}
    assert asked == {**sent, "model": deployment}
    assert record.model == deployment


@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
async def test_its_usage_is_on_the_row(row: Row) -> None:
    """What the provider reported, found by a plain search here."""
    parsed = map(data_of, events(row.body)) if row.stream else [json.loads(row.body)]
    reported = [
        usage
        for data in parsed
        if isinstance(data, dict) and (usage := data.get("usage") or (data.get("x_groq") or {}).get("usage"))
    ]
    async with gateway_over(script(row), retry=False) as (gateway, _):
        await gateway.post(row.sent)
        [record] = await gateway.rows(1)
    if not reported:
        assert record.usage_source in ("estimated", "none")
        return
    usage = reported[-1]
    assert record.usage_source == "reported"
    assert record.prompt_tokens == usage["prompt_tokens"]
    # Gemini leaves its thinking out of `completion_tokens`, though not out of `total_tokens` and the bill.
    assert record.completion_tokens == max(usage["completion_tokens"], usage["total_tokens"] - usage["prompt_tokens"])


def _kind(one: bytes) -> str:
    data = data_of(one)
    if not isinstance(data, dict) or not data.get("choices"):
        return "done" if b"[DONE]" in one else "comment" if one.startswith(b":") else "bare"
    choice = data["choices"][0]
    said = [name for name, value in (choice.get("delta") or {}).items() if value]
    return ",".join([*said, "finish" if choice.get("finish_reason") else ""])


def _cuts(row: Row) -> list[int]:
    """Around and inside the first event of each kind."""
    cuts, at, seen = set(), 0, set()
    for one in events(row.body):
        if _kind(one) not in seen:
            seen.add(_kind(one))
            cuts |= {max(0, at - 1), at, at + 1, at + len(one) // 2, at + len(one) - 1, at + len(one)}
        at += len(one)
    return sorted(cut for cut in cuts if cut < len(row.body))


@pytest.mark.parametrize("end", [FIN, RST], ids=["fin", "rst"])
@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
async def test_a_stream_cut_over_a_socket_is_said_to_be_cut(row: Row, end: Step) -> None:
    """Faults §3.3: an answer, nothing made up, one attempt, one row, and the next request succeeds."""
    cuts = _cuts(row)

    def cut_at(asked: Request) -> list[Step]:
        at = int(asked.header("x-cut") or 0)
        head = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
        if at < 0:
            return script(row)
        pieces = [row.body[:at]] if at else []
        return [head, *map(chunk, pieces), Sleep(0.001), end]

    async with FakeUpstream(cut_at) as upstream, running_gateway(config_for(upstream)) as gateway:
        async with RawClient(gateway.port) as client:
            for at in cuts:
                await client.send(request("POST", CHAT, row.sent, [*bearer(CLIENT_KEY), ("x-cut", str(at))]))
                answer = await client.answer()
                assert answer.whole
                sent = row.body[:at]
                complete = b"".join(one for one in events(sent) if one.endswith(b"\n\n"))
                own_errors = len(error_events(complete))
                done = has_done(complete)
                if answer.status == 200:
                    assert len(error_events(answer.body)) == (own_errors if own_errors or done else 1)
                    assert has_done(answer.body) == done
                    assert finish_reasons(answer.body) == finish_reasons(complete)
                else:
                    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
            await client.send(request("POST", CHAT, row.sent, [*bearer(CLIENT_KEY), ("x-cut", "-1")]))
            assert without_ours((await client.answer()).body) == row.expected
        rows = await gateway.rows(len(cuts) + 1)
    assert len(upstream.requests) == len(cuts) + 1
    assert all(record.attempts == 1 for record in rows)
    assert {record.outcome for record in rows[:-1]} <= {"truncated", "failed", "upstream_error", "ok"}
