"""realtime: the model is read from the query and spliced there; usage is read from messages in whatever pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.realtime import HEAD_BYTES, MESSAGE_BYTES, RESPONSES, Realtime, RealtimeSession
from headgate.proxy.accounting.usage import Usage
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.errors import DownstreamError, GatewayError
from tests_support.websocket import USAGE, response_done

REALTIME = Realtime()
REPORTED = Usage(132, 121, 64, 0, 0, 13, 91)


def head(query: bytes, path: str = "/v1/realtime") -> RequestHead:
    """A session asked for by `query`."""
    return RequestHead("GET", path, [], query=query)


@pytest.mark.parametrize(
    ("query", "path", "model", "same", "other"),
    [
        (b"model=gpt-realtime", "/v1/realtime", "gpt-realtime", b"?model=gpt-realtime", b"?model=m%262"),
        (b"a=1&model=g%2D1&b", "/v1/realtime", "g-1", b"?a=1&model=g%2D1&b", b"?a=1&model=m%262&b"),
        (b"%6dodel=a+b", "/v1/realtime", "a b", b"?model=a+b", b"?model=m%262"),
        (b"&&model=%FF", "/v1/realtime", "\ufffd", b"?model=%FF", b"?model=m%262"),
        (b"api-version=1&model=x", "/v1/realtime", "x", b"?api-version=1&model=x", b"?api-version=1&model=m%262"),
        (b"api-version=1&deployment=x", "/openai/realtime", "x", b"?model=x", b"?model=m%262"),
        (b"api-key=sk-1&model=x", "/v1/realtime", "x", b"?model=x", b"?model=m%262"),
        (b"api%2Dkey=sk-1&deployment=x", "/openai/realtime", "x", b"?model=x", b"?model=m%262"),
        (b"intent=transcription", "/v1/realtime", "", b"?intent=transcription", b"?intent=transcription"),
        (b"call_id=rtc_1&model=", "/v1/realtime", "", b"?call_id=rtc_1", b"?call_id=rtc_1"),
    ],
)
def test_the_model_is_found_and_spliced(query: bytes, path: str, model: str, same: bytes, other: bytes) -> None:
    facts = REALTIME.read_head(head(query, path))
    assert facts.model == model
    assert REALTIME.session_target(facts, model) == b"/realtime" + same
    assert REALTIME.session_target(facts, "m&2") == b"/realtime" + other


@pytest.mark.parametrize(
    ("query", "path", "code"),
    [
        (b"", "/v1/realtime", "missing_model"),
        (b"model", "/v1/realtime", "missing_model"),
        (b"deployment=x", "/v1/realtime", "missing_model"),
        (b"model=x", "/openai/realtime", "missing_model"),
        (b"model=a&model=b", "/v1/realtime", "duplicate_field"),
        (b"model=a&mode%6C=b", "/v1/realtime", "duplicate_field"),
        (b"model=a&deployment=b", "/v1/realtime", "duplicate_field"),
        (b"intent=transcription&model=a&model=", "/v1/realtime", "duplicate_field"),
    ],
)
def test_a_query_that_names_no_one_model_is_refused(query: bytes, path: str, code: str) -> None:
    with pytest.raises(DownstreamError) as refused:
        REALTIME.read_head(head(query, path))
    assert refused.value.code == code


def test_a_session_has_no_body_and_no_stream() -> None:
    facts = REALTIME.read_head(head(b"model=m"))
    assert (facts.body, facts.stream, REALTIME.encode(facts, "x")) == (b"", False, b"")
    REALTIME.open_stream(facts)
    assert REALTIME.read_answer(b'{"usage": {"prompt_tokens": 1}}').usage is None
    assert b"oops" in REALTIME.error_event(GatewayError("oops"))
    for call in (lambda: REALTIME.read(b"", max_depth=1), lambda: REALTIME.target(b"")):
        with pytest.raises(NotImplementedError):
            call()


def told(*messages: Any, session: RealtimeSession | None = None, places: tuple[int, ...] = ()) -> list[Usage]:
    """What the reader reports of these messages, each cut at `places`, and at the end of the session."""
    session = session or RealtimeSession()
    for message in messages:
        data = b"__" + (message if isinstance(message, bytes) else json.dumps(message).encode()) + b"__"
        edges = [2, *sorted({2 + place % (len(data) - 3) for place in places}), len(data) - 2]
        for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007 - reads as what it is
            if start < end:
                session.piece(data, start, end)
        session.end()
    session.close()
    return session.reports


def delta(kind: str = "response.output_text.delta", response: Any = "resp_1", said: Any = "12345678") -> dict[str, Any]:
    """A piece of what a response says."""
    return {"event_id": "event_9", "type": kind, "response_id": response, "delta": said}


def test_the_usage_of_a_response_is_reported() -> None:
    assert told(response_done(), {"type": "session.created"}, response_done()) == [REPORTED, REPORTED]


KINDS = (
    "response.output_text.delta",
    "response.output_audio_transcript.delta",
    "response.function_call_arguments.delta",
    "response.text.delta",
    "response.audio_transcript.delta",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_said_and_never_reported_is_estimated(kind: str) -> None:
    said = [delta(kind), delta(kind), delta("response.output_audio.delta", said="AAAA" * 99)]
    assert told(*said) == [Usage(0, 4, source="estimated")]
    assert told(*said, response_done()) == [REPORTED]
    assert told(*said, response_done(None)) == [Usage(0, 4, source="estimated")]


def test_responses_are_told_apart() -> None:
    said = told(delta(), delta(response="resp_2"), response_done(response="resp_2"))
    assert said == [REPORTED, Usage(0, 2, source="estimated")]


def test_a_response_that_said_and_used_nothing_is_nothing() -> None:
    assert told(response_done(None), delta(said=""), delta(said=7)) == []


def test_the_responses_that_are_remembered_are_bounded() -> None:
    assert len(told(*(delta(response=f"resp_{n}") for n in range(RESPONSES + 9)))) == RESPONSES


TRANSCRIBED = {
    "type": "conversation.item.input_audio_transcription.completed",
    "usage": {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 45},
}


def test_a_transcription_counts_where_the_session_is_for_nothing_else() -> None:
    facts = REALTIME.read_head(head(b"intent=transcription"))
    session = REALTIME.open_session(facts)
    assert told(TRANSCRIBED, session=session) == [Usage(14, 45, 0, 0, 0, 14, 0)]
    by_time = {**TRANSCRIBED, "usage": {"type": "duration", "seconds": 3}}
    assert told(by_time, session=REALTIME.open_session(facts)) == [Usage(audio_seconds=3)]
    assert told(TRANSCRIBED) == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"not json",
        b"[]",
        b'{"type": 7}',
        b'{"type": "response.done"}',
        b'{"type": "response.done", "response": "r"}',
        b'{"type": "response.done", "response": {"usage": {"input_tokens": -1}}}',
        b'{"type": "response.done", "response": {"id": ["x"], "usage": null}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_says_nothing(message: bytes) -> None:
    assert told(message) == []


@pytest.mark.parametrize("before", [b"", b'"event_id": "e",', b'"response_id": "r", "x": {"type": "error"},'])
def test_the_type_may_stand_anywhere(before: bytes) -> None:
    usage = json.dumps(USAGE).encode()
    assert told(b'  {%b "type" : "response.done", "response": {"usage": %b}}' % (before, usage)) == [REPORTED]


def test_a_message_that_is_too_large_is_not_kept_and_what_its_response_said_is_estimated() -> None:
    session = RealtimeSession()
    large = response_done()
    large["response"]["output"] = "x" * MESSAGE_BYTES
    assert told(delta(), large, session=session) == [Usage(0, 2, source="estimated")]
    assert told(delta(), large, session=RealtimeSession(), places=(10, 300, 5000)) == [Usage(0, 2, source="estimated")]
    assert told(b'{"x": "%b", "type": "response.done"}' % (b"x" * MESSAGE_BYTES)) == []


def test_audio_is_not_kept() -> None:
    session = RealtimeSession()
    audio = json.dumps(delta("response.output_audio.delta", said="A" * 4 * HEAD_BYTES)).encode()
    for at in range(0, len(audio), 64):
        session.piece(audio, at, min(len(audio), at + 64))
    assert len(session._held) == 0


@given(
    messages=st.lists(
        st.one_of(
            st.sampled_from([response_done(), response_done(None), delta(), delta(response="resp_2"), TRANSCRIBED]),
            st.just({"event_id": "e" * 600, **response_done()}),
            st.just({"padding": "p" * 700, **response_done()}),
            st.binary(max_size=40),
        ),
        max_size=5,
    ),
    places=st.lists(st.integers(0, 2000), max_size=12),
)
def test_any_split_tells_the_same(messages: list[Any], places: list[int]) -> None:
    assert told(*messages, places=tuple(places)) == told(*messages)
