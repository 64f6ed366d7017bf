"""body: a body ends exactly where it ends, however it is cut on its way; its memory is accounted for to the byte."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.proxy.edge.body import BodyBudget, Chunks, RequestBody
from headgate.proxy.edge.request_head import CHUNKED
from headgate.proxy.errors import BodyTooLargeError, InvalidRequestError, OverloadError

MANY = 1 << 20


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


def chunked(parts: list[bytes], trailers: bytes = b"") -> bytes:
    """The chunked coding of `parts`."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return chunks + b"0\r\n" + trailers + b"\r\n"


def test_a_body_in_one_piece_is_that_piece() -> None:
    body = RequestBody(5, BodyBudget(MANY))
    data = bytes(bytearray(b"hello"))
    assert body.collect(data, MANY) == b""
    assert body.complete
    assert body.content() is data


def test_an_empty_body_is_complete() -> None:
    assert RequestBody(0, BodyBudget(MANY)).complete


@given(st.binary(max_size=300), st.binary(max_size=20), st.lists(st.integers(0, 400), max_size=8))
def test_a_body_of_known_length_ends_there(content: bytes, behind: bytes, cuts: list[int]) -> None:
    budget = BodyBudget(MANY)
    body = RequestBody(len(content), budget)
    left = b""
    for piece in pieces(content + behind, cuts):
        left = left + piece if body.complete else body.collect(piece, MANY)
    assert body.complete
    assert left == behind
    assert budget.used == body.size == len(content)
    assert body.content() == content
    body.release()
    body.release()
    assert budget.used == 0


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=6),
    st.sampled_from([b"", b"x: y\r\n", b"a: b\r\nc:\r\n"]),
    st.binary(max_size=20),
    st.lists(st.integers(0, 800), max_size=8),
)
def test_a_chunked_body_ends_at_its_last_chunk(
    parts: list[bytes], trailers: bytes, behind: bytes, cuts: list[int]
) -> None:
    data = chunked(parts, trailers)
    body = RequestBody(CHUNKED, BodyBudget(MANY))
    left = b""
    for piece in pieces(data + behind, cuts):
        left = left + piece if body.complete else body.collect(piece, MANY)
    assert body.complete
    assert left == behind
    assert body.content() == b"".join(parts)


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=8))
def test_a_skipped_body_costs_no_memory(content: bytes, cuts: list[int]) -> None:
    budget = BodyBudget(0)
    body = RequestBody(len(content), budget)
    for piece in pieces(content, cuts):
        assert body.skip(piece) == b""
    assert body.complete
    assert body.received == len(content)


def test_a_body_announced_too_large_is_refused_at_once() -> None:
    body = RequestBody(11, BodyBudget(MANY))
    with pytest.raises(BodyTooLargeError, match="10 bytes"):
        body.collect(b"", 10)


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = RequestBody(10, BodyBudget(MANY))
    assert body.collect(b"x" * 10, 10) == b""


def test_a_chunked_body_is_refused_where_it_passes_the_limit() -> None:
    budget = BodyBudget(MANY)
    body = RequestBody(CHUNKED, budget)
    body.collect(b"a\r\n0123456789\r\n", 10)
    with pytest.raises(BodyTooLargeError, match="10 bytes"):
        body.collect(b"1\r\nx\r\n", 10)
    body.release()
    assert budget.used == 0


def test_bodies_that_do_not_fit_in_all_are_refused_and_not_charged() -> None:
    budget = BodyBudget(10)
    first = RequestBody(8, budget)
    first.collect(b"x" * 8, MANY)
    second = RequestBody(5, budget)
    second.collect(b"yy", MANY)
    with pytest.raises(OverloadError) as refused:
        second.collect(b"yyy", MANY)
    assert refused.value.retry_after
    assert budget.used == 10
    second.release()
    first.release()
    assert budget.used == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1\n", b"1\rx", b"123456789\r\n",
        b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na\rb", b"1;\x00\r\n", b"1;a\nb\r\n", b"1" + b";" * 300, b"0\r\nx\r\n\r\n",
        b"0\r\nx : y\r\n\r\n", b"0\r\nx: y\n\r\n\r\n", b"0\r\n" + b"x: y\r\n" * 2000,
        b"0\r\n x: y\r\n\r\n", "١\r\n".encode(), b"1_0\r\n",
    ],
)  # fmt: skip
def test_broken_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        Chunks().feed(data)


@pytest.mark.parametrize("line", [b"1;x\r\n", b"1;x=y;z\r\n", b"1 ;x\r\n", b'1;x="y z"\r\n', b"00000001\r\n"])
def test_chunk_extensions_are_dropped(line: bytes) -> None:
    assert Chunks().feed(line + b"a\r\n0\r\n\r\nrest") == (b"a", b"rest")


def test_chunks_of_one_byte_are_taken() -> None:
    assert Chunks().feed(b"1\r\na\r\n" * 20_000)[0] == b"a" * 20_000


def test_chunks_that_are_mostly_framing_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="framing"):
        Chunks().feed((b"1;" + b"x" * 200 + b"\r\na\r\n") * 20_000)


PARTS = [b"1\r\na\r\n", b"0\r\n", b"\r\n", b"2;x\r\n", b"ab", b"x: y\r\n", b"a\n", b"0"]


@settings(max_examples=400)
@given(
    st.lists(
        st.sampled_from([b"1\r\na\r\n", b"0\r\n", b"\r\n", b"2;x\r\n", b"ab", b"x: y\r\n", b"a\n", b"0"]), max_size=8
    )
)
def test_what_chunks_take_is_what_h11_takes(parts: list[bytes]) -> None:
    data = b"".join(parts)
    chunks = Chunks()
    try:
        content, _ = chunks.feed(data)
    except InvalidRequestError:
        return
    if not chunks.complete:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    assert isinstance(connection.next_event(), h11.Request)
    received = b""
    while isinstance(event := connection.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == content
