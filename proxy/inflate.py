"""A bounded copy of a body in plain bytes, for reading what an encoded answer says.

We ask providers for `identity`; what comes encoded all the same passes as it is. Of gzip and deflate at most
`MOST_BYTES` are inflated, so that a body which blows up costs neither memory nor the loop's time. br is read where a
library for it is installed that can be bounded.
"""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import Any, Protocol

MOST_BYTES = 32 * 1024 * 1024
_STEP = 64 * 1024
_ANY_HEADER = 47
"""For zlib: a gzip or a zlib header, whichever comes."""
_NO_HEADER = -15


class Inflater(Protocol):
    """`feed` it to the end. What cannot be read, or is too much, gives nothing more."""

    def feed(self, data: bytes) -> bytes:
        """The plain bytes of the next piece."""


def open_inflater(encoding: bytes) -> Inflater | None:
    """A reader of this `content-encoding`; None for one that is not known here, or several on top of each other."""
    name = encoding.strip().lower()
    if name in (b"gzip", b"x-gzip", b"deflate"):
        return _Zlib()
    if name == b"br":
        return _brotli()
    return None


class _Zlib:
    """gzip, also of several members, and deflate with or without a header: servers disagree about that."""

    __slots__ = ("_begun", "_first", "_inflate", "_left")

    def __init__(self) -> None:
        self._left = MOST_BYTES
        self._inflate = zlib.decompressobj(_ANY_HEADER)
        self._begun = False
        self._first = b""

    def feed(self, data: bytes) -> bytes:
        if not self._begun:
            # Two bytes tell a header from none; the first alone would be swallowed.
            data = self._first = self._first + data
            if len(data) < 2:
                return b""
        pieces = []
        while data and self._left > 0:
            try:
                piece = self._inflate.decompress(data, min(self._left, _STEP))
            except zlib.error:
                if self._begun:
                    self._left = 0
                    break
                self._begun = True
                self._inflate = zlib.decompressobj(_NO_HEADER)
                continue
            self._begun = True
            self._left -= len(piece)
            pieces.append(piece)
            if self._inflate.eof:
                data = self._inflate.unused_data
                self._inflate = zlib.decompressobj(_ANY_HEADER)
            else:
                data = self._inflate.unconsumed_tail
        return b"".join(pieces)


class _Brotli:
    __slots__ = ("_inflate", "_left")

    def __init__(self, decompressor: Any) -> None:
        self._left = MOST_BYTES
        self._inflate = decompressor

    def feed(self, data: bytes) -> bytes:
        pieces = []
        while self._left > 0:
            try:
                piece = self._inflate.process(data, output_buffer_limit=min(self._left, _STEP))
            except Exception:  # the library has an error class of its own
                self._left = 0
                break
            if not piece:
                break
            self._left -= len(piece)
            pieces.append(piece)
            data = b""
        return b"".join(pieces)


def _brotli() -> Inflater | None:
    try:
        decompressor = import_module("brotli").Decompressor()
        decompressor.process(b"", output_buffer_limit=1)
    except (ImportError, AttributeError, TypeError):
        return None
    return _Brotli(decompressor)
