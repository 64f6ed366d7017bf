"""inflate: what servers mean by gzip and deflate is read however it is cut, and never more than the bound."""

from __future__ import annotations

import gzip
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy import inflate
from headgate.proxy.inflate import MOST_BYTES, Inflater, open_inflater

TEXT = b'{"usage": 1}' * 50


def raw(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


def opened(encoding: bytes) -> Inflater:
    inflater = open_inflater(encoding)
    assert inflater is not None
    return inflater


WAYS = [(b"gzip", gzip.compress), (b" X-GZIP ", gzip.compress), (b"deflate", zlib.compress), (b"deflate", raw)]


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_every_cut_reads_the_same(encoding: bytes, encode: Any, step: int) -> None:
    data, inflater = encode(TEXT), opened(encoding)
    assert b"".join(inflater.feed(data[at : at + step]) for at in range(0, len(data), step)) == TEXT


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 64 * 1024, 64 * 1024 + 1, 200_000])
def test_no_more_at_a_time_than_is_wanted(encoding: bytes, encode: Any, size: int) -> None:
    data, inflater = encode(bytes(size)), opened(encoding)
    pieces = [inflater.feed(data, 64)]
    while inflater.behind:
        pieces.append(inflater.feed(b"", 64))
    assert max(map(len, pieces)) <= 64
    assert b"".join(pieces) == bytes(size)


@pytest.mark.parametrize("most", [1, 64, 10_000])
def test_what_is_fed_meanwhile_comes_after(most: int) -> None:
    data, inflater = gzip.compress(TEXT * 20), opened(b"gzip")
    found = b"".join(inflater.feed(data[at : at + 7], most) for at in range(0, len(data), 7))
    while inflater.behind:
        found += inflater.feed(b"", most)
    assert found == TEXT * 20


def test_several_members_are_one_body() -> None:
    assert opened(b"gzip").feed(gzip.compress(b"one ") + gzip.compress(b"two")) == b"one two"


@pytest.mark.parametrize("encoding", [b"identity", b"zstd", b"gzip, gzip", b"gzip, br", b"", b"\xff"])
def test_other_encodings_are_not_read(encoding: bytes) -> None:
    assert open_inflater(encoding) is None


def test_what_blows_up_is_read_up_to_the_bound() -> None:
    bomb = gzip.compress(bytes(MOST_BYTES + 100_000))
    inflater = opened(b"gzip")
    assert len(inflater.feed(bomb)) == MOST_BYTES
    assert inflater.feed(gzip.compress(b"more")) == b""


@pytest.mark.parametrize("garbage", [b"\x00\x01garbage that is nothing", b"\xff" * 50])
def test_what_cannot_be_read_gives_nothing(garbage: bytes) -> None:
    inflater = opened(b"gzip")
    assert inflater.feed(garbage) == b""
    assert inflater.feed(gzip.compress(b"late")) == b""


def test_what_breaks_in_the_middle_gives_what_came_before() -> None:
    data = bytearray(gzip.compress(TEXT * 100))
    data[-6:] = b"\0" * 6  # its checksum
    inflater = opened(b"gzip")
    assert inflater.feed(bytes(data[:-8])) == TEXT * 100
    assert inflater.feed(bytes(data[-8:])) == b""


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_bytes_break_it(one: bytes, other: bytes) -> None:
    for encoding in (b"gzip", b"deflate"):
        inflater = opened(encoding)
        assert isinstance(inflater.feed(one), bytes)
        assert isinstance(inflater.feed(other), bytes)


class Decompressor:
    """As brotli's: what it is given, up to the limit; `!` is no brotli."""

    def __init__(self) -> None:
        self._left = b""

    def process(self, data: bytes, output_buffer_limit: int) -> bytes:
        if b"!" in data:
            raise RuntimeError("not brotli")
        self._left += data
        given, self._left = self._left[:output_buffer_limit], self._left[output_buffer_limit:]
        return given


def test_br_is_read_where_a_library_can_be_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", SimpleNamespace(Decompressor=Decompressor))
    monkeypatch.setattr(inflate, "_STEP", 10)
    inflater = opened(b"br")
    assert inflater.feed(TEXT) == TEXT
    assert not inflater.behind
    found = inflater.feed(TEXT, 25) + inflater.feed(b"more", 25)
    while inflater.behind:
        found += inflater.feed(b"", 25)
    assert found == TEXT + b"more"
    assert inflater.feed(b"!") == b""
    assert inflater.feed(b"more") == b""


@pytest.mark.parametrize("library", [None, SimpleNamespace(), SimpleNamespace(Decompressor=zlib.decompressobj)])
def test_br_is_not_read_without(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setitem(sys.modules, "brotli", library)
    assert open_inflater(b"br") is None
