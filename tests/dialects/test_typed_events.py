"""typed_events: a stream is whole from its terminal event on, and never before; nothing of it is changed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.sse import MAX_TAIL
from headgate.dialects.typed_events import LAST_BYTES, EventTypes, TypedStream, error_event
from headgate.proxy.accounting.usage import Usage
from headgate.proxy.errors import BrokenAnswerError
from tests_support.answers import typed_event

TYPES = EventTypes(
    terminal=frozenset(("x.done", "x.failed")), failed=frozenset(("x.failed", "error")), silent=frozenset(("x.begun",))
)
USAGE = {"input_tokens": 7, "output_tokens": 3}
BEGUN, DELTA, DONE = typed_event("x.begun"), typed_event("x.delta", delta="hé"), typed_event("x.done", usage=USAGE)
SAID_DONE = b"data: [DONE]\n\n"
COMMENT = b": ours\n\n"


def stream(*, comment: bool = True) -> TypedStream:
    reader = TypedStream(TYPES)
    if comment:
        reader.before_terminal = lambda: COMMENT
    return reader


def large(kind: str, **fields: object) -> bytes:
    """An event that is too large to be held."""
    return typed_event(kind, b64_json="A" * (2 * MAX_TAIL), **fields)


def in_pieces(data: bytes, size: int = 40_000) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_stream_passes_and_tells_what_it_is() -> None:
    reader = stream()
    assert reader.feed(BEGUN) == BEGUN
    assert (reader.committed, reader.whole) == (False, False)
    assert reader.feed(DELTA) == DELTA
    assert (reader.committed, reader.text_bytes, reader.text_events) == (True, 3, 1)
    assert reader.feed(DONE) == DONE + COMMENT
    assert (reader.whole, reader.finished, reader.failed, reader.usage) == (True, False, False, Usage(7, 3))
    assert reader.end() == (b"", True)


def test_the_type_is_read_from_the_event_line_where_the_data_has_none() -> None:
    reader = stream()
    reader.feed(b'event: x.done\ndata: {"usage":null}\n\n')
    assert (reader.whole, reader.usage) == (True, None)


def test_what_follows_the_terminal_event_passes_and_counts_nothing() -> None:
    reader = stream()
    reader.feed(DONE)
    assert reader.feed(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert reader.feed(DELTA) == DELTA
    assert reader.feed(DONE) == DONE
    assert (reader.text_bytes, reader.whole) == (0, True)


def test_a_done_without_the_terminal_event_is_held_back() -> None:
    """Clients stop reading there, and would take what they have for the whole answer."""
    reader = stream()
    assert reader.feed(DELTA + SAID_DONE) == DELTA
    assert (reader.whole, reader.end()) == (False, (b"", False))
    assert reader.feed(DONE) == DONE + COMMENT


def test_a_done_behind_an_error_passes() -> None:
    failed = typed_event("error", message="m")
    assert stream().feed(failed + SAID_DONE) == failed + SAID_DONE


def test_a_done_is_an_end_where_providers_have_no_other() -> None:
    reader = TypedStream(TYPES._replace(ends_with_done=True))
    reader.before_terminal = lambda: COMMENT
    assert reader.feed(DELTA + SAID_DONE) == DELTA + COMMENT + SAID_DONE
    assert (reader.whole, reader.failed) == (True, False)


def test_an_unknown_type_is_content_and_a_ping_is_not() -> None:
    reader = stream()
    reader.feed(typed_event("ping") + typed_event("keepalive") + b": comment\n\ndata: not json\n\n")
    assert not reader.committed
    reader.feed(typed_event("x.brand_new"))
    assert reader.committed


@pytest.mark.parametrize("event", [typed_event("error", message="m"), b'data: {"error":{"message":"m"}}\n\n'])
def test_an_error_event_is_a_failure_and_no_end(event: bytes) -> None:
    reader = stream()
    assert reader.feed(BEGUN + event) == BEGUN + event
    assert (reader.failed, reader.committed, reader.whole) == (True, False, False)
    assert reader.end() == (b"", False)


def test_a_terminal_event_may_be_a_failure() -> None:
    reader = stream()
    reader.feed(typed_event("x.failed", response={"usage": USAGE, "service_tier": "flex"}))
    assert (reader.failed, reader.committed, reader.whole) == (True, False, True)
    assert reader.usage == Usage(7, 3, service_tier="flex")


@pytest.mark.parametrize("response", ["text", 5, [], {"usage": "much"}, {"usage": {"input_tokens": -1}}, None])
def test_a_response_that_makes_no_sense_is_no_usage_and_still_the_end(response: object) -> None:
    reader = stream()
    reader.feed(typed_event("x.done", response=response))
    assert (reader.whole, reader.usage) == (True, None)


def test_a_terminal_event_without_its_blank_line_is_whole_and_gets_no_comment() -> None:
    """The comment would become part of its data."""
    reader = stream()
    reader.feed(DELTA + DONE[:-2])
    assert reader.end() == (DONE[:-2], True)


def test_half_a_terminal_event_is_no_end() -> None:
    reader = stream()
    reader.feed(DELTA + DONE[:-9])
    assert reader.end() == (b"", False)


def test_ids_leave_no_room_for_a_comment() -> None:
    reader = stream()
    assert reader.feed(b"id: 1\n" + DELTA + DONE) == b"id: 1\n" + DELTA + DONE


def test_filters_may_rewrite_each_event() -> None:
    reader = stream(comment=False)
    reader.rewrite = bytes.upper
    assert reader.feed(BEGUN + DELTA) == BEGUN.upper() + DELTA.upper()


def test_a_delta_that_is_not_text_is_counted_as_it_is_written() -> None:
    reader = stream()
    reader.feed(typed_event("x.delta", delta={"a": 1}))
    assert reader.text_bytes == len('{"a":1}')


@pytest.mark.parametrize("named", [True, False], ids=["event line", "data alone"])
def test_a_terminal_event_too_large_to_hold_ends_the_stream_with_its_usage(named: bool) -> None:
    """A streamed image: the last event holds the image, and the usage stands behind it."""
    last = large("x.done", usage=USAGE)
    last = last if named else last[last.index(b"data:") :]
    reader = stream()
    out = b""
    for piece in in_pieces(DELTA + last + b"data: [DONE]\n\n"):
        assert not reader.whole
        out += reader.feed(piece)
    assert out == DELTA + last + COMMENT + b"data: [DONE]\n\n"
    assert (reader.whole, reader.usage, reader.mid_event) == (True, Usage(7, 3), False)


def test_a_terminal_event_of_broken_json_ends_the_stream() -> None:
    """Recorded: the provider left a brace out, and the stream was whole all the same."""
    reader = stream()
    reader.feed(DELTA)
    assert reader.feed(DONE.replace(b"}}", b"}")) == DONE.replace(b"}}", b"}") + COMMENT
    assert (reader.whole, reader.usage) == (True, Usage(7, 3))


def test_a_large_event_that_is_cut_is_no_end() -> None:
    reader = stream()
    for piece in in_pieces(large("x.done", usage=USAGE)[:-9]):
        reader.feed(piece)
    assert reader.mid_event
    assert reader.end()[1] is False


def test_a_large_event_of_another_type_is_content_and_no_end() -> None:
    reader = stream()
    for piece in in_pieces(large("x.partial") + large("x.partial")):
        reader.feed(piece)
    assert (reader.committed, reader.whole, reader.usage) == (True, False, None)


def test_a_large_event_of_no_known_shape_is_no_end() -> None:
    reader = stream()
    event = b'data: {"b64_json":"' + b"A" * (2 * MAX_TAIL) + b'","type":"x.done"}\n\n'
    out = b"".join(reader.feed(piece) for piece in in_pieces(event))
    assert (out, reader.whole) == (event, False)


def test_a_large_failure_is_a_failure() -> None:
    reader = stream()
    for piece in in_pieces(large("x.failed")):
        reader.feed(piece)
    assert (reader.failed, reader.whole, reader.committed) == (True, True, False)


def test_usage_is_not_taken_from_the_text_of_a_large_event() -> None:
    quoted = json.dumps({"usage": {"input_tokens": 1, "output_tokens": 1}})
    reader = stream()
    for piece in in_pieces(large("x.done", text=quoted + " " * LAST_BYTES)):
        reader.feed(piece)
    assert (reader.whole, reader.usage) == (True, None)


def test_our_error_event_is_read_by_sdks_of_either_kind() -> None:
    """openai-python and -node raise for `error`; the AI SDK reads `sequence_number`, others `code` and `message`."""
    kind, data = error_event(BrokenAnswerError("cut", param="p")).removesuffix(b"\n\n").split(b"\n")
    what = json.loads(data.removeprefix(b"data: "))
    assert kind == b"event: error"
    assert (what["type"], what["sequence_number"], what["message"], what["param"]) == ("error", 0, "cut", "p")
    assert what["error"] == {"type": "server_error", "code": what["code"], "message": "cut", "param": "p"}


EVENTS = [BEGUN, DELTA, DONE, typed_event("error", message="m"), b": c\r\n\r\n", SAID_DONE, b"id: 1\n\n"]


@given(st.lists(st.sampled_from(EVENTS), max_size=8), st.lists(st.integers(0, 500), max_size=8))
def test_how_the_network_cut_a_stream_changes_nothing(events: list[bytes], places: list[int]) -> None:
    data = b"".join(events)
    cuts = sorted({min(place, len(data)) for place in places})
    once, cut = stream(), stream()
    whole = once.feed(data)
    assert b"".join(cut.feed(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)) == whole
    for name in ("committed", "whole", "failed", "usage", "text_bytes", "text_events"):
        assert getattr(once, name) == getattr(cut, name), name
    ended = next((at for at, one in enumerate(events) if one in (DONE, EVENTS[3])), len(events))
    passed = [one for at, one in enumerate(events) if one != SAID_DONE or at > ended]
    assert whole.replace(COMMENT, b"") == b"".join(passed)
    assert whole.count(COMMENT) == (1 if once.whole and b"id: 1" not in whole.split(DONE)[0] else 0)
