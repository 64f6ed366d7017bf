"""The heads of one connection. A client repeats itself, so the next head is held against the last one.

From one request to the next a client changes the length of the body and, behind a proxy that serves many, the key. So a
head is remembered as the bytes around these two values. The next one that has the same bytes around its own two means
the same but for them, and only they are read: the length must be digits, the key plain text. Anything else is read line
by line (request_head.py), which is also what tests hold this against.

The key is never compared with the one before it: the time that takes would tell a client of a shared connection how far
it had guessed another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .request_head import CONTENT_LENGTH, LENGTH_DIGITS, NOT_REMEMBERED, read_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .context import EdgeLimits
    from .downstream import Headers, RewritingRules
    from .request_head import HttpRequestHead

_TRIES: Final = 3
"""How many heads of a connection are taken for a model of the next ones before it is given up."""
_LARGEST: Final = 4096
_TEXT: Final = bytes(byte if 0x20 <= byte < 0x7F else byte ^ 0xFF for byte in range(256))
"""Leaves text alone, and nothing else."""
_SPACE: Final = 0x20


class HeadReader:
    """Reads the heads of one connection, in their order."""

    __slots__ = ("_first", "_known", "_tries")

    def __init__(self) -> None:
        self._first = True
        self._known: KnownHead | None = None
        self._tries = _TRIES

    def read(self, data: bytes, limits: EdgeLimits, client: str) -> tuple[HttpRequestHead, int] | None:
        """See `read_head`."""
        known = self._known
        if known is not None:
            end = data.find(b"\r\n\r\n", 0, limits.head_bytes) + 4
            head = known.read(data, end, client)
            if head is not None:
                return head, end
        found = read_head(data, limits, client)
        if found is not None:
            if self._first:
                self._first = False  # many connections carry but one
            elif self._tries:
                self._tries -= 1
                self._known = known_head(found[0], data[: found[1]])
        return found


class Repeated:
    """Fields that come again and again: `fields`, but for the values at `places`. A `RepeatedHead`."""

    __slots__ = ("_fields", "_places", "_rewritten", "changing", "upward")

    def __init__(self, fields: Headers, places: Sequence[int]) -> None:
        self._fields = fields
        """Empty values where they change."""
        self._places = places
        self._rewritten: tuple[RewritingRules, Repeated, list[tuple[int, int]]] | None = None
        """By whom, to what, and which place went where."""
        self.changing = frozenset(fields[place][0] for place in places)
        self.upward: object = None

    def is_still(self, headers: Headers) -> bool:
        """See `RepeatedHead`."""
        known = self._fields
        if len(headers) != len(known):
            return False
        headers = headers.copy()
        for place in self._places:
            if headers[place][0] != known[place][0]:
                return False
            headers[place] = known[place]
        return headers == known

    def rewrite(self, headers: Headers, rules: RewritingRules) -> tuple[Headers, Repeated] | None:
        """See `RepeatedHead`."""
        if not self.is_still(headers):
            return None
        made = self._rewritten
        if made is None or made[0] is not rules:
            made = self._rewritten = self._rewrite(rules)
        _, after, moves = made
        fields = after._fields.copy()
        for old, new in moves:
            fields[new] = (fields[new][0], headers[old][1])
        return fields, after

    def _rewrite(self, rules: RewritingRules) -> tuple[RewritingRules, Repeated, list[tuple[int, int]]]:
        """Values that change are followed by marks, which no field can hold."""
        marks = {b"\0%d" % place: place for place in self._places}
        fields = self._fields.copy()
        for mark, place in marks.items():
            fields[place] = (fields[place][0], mark)
        fields = rules.apply(fields)
        moves = [(marks[value], place) for place, (_, value) in enumerate(fields) if value in marks]
        for _, place in moves:
            fields[place] = (fields[place][0], b"")
        return rules, Repeated(fields, [place for _, place in moves]), moves


class KnownHead(Repeated):
    """A head as `before`, and then each value that may be another, with the bytes that follow it: field line after
    field line up to the next value or the end of the head."""

    __slots__ = ("_before", "_head", "_start", "_values")

    def __init__(self, head: HttpRequestHead, before: bytes, values: list[tuple[int, bytes, bytes, int]]) -> None:
        super().__init__(head.headers, [place for place, *_ in values])
        self._head = head
        self._before = before
        self._start = len(before)
        self._values = values
        """Place in the head's fields, name, what follows, and how long that is."""

    def read(self, data: bytes, end: int, client: str) -> HttpRequestHead | None:
        """The head that ends at `end`; None where it is another."""
        if not data.startswith(self._before):
            return None
        known = self._head
        headers, fields, length = known.headers.copy(), known.fields.copy(), b""
        at = self._start
        for place, name, following, size in self._values:
            stop = data.find(b"\r\n", at)
            value = data[at:stop]
            if not data.startswith(following, stop) or not value:
                return None
            if name is CONTENT_LENGTH:
                if not value.isdigit():
                    return None
                length = value
            elif value.translate(_TEXT) != value or value[0] == _SPACE or value[-1] == _SPACE:
                return None
            headers[place] = (name, value)
            fields[name] = value
            at = stop + size
        if at != end or len(length) > LENGTH_DIGITS:
            return None
        again = known.again(headers, fields, int(length), client)
        again.known = self
        return again


def known_head(head: HttpRequestHead, raw: bytes) -> KnownHead | None:
    """What to hold the next head against; None for a head that does not come again, or not so simply: two keys, an
    upgrade, a target that is more than a path."""
    fields = head.fields
    changing = [CONTENT_LENGTH, *(name for name in fields if name in NOT_REMEMBERED)]
    simple = head.length >= 0 and not (head.expects_continue or head.names_fields or head.websocket)
    if not (simple and CONTENT_LENGTH in fields and raw.startswith(head.method.encode() + b" " + head.target)):
        return None
    if len(changing) > 2 or len(fields) != len(head.headers) or len(raw) > _LARGEST:
        return None
    places = {name: place for place, (name, _) in enumerate(head.headers)}
    lines = raw[:-4].split(b"\r\n")
    offsets: list[tuple[int, int, bytes]] = []
    for name in changing:
        line = lines[places[name] + 1]
        value = len(line) - len(line[len(name) + 1 :].lstrip(b" \t"))
        start = sum(len(one) + 2 for one in lines[: places[name] + 1]) + value
        offsets.append((start, start + len(line) - value, name))
    offsets.sort()
    ends = [start for start, _, _ in offsets[1:]] + [len(raw)]
    values = [
        (places[name], name, raw[stop:until], until - stop)
        for (_, stop, name), until in zip(offsets, ends, strict=True)
    ]
    headers, fields = head.headers.copy(), fields.copy()  # those of `head` go to filters, who may change them
    for place, name, _, _ in values:
        headers[place] = (name, b"")
        fields[name] = b""
    return KnownHead(head.again(headers, fields, 0, ""), raw[: offsets[0][0]], values)
