"""Streams: bytes pass as they come, the terminal is the provider's own, and a cut is never passed off as an end."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.gateway import CLIENT_KEY, bearer, gateway_over, gateway_over_two
from tests_support.raw import CHAT, Answer, RawClient, request
from tests_support.traffic import error_events, events, finish_reasons, has_done, without_ours
from tests_support.upstream import FIN, RST, STALL, Pause, Repeat, Sleep, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.proxy.accounting.record import Done

ASKS = b'{"model":"gpt-4o-mini","stream":true,"stream_options":{"include_usage":true}}'
DOES_NOT_ASK = b'{"model":"gpt-4o-mini","stream":true}'
HEAD = response_head(200, [("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")])
TEXT = [event(one) for one in chat_chunks(done=False)]
"""Role, three pieces of text, finish: no `[DONE]`."""


def framed(*pieces: bytes, end: Sequence[Step] = (LAST_CHUNK,)) -> list[Step]:
    """A stream of these chunks, ended so."""
    return [HEAD, *(chunk(piece) for piece in pieces), *end]


async def streamed(
    *script: Step, body: bytes = ASKS, headers: Sequence[tuple[str, str]] = (), retry: bool = False
) -> tuple[Answer, Done]:
    async with gateway_over(script, retry=retry) as (gateway, _):
        answer = await gateway.post(body, headers)
        [row] = await gateway.rows(1)
    return answer, row


async def test_the_head_of_a_stream_is_what_clients_expect() -> None:
    """Wire 20."""
    answer, _ = await streamed(*framed(*TEXT, DONE))
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("content-length") is None
    assert answer.header("transfer-encoding") == "chunked"
    assert answer.header("content-encoding") is None
    assert "no-cache" in (answer.header("cache-control") or "")


async def test_each_event_is_down_before_the_next_one_exists() -> None:
    """Wire 20."""
    pauses = [Pause() for _ in TEXT]
    steps: list[Step] = [HEAD]
    for one, pause in zip(TEXT, pauses, strict=True):
        steps += [chunk(one), pause]
    async with gateway_over([*steps, chunk(DONE), LAST_CHUNK]) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, ASKS, bearer(CLIENT_KEY)))
        pauses[0].go()  # a role alone commits nothing
        await client.head()
        got = b""
        for n, pause in enumerate(pauses[1:], 2):
            while got != b"".join(TEXT[:n]):
                got += await client.piece()
            pause.go()
        assert (await client.rest()).whole


async def test_usage_is_asked_for_and_hidden_from_who_did_not_ask() -> None:
    """Wire 11, 22."""
    script = framed(*TEXT, event(chat_chunk(None, usage=USAGE)), DONE)
    answer, row = await streamed(*script, body=DOES_NOT_ASK)
    assert without_ours(answer.body) == b"".join(TEXT) + DONE
    assert (row.prompt_tokens, row.completion_tokens, row.usage_source) == (9, 12, "reported")


async def test_usage_comes_down_to_who_asked() -> None:
    """Wire 22."""
    usage = event(chat_chunk(None, usage=USAGE))
    answer, row = await streamed(*framed(*TEXT, usage, DONE), body=ASKS)
    assert without_ours(answer.body) == b"".join(TEXT) + usage + DONE
    assert (row.prompt_tokens, row.completion_tokens) == (9, 12)


async def test_usage_inside_a_chunk_with_choices_is_never_hidden() -> None:
    """Wire 22: only the extra event goes; Mistral reports on its last chunk."""
    last = event(chat_chunk({}, finish_reason="stop", usage=USAGE))
    answer, row = await streamed(*framed(TEXT[0], TEXT[1], last, DONE), body=DOES_NOT_ASK)
    assert without_ours(answer.body) == TEXT[0] + TEXT[1] + last + DONE
    assert row.prompt_tokens == 9


async def test_a_first_chunk_without_choices_passes() -> None:
    """Wire 27: Azure's prompt filter results."""
    first = event({"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": []})
    answer, _ = await streamed(*framed(first, *TEXT, DONE), body=DOES_NOT_ASK)
    assert without_ours(answer.body) == first + b"".join(TEXT) + DONE


async def test_done_comes_once_and_nothing_after_it() -> None:
    """Wire 21."""
    answer, row = await streamed(*framed(*TEXT, DONE, DONE, event(chat_chunk({"content": "more"})), b": late\n\n"))
    assert without_ours(answer.body) == b"".join(TEXT) + DONE
    assert row.outcome == "ok"


@pytest.mark.parametrize("done", [b"data: [DONE] \n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
async def test_any_spelling_of_done_is_the_end_and_passes_as_it_is(done: bytes) -> None:
    """Design §4."""
    answer, row = await streamed(*framed(*TEXT, done, end=[FIN]))
    assert without_ours(answer.body) == b"".join(TEXT) + done
    assert (row.outcome, answer.whole) == ("ok", True)


async def test_a_connection_is_reused_after_a_stream() -> None:
    """Wire 40."""
    async with gateway_over(framed(*TEXT, DONE)) as (gateway, upstream):
        for _ in range(3):
            assert (await gateway.post(ASKS)).whole
        assert len(upstream.connections) == 1


@pytest.mark.parametrize("done", [True, False])
async def test_a_clean_end_with_every_finish_passes_unchanged_without_done(done: bool) -> None:
    """Design §4: nothing is added."""
    pieces = [*TEXT, DONE] if done else TEXT
    answer, row = await streamed(*framed(*pieces))
    assert without_ours(answer.body) == b"".join(pieces)
    assert (row.outcome, answer.whole) == ("ok", True)


CUTS: dict[str, list[Step]] = {
    "clean end without a finish": framed(*TEXT[:3]),
    "clean end, one choice of two unfinished": framed(
        *TEXT, event({**chat_chunk(None), "choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": None}]})
    ),
    "FIN without a finish": framed(*TEXT[:3], end=[FIN]),
    "FIN after the finish, before the last chunk": framed(*TEXT, end=[FIN]),
    "RST": framed(*TEXT[:3], end=[Sleep(0.02), RST]),
    "FIN in mid-event": framed(*TEXT[:3], TEXT[3][:20], end=[FIN]),
    "FIN in mid-chunk": framed(*TEXT[:3], end=[b"ff\r\ndata: {", FIN]),
    "a bad chunk": framed(*TEXT[:3], end=[b"zz\r\n", FIN]),
    "the connection's end is the body's end": [
        response_head(200, [("content-type", "text/event-stream"), ("connection", "close")]),
        *TEXT,
        FIN,
    ],
    "content-length not reached": [
        response_head(200, [("content-type", "text/event-stream"), ("content-length", "99999")]),
        *TEXT,
        FIN,
    ],
}


@pytest.mark.parametrize("how", CUTS)
async def test_any_other_end_is_one_error_event_and_a_truncated_row(how: str) -> None:
    """Wire 32, design §4, faults G12."""
    answer, row = await streamed(*CUTS[how])
    assert (answer.status, row.outcome, row.status) == (200, "truncated", 200)
    [error] = error_events(answer.body)
    assert {"message", "type", "param", "code"} <= set(error)
    assert events(answer.body)[-1].startswith(b"data: ")
    assert not has_done(answer.body)
    sent = b"".join(step for step in CUTS[how] if isinstance(step, bytes))
    assert len(finish_reasons(answer.body)) == sent.count(b'"finish_reason":"stop"')
    assert answer.whole


async def test_a_stream_that_falls_silent_ends_with_an_error_event() -> None:
    """Wire 18, 32."""
    script = framed(*TEXT[:3], end=[STALL])
    async with gateway_over(script, timeouts={"idle": "300ms"}) as (gateway, upstream):
        answer = await gateway.post(ASKS)
        [row] = await gateway.rows(1)
        await upstream.wait_closed()
    [error] = error_events(answer.body)
    assert (error["code"], row.outcome, row.error_code) == ("upstream_timeout", "truncated", "upstream_timeout")


async def test_comments_alone_are_no_progress_towards_a_first_token() -> None:
    """Faults §3.3, "10 min of comments"."""
    script: list[Step] = [HEAD]
    for _ in range(100):
        script += [chunk(b": wait\n\n"), Sleep(0.05)]
    async with gateway_over(script, timeouts={"first_token": "400ms"}, retry=False) as (gateway, _):
        answer = await gateway.post(ASKS)
        [row] = await gateway.rows(1)
    assert (answer.status, row.outcome) == (504, "failed")


@pytest.mark.parametrize("kind", [b"", b"event: error\n"])
async def test_a_providers_own_error_event_passes_and_nothing_is_added(kind: bytes) -> None:
    """Design §4; Groq in wire 31."""
    error = kind + event({"error": {"message": "tool_use_failed", "type": "t", "code": "c", "param": None}})
    answer, row = await streamed(*framed(*TEXT[:3], error))
    assert without_ours(answer.body) == b"".join(TEXT[:3]) + error
    assert (row.outcome, answer.whole) == ("upstream_error", True)


@pytest.mark.parametrize("end", [FIN, RST])
async def test_and_how_the_provider_ends_after_its_error_does_not_matter(end: Step) -> None:
    """Design §4."""
    error = event({"error": {"message": "overloaded"}})
    answer, row = await streamed(*framed(*TEXT[:3], error, end=[Sleep(0.02), end]))
    assert without_ours(answer.body) == b"".join(TEXT[:3]) + error
    assert row.outcome == "upstream_error"


HELD: dict[str, list[Step]] = {
    "an error event first": framed(event({"error": {"message": "overloaded", "code": 529}}), DONE),
    "an error after the role": framed(TEXT[0], event({"error": {"message": "overloaded"}})),
    "a role, then FIN": framed(TEXT[0], end=[FIN]),
    "comments, then RST": framed(b": wait\n\n", end=[Sleep(0.02), RST]),
    "a clean end with nothing said": framed(),
    "half an event of content": framed(TEXT[0], TEXT[1][:-1], end=[FIN]),
}


@pytest.mark.parametrize("how", HELD)
async def test_before_the_first_content_another_provider_answers(how: str) -> None:
    """Wire 33, design §3."""
    async with gateway_over_two(HELD[how], framed(*TEXT, DONE)) as (gateway, up, up2):
        answer = await gateway.post(ASKS)
        [row] = await gateway.rows(1)
    assert without_ours(answer.body) == b"".join(TEXT) + DONE
    assert (len(up.requests), len(up2.requests)) == (1, 1)
    assert (row.outcome, row.attempts, row.provider) == ("ok", 2, "up2")
    assert answer.header("x-headgate-attempts") == "2"


async def test_after_the_first_content_nobody_else_is_asked() -> None:
    """Faults G13."""
    async with gateway_over_two(framed(*TEXT[:2], end=[FIN]), framed(*TEXT, DONE)) as (gateway, up, up2):
        answer = await gateway.post(ASKS)
        [row] = await gateway.rows(1)
    assert len(error_events(answer.body)) == 1
    assert (len(up.requests), len(up2.requests), row.attempts) == (1, 0, 1)


async def test_what_is_held_goes_down_after_two_seconds() -> None:
    """Design §3."""
    script = framed(TEXT[0], end=[Sleep(2.6), *map(chunk, [*TEXT[1:], DONE]), LAST_CHUNK])
    async with gateway_over(script) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, ASKS, bearer(CLIENT_KEY)))
        await client.head()
        assert await client.piece() == TEXT[0]
        while await client.piece():
            pass


async def test_our_comment_stands_between_usage_and_done_and_tells_the_truth() -> None:
    """Design §5."""
    usage = event(chat_chunk(None, usage=USAGE))
    answer, row = await streamed(*framed(*TEXT, usage, DONE))
    [at] = [n for n, one in enumerate(events(answer.body)) if one.startswith(b": headgate ")]
    assert events(answer.body)[at - 1 : at + 2 : 2] == [usage, DONE]
    told = json.loads(events(answer.body)[at].removeprefix(b": headgate "))
    assert told["cost_usd"] == pytest.approx(9 * 0.15e-6 + 12 * 0.6e-6)
    assert told["cost_usd"] == pytest.approx(row.cost_usd)
    assert told["ttft_ms"] >= 0


async def test_a_stream_carries_an_estimate_of_its_cost_at_its_head() -> None:
    """Design §5."""
    answer, _ = await streamed(*framed(*TEXT, DONE), body=ASKS[:-1] + b',"max_tokens":100}')
    assert 0 < float(answer.header("x-headgate-cost-estimate-usd") or 0) < 0.001
    assert answer.header("x-headgate-cost-usd") is None


@pytest.mark.parametrize("value", ["off", "OFF"])
async def test_our_comment_can_be_switched_off(value: str) -> None:
    """Design §5."""
    answer, _ = await streamed(*framed(*TEXT, DONE), headers=[("x-headgate-stream-metadata", value)])
    assert answer.body == b"".join(TEXT) + DONE


async def test_our_comment_is_left_out_when_the_provider_numbers_its_events() -> None:
    """Design §5; the matrix: `id:` once and a later comment break openai-python."""
    first = b"id: 1\n" + TEXT[0]
    answer, _ = await streamed(*framed(first, *TEXT[1:], DONE))
    assert answer.body == first + b"".join(TEXT[1:]) + DONE


ODD: dict[str, bytes] = {
    "comment": b": OPENROUTER PROCESSING\n\n",
    "bare comment line": b":\n",
    "CRLF": TEXT[2].replace(b"\n", b"\r\n"),
    "CR": TEXT[2].replace(b"\n", b"\r"),
    "no space after data:": TEXT[2].replace(b"data: ", b"data:"),
    "several data lines": b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"x"}}]}\n\n',
    "event: message": b"event: message\n" + TEXT[2],
    "event: thread.x": b"event: thread.run\n" + TEXT[2],
    "empty delta": event(chat_chunk({})),
    "line separators in text": event(chat_chunk({"content": "a\u2028b\u2029c\u0085d"})),
    "heartbeat: empty data": b"data:\n\n",
    "heartbeat: event without data": b"event: ping\n\n",
    "heartbeat: retry": b"retry: 1000\n\n",
    "id": b"id: 1\n\n",
    "error: null": event({**chat_chunk({"content": "x"}), "error": None}),
    "unknown fields": b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"obfuscation":"aB","x":{"id":1.0}}\n\n',
    "not JSON": b"data: this is not JSON\n\n",
    "not an object": b"data: 7\n\n",
    "odd types": b'data: {"choices":{"0":1},"usage":7}\n\n',
    "NUL": b'data: {"choices":[{"index":0,"delta":{"content":"\\u0000\x00"}}]}\n\n',
    "bad UTF-8": b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n',
    "big": event(chat_chunk({"content": "y" * 100_000})),
    "bigger than what is looked into": event(chat_chunk({"content": "z" * 1_000_000})),
}


@pytest.mark.parametrize("what", ODD)
async def test_what_the_provider_sends_passes_unchanged(what: str) -> None:
    """Wire 28-31 and the matrix under 36: the gateway adds no heartbeat and repairs none."""
    answer, row = await streamed(*framed(*TEXT[:3], ODD[what], *TEXT[3:], DONE))
    assert without_ours(answer.body) == b"".join(TEXT[:3]) + ODD[what] + b"".join(TEXT[3:]) + DONE
    assert row.outcome == "ok"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
async def test_a_byte_order_mark_passes_and_changes_nothing(ending: str) -> None:
    """Wire matrix."""
    body = b"\xef\xbb\xbf" + b"".join([*TEXT, DONE]).replace(b"\n", ending.encode())
    answer, row = await streamed(*framed(body))
    assert without_ours(answer.body) == body
    assert row.outcome == "ok"


async def test_a_last_event_without_its_blank_line_counts_at_a_clean_end() -> None:
    """Design §4."""
    answer, row = await streamed(*framed(*TEXT, DONE[:-2]))
    assert without_ours(answer.body) == b"".join(TEXT) + DONE[:-2]
    assert row.outcome == "ok"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_segments_may_cut_anywhere(size: int) -> None:
    """Wire 30."""
    text = [*TEXT[:2], event(chat_chunk({"content": "é漢😀\u2028"})).replace(b"\n", b"\r\n"), *TEXT[2:], DONE]
    raw = b"".join(framed(*text))  # type: ignore[arg-type]  # no other steps
    answer, row = await streamed(*(raw[at : at + size] for at in range(0, len(raw), size)))
    assert without_ours(answer.body) == b"".join(text)
    assert row.outcome == "ok"


async def test_a_slow_reader_holds_the_provider_back() -> None:
    """Wire 36, faults L5."""
    big = chunk(event(chat_chunk({"content": "x" * 16_000})))
    script = framed(*TEXT[:2], end=[Repeat(big, 4_000), chunk(TEXT[-1]), chunk(DONE), LAST_CHUNK])
    async with gateway_over(script) as (gateway, upstream), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, ASKS, bearer(CLIENT_KEY)))
        await client.head()
        client.pause()
        previous = -1
        while (now := upstream.connections[0].written) != previous:
            previous = now
            await asyncio.sleep(0.3)
        assert now < 30_000_000
        client.unpause()
        body = (await client.rest()).body
    assert body.count(b"xxxxxxxx" * 2000) == 4_000
    assert has_done(body[-4000:])


async def test_an_answer_that_is_no_stream_although_one_was_asked_passes() -> None:
    """Wire 12."""
    answer, row = await streamed(json_response(chat_completion()))
    assert answer.json() == chat_completion()
    assert (row.outcome, row.prompt_tokens) == ("ok", 9)


async def test_a_stream_nobody_asked_for_passes() -> None:
    """Wire 12."""
    answer, row = await streamed(*framed(*TEXT, DONE), body=b'{"model":"m"}')
    assert without_ours(answer.body) == b"".join(TEXT) + DONE
    assert row.outcome == "ok"


async def test_an_encoded_stream_passes_encoded() -> None:
    """Design §10: asked for identity, a provider may encode all the same."""
    body = gzip.compress(b"".join([*TEXT, DONE]))
    head = response_head(
        200, [("content-type", "text/event-stream"), ("content-encoding", "gzip"), ("content-length", str(len(body)))]
    )
    answer, _ = await streamed(head + body)
    assert (answer.body, answer.header("content-encoding"), answer.whole) == (body, "gzip", True)
