"""sse: events come out the same however the network cut them, and nothing is lost or made up."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headgate.dialects.sse import MAX_TAIL, EventSplitter, has_id, parse_event

lines = st.binary(max_size=12).filter(lambda line: b"\r" not in line and b"\n" not in line)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines, ends), max_size=30).map(lambda rows: b"".join(line + end for line, end in rows))


def _split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.flush()


@given(streams, st.lists(st.integers(0, 400), max_size=12))
def test_events_do_not_depend_on_how_the_stream_was_cut(stream: bytes, places: list[int]) -> None:
    cuts = sorted({min(place, len(stream)) for place in places})
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = _split([stream])
    assert _split(pieces) == whole
    assert b"".join(whole[0]) + whole[1] == stream


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_event_ends_with_its_blank_line(end: bytes) -> None:
    first, second = b"data: a" + end + end, b"event: x" + end + b"data: b" + end + end
    assert _split([first + second + b"data: c"]) == ([first, second], b"data: c")


def test_other_separators_of_unicode_are_text() -> None:
    event = "data: a\u2028\u2029\x85\n\n".encode()
    assert _split([event]) == ([event], b"")


def test_an_oversized_event_passes_raw_until_it_ends() -> None:
    splitter = EventSplitter()
    big = b"data: " + b"x" * MAX_TAIL
    given_out = b"".join(splitter.feed(big))
    assert splitter.mid_event
    assert len(splitter.tail) <= 3
    given_out += b"".join(splitter.feed(b"yy\n\ndata: next\n\n"))
    assert not splitter.mid_event
    assert given_out == big + b"yy\n\ndata: next\n\n"
    assert splitter.feed(b"data: c\n\n") == [b"data: c\n\n"]


@pytest.mark.parametrize(
    ("event", "kind", "data"),
    [
        (b"data: a\n\n", None, b"a"),
        (b"data:a\n\n", None, b"a"),
        (b"data:  a\n\n", None, b" a"),
        (b"data: a\ndata: b\n\n", None, b"a\nb"),
        (b"event: error\ndata: {}\n\n", b"error", b"{}"),
        (b"event: ping\n\n", b"ping", None),
        (b": comment\n\n", None, None),
        (b"data\n\n", None, b""),
        (b"\xef\xbb\xbfdata: a\r\n\r\n", None, b"a"),
        (b"id: 1\rdata: a\r\r", None, b"a"),
    ],
)
def test_fields_are_read_as_the_standard_says(event: bytes, kind: bytes | None, data: bytes | None) -> None:
    assert parse_event(event) == (kind, data)


@pytest.mark.parametrize(
    ("event", "expected"),
    [(b"id: 1\ndata: a\n\n", True), (b"id\n\n", True), (b"data: id\n\n", False), (b"idx: 1\n\n", False)],
)
def test_an_id_line_is_noticed(event: bytes, expected: bool) -> None:
    assert has_id(event) is expected


@given(
    st.lists(
        st.sampled_from([b"event: ", b"data: ", b"data:", b"id: 1", b"a", b" ", b"\n", b"\r\n", b"\n\n"]), max_size=8
    )
)
@example([b"data: ", b"\n", b"a"])  # a last event that was never ended
def test_the_common_shapes_are_read_as_any_other(parts: list[bytes]) -> None:
    """A comment in front leaves the short way, and means nothing."""
    event = b"".join(parts)
    assert parse_event(event) == parse_event(b":\n" + event)
