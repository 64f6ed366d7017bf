"""A bounded copy of a body in plain bytes, for reading what an encoded answer says.

We ask providers for `identity`; what comes encoded all the same passes as it is. At most `MOST_BYTES` are inflated, and
no more at a time than whoever feeds it wants: a body of 64 KiB may blow up to all of them, which take a fifth of a
second. br is read where a library for it is installed that can be bounded.
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

    behind: bool
    """It was given more than it has inflated: `feed` it nothing, to go on."""

    def feed(self, data: bytes, most: int = MOST_BYTES) -> bytes:
        """The plain bytes of the next piece, at most so many; what is left of it comes first the next time."""


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

    __slots__ = ("_at", "_begun", "_data", "_inflate", "_left", "behind")

    def __init__(self) -> None:
        self.behind = False
        self._left = MOST_BYTES
        self._inflate = zlib.decompressobj(_ANY_HEADER)
        self._begun = False
        self._data = b""
        self._at = 0
        """How far it has been given to zlib, a step at a time: what zlib does not take at once it copies."""

    def feed(self, data: bytes, most: int = MOST_BYTES) -> bytes:
        self._data = self._data[self._at :] + data
        self._at = 0
        if not self._begun and len(self._data) < 2:  # two bytes tell a header from none
            return b""
        room = min(most, self._left)
        pieces = []
        full = self.behind
        while min(room, self._left) > 0 and (full or self._at < len(self._data)):
            step = min(room, _STEP)
            piece = self._inflated(step)
            full = len(piece) == step
            room -= len(piece)
            self._left -= len(piece)
            pieces.append(piece)
        self.behind = self._left > 0 and (full or self._at < len(self._data))
        if not self.behind:
            self._data, self._at = b"", 0
        return b"".join(pieces)

    def _inflated(self, most: int) -> bytes:
        given = self._data[self._at : self._at + _STEP]
        try:
            piece = self._inflate.decompress(given, most)
        except zlib.error:
            if self._begun:
                self._left = 0
            else:
                self._inflate = zlib.decompressobj(_NO_HEADER)
                self._begun = True
            return b""
        self._begun = True
        if self._inflate.eof:
            self._at += len(given) - len(self._inflate.unused_data)
            self._inflate = zlib.decompressobj(_ANY_HEADER)
        else:
            self._at += len(given) - len(self._inflate.unconsumed_tail)
        return piece


class _Brotli:
    __slots__ = ("_data", "_inflate", "_left", "behind")

    def __init__(self, decompressor: Any) -> None:
        self.behind = False
        self._left = MOST_BYTES
        self._inflate = decompressor
        self._data = b""
        """What it has not been given: it takes nothing while it has something to give."""

    def feed(self, data: bytes, most: int = MOST_BYTES) -> bytes:
        self._data += data
        room = min(most, self._left)
        pieces = []
        while room > 0:
            given = b""
            if not self.behind:
                given, self._data = self._data, b""
            try:
                piece = self._inflate.process(given, output_buffer_limit=min(room, _STEP))
            except Exception:  # the library has an error class of its own
                self._left = 0
                break
            self.behind = bool(piece)
            if not piece and not self._data:
                break
            room -= len(piece)
            self._left -= len(piece)
            pieces.append(piece)
        if self._left <= 0:
            self.behind, self._data = False, b""
        return b"".join(pieces)


def _brotli() -> Inflater | None:
    try:
        decompressor = import_module("brotli").Decompressor()
        decompressor.process(b"", output_buffer_limit=1)
    except (ImportError, AttributeError, TypeError):
        return None
    return _Brotli(decompressor)
