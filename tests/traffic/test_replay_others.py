"""Recorded traffic of the other endpoints over real sockets: what a provider said is what the client gets."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import LAST_CHUNK, chunk, response_head
from tests_support.gateway import gateway_over
from tests_support.traffic import RECORDED, Row, chat_rows, data_of, events, ids, other_rows, unread_rows, without_ours

if TYPE_CHECKING:
    from tests_support.upstream import Step

pytestmark = pytest.mark.shared_data

ROWS = other_rows()


def script(row: Row) -> list[Step]:
    """The recorded answer, with its own fields and framing by chunks."""
    head = response_head(row.status, [*row.headers, ("transfer-encoding", "chunked")])
    return [head, *map(chunk, events(row.body) if row.stream else [row.body]), LAST_CHUNK]


def reported(row: Row) -> tuple[int, int] | None:
    """Tokens in and out, found by a plain search."""
    if row.stream:
        *_, last = row.body.split(b'"usage":')
        usage = json.JSONDecoder().raw_decode(last.decode())[0]
    else:
        usage = json.loads(row.body).get("usage")
    if not usage:
        return None
    if "input_tokens" in usage:
        return usage["input_tokens"], usage["output_tokens"]
    return usage["prompt_tokens"], usage.get("completion_tokens", 0)


def test_the_recordings_hold_every_endpoint() -> None:
    assert {row.path for row in ROWS} == {"/v1/completions", "/v1/embeddings", "/v1/responses"}
    assert any(row.stream for row in ROWS)


def test_what_is_not_replayed_is_of_another_dialect() -> None:
    """Audio has a file of its own (test_replay_audio.py)."""
    for name, path in unread_rows():
        other = path or name.split("/")[1].split("__")[0]
        assert re.fullmatch(
            r"/v1/audio/.*|/v1/messages(/.*)?|/model/.*|/v1beta/models/.*|anthropic|cohere|google", other
        ), name
    assert len(ROWS) + len(chat_rows()) + len(unread_rows()) == len(RECORDED.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
async def test_an_answer_comes_down_byte_for_byte_and_is_metered(row: Row, no_leaks: None) -> None:
    async with gateway_over(script(row), retry=False) as (gateway, upstream):
        answer = await gateway.post(row.sent, target=row.path)
        [record] = await gateway.rows(1)
    assert (answer.status, answer.whole) == (row.status, True)
    assert without_ours(answer.body) == row.body
    assert upstream.requests[0].body == row.sent
    assert upstream.requests[0].target == row.path
    assert record.outcome == ("upstream_error" if row.status >= 400 else "ok")
    assert record.endpoint == row.path.removeprefix("/v1/")
    usage = reported(row)
    if usage is not None:
        assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (*usage, "reported")


@pytest.mark.parametrize("row", [row for row in ROWS if row.stream], ids=lambda row: row.provider)
async def test_our_comment_stands_behind_the_terminal_event(row: Row) -> None:
    async with gateway_over(script(row)) as (gateway, _):
        answer = await gateway.post(row.sent, target=row.path)
    *_, terminal, comment = events(answer.body)
    assert b"response.completed" in terminal
    assert comment.startswith(b": headgate {")
    assert data_of(comment) is None
