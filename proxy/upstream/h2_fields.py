"""Field sections out of HPACK blocks (RFC 7541), under bounds.

Most of what an answer says was said by the one before it: such a field is one byte here and one tuple of the table, and
a value that comes Huffman-coded again is looked up instead of decoded again. The code table is that of `hpack`; against
its decoder this one is checked, in what it takes and in what it refuses.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

if TYPE_CHECKING:
    from ..edge.downstream import Headers

TABLE_SIZE: Final = 4096
"""What the table may hold, unless a setting says otherwise; ours says nothing."""

MAX_LIST: Final = 64 * 1024
"""Bytes of one field section, uncompressed, and counted as SETTINGS_MAX_HEADER_LIST_SIZE counts."""

_ENTRY = 32
"""What a field takes beside its bytes (RFC 7541, 4.1)."""

_STATIC: Final = HeaderTable.STATIC_TABLE
_STATIC_SIZE: Final = len(_STATIC)
_INTEGER_BYTES = 5


class FieldsError(Exception):
    """The block is not HPACK, or too much: the table is no longer the one of the peer."""


class _Decoded(dict[bytes, bytes]):
    """Huffman-coded -> plain; begins anew when it is full, because dates come and go."""

    def __missing__(self, coded: bytes) -> bytes:
        plain = decode_huffman(coded)
        if len(coded) <= 64:
            if len(self) >= 4096:
                self.clear()
            self[coded] = plain
        return plain


_decoded = _Decoded()


class FieldDecoder:
    """One connection's table."""

    __slots__ = ("_limit", "_size", "_table")

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._limit = TABLE_SIZE

    def decode(self, block: bytes) -> Headers:
        """The fields of a whole block, in order. Raises FieldsError; then the connection is lost."""
        try:
            return self._decode(block)
        except IndexError as error:
            raise FieldsError("cut short, or an index that is none") from error
        except HPACKError as error:
            raise FieldsError(str(error)) from error

    def _decode(self, block: bytes) -> Headers:
        at, end = 0, len(block)
        fields: Headers = []
        total = 0
        while at < end:
            first = block[at]
            at += 1
            if first & 0x80:
                index, at = (first & 0x7F, at) if first < 0xFF else _integer(block, at, 0x7F)
                field = self._entry(index)
            elif first & 0x60 == 0x20:
                if fields:
                    raise FieldsError("a table size within a block")
                size, at = (first & 0x1F, at) if first < 0x3F else _integer(block, at, 0x1F)
                self._resize(size)
                continue
            else:
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, at = _integer(block, at, mask)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if first & 0x40:
                    self._insert(field)
            fields.append(field)
            total += len(field[0]) + len(field[1]) + _ENTRY
            if total > MAX_LIST:
                raise FieldsError(f"more than {MAX_LIST} bytes")
        return fields

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index <= _STATIC_SIZE:
            if index == 0:
                raise FieldsError("index 0")
            return _STATIC[index - 1]
        return self._table[index - _STATIC_SIZE - 1]

    def _insert(self, field: tuple[bytes, bytes]) -> None:
        """A field that does not fit empties the table (RFC 7541, 4.4)."""
        self._table.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _ENTRY
        if self._size > self._limit:
            self._evict()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_SIZE:
            raise FieldsError(f"a table of {limit} bytes")
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """A number that did not fit its prefix, and where it ends (RFC 7541, 5.1)."""
    number = prefix
    for shift in range(0, 7 * _INTEGER_BYTES, 7):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise FieldsError("a number without end")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    length, at = (first & 0x7F, at + 1) if first & 0x7F != 0x7F else _integer(block, at + 1, 0x7F)
    end = at + length
    if end > len(block):
        raise FieldsError("a string cut short")
    return (_decoded[block[at:end]] if first & 0x80 else block[at:end]), end
