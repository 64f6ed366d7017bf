"""The heads of one connection. A client repeats itself, so the next head is held against the last one.

From one request to the next a client changes the length of the body and, behind a proxy that serves many, the key. So a
head is remembered as the bytes around these two values. The next one that has the same bytes around its own two means
the same but for them, and only they are read: the length must be digits, the key plain text. Anything else is read line
by line (request_head.py), which is also what tests hold this against.

The key is never compared with the one before it: the time that takes would tell a client of a shared connection how far
it had guessed another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .request_head import CONTENT_LENGTH, LENGTH_DIGITS, NOT_REMEMBERED, HttpRequestHead, read_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .context import EdgeLimits
    from .downstream import Headers, RewritingRules

_TRIES: Final = 3
"""How many heads of a connection are taken for a model of the next ones before it is given up."""
_LARGEST: Final = 4096
_TEXT: Final = bytes(byte if 0x20 <= byte < 0x7F else byte ^ 0xFF for byte in range(256))
"""Leaves text alone, and nothing else."""
_DIGITS: Final = bytes(byte if 0x30 <= byte < 0x3A else byte ^ 0xFF for byte in range(256))


class HeadReader:
    """Reads the heads of one connection, in their order."""

    __slots__ = ("_first", "_tries", "known")

    def __init__(self) -> None:
        self._first = True
        self.known: KnownHead | None = None
        self._tries = _TRIES

    def read(self, data: bytes, limits: EdgeLimits, client: str) -> tuple[HttpRequestHead, int] | None:
        """See `read_head`. `client` is the connection's, and so the same each time."""
        known = self.known
        if known is not None:
            again = known.read(data, limits.head_bytes)
            if again is not None:
                return again
        found = read_head(data, limits, client)
        if found is not None:
            if self._first:
                self._first = False  # many connections carry but one
            elif self._tries:
                self._tries -= 1
                self.known = known_head(found[0], data[: found[1]])
        return found


class RepeatedHttpHead(HttpRequestHead):
    """A head like the one before it. What is true of each of them is said of the class, once."""

    __slots__ = ()

    http_version = "1.1"
    scheme = "http"
    keep_alive = True
    expects_continue = websocket = names_fields = False
    is_plain = True


class Repeated:
    """Fields that come again and again: `fields`, but for the values at `places`. A `RepeatedHead`."""

    __slots__ = ("_fields", "_places", "_rewritten", "changing", "face", "faces", "fewer", "guard", "upward")

    def __init__(self, fields: Headers, places: Sequence[int]) -> None:
        self._fields = fields
        """Empty values where they change."""
        self._places = places
        self._rewritten: tuple[RewritingRules, Repeated, list[tuple[int, int, bytes | None]]] | None = None
        """By whom, to what, and which place went where, under another name."""
        self.fewer = 0
        self.changing = frozenset(fields[place][0] for place in places)
        self.guard: object = None
        self.faces: object = None
        self.face: Any = None
        self.upward: Any = None

    def rewrite(self, headers: Headers, rules: RewritingRules) -> tuple[Headers, Repeated]:
        """See `RepeatedHead`."""
        made = self._rewritten
        if made is None or made[0] is not rules:
            made = self._rewritten = self._rewrite(rules)
        _, after, moves = made
        fields = after._fields.copy()
        for old, new, name in moves:
            fields[new] = headers[old] if name is None else (name, headers[old][1])
        return fields, after

    def _rewrite(self, rules: RewritingRules) -> tuple[RewritingRules, Repeated, list[tuple[int, int, bytes | None]]]:
        """Values that change are followed by marks, which no field can hold."""
        marks = {b"\0%d" % place: place for place in self._places}
        fields = self._fields.copy()
        for mark, place in marks.items():
            fields[place] = (fields[place][0], mark)
        fields = rules.apply(fields)
        moves: list[tuple[int, int, bytes | None]] = []
        for place, (name, value) in enumerate(fields):
            old = marks.get(value)
            if old is not None:
                fields[place] = (name, b"")
                moves.append((old, place, None if name == self._fields[old][0] else name))
        after = Repeated(fields, [place for _, place, _ in moves])
        after.fewer = len(self._fields) - len(fields)
        return rules, after, moves


class KnownHead(Repeated):
    """A head as `before`, and then each value that may be another, with the bytes that follow it: field line after
    field line up to the next value or the end of the head."""

    __slots__ = ("_before", "_by_name", "_client", "_method", "_path", "_query", "_start", "_target", "_values")

    def __init__(
        self, head: HttpRequestHead, headers: Headers, before: bytes, values: list[tuple[int, bytes, bytes, bytes, int]]
    ) -> None:
        super().__init__(headers, [place for place, *_ in values])
        self._method = head.method
        self._target = head.target
        self._path = head.path
        self._query = head.query
        self._client = head.client
        self._by_name = dict(headers)
        self._before = before
        self._start = len(before)
        self._values = values
        """Place in the head's fields, name, what leaves such a value as it is, what follows, and how long that is."""

    def read(self, data: bytes, limit: int) -> tuple[HttpRequestHead, int] | None:
        """The head at the start of `data` and where it ends; None where it is another, or longer than `limit`. Only
        its end can be one: there is none in what was there before, and a value holds no line end."""
        if not data.startswith(self._before):
            return None
        headers, fields = self._fields.copy(), self._by_name.copy()
        at = self._start
        for place, name, table, following, size in self._values:
            stop = data.find(b"\r\n", at)
            value = data[at:stop]
            if not data.startswith(following, stop) or not value or value.translate(table).strip() != value:
                return None
            headers[place] = (name, value)
            fields[name] = value
            at = stop + size
        length = fields[CONTENT_LENGTH]
        if at > limit or len(length) > LENGTH_DIGITS:
            return None
        head = _new(RepeatedHttpHead)
        head.method = self._method
        head.target = self._target
        head.path = self._path
        head.query = self._query
        head.client = self._client
        head.headers = headers
        head.came = headers.copy()
        head.fields = fields
        head.header = fields.get
        head.length = int(length)
        head.known = self
        return head, at


_new = object.__new__


def known_head(head: HttpRequestHead, raw: bytes) -> KnownHead | None:
    """What to hold the next head against; None for a head that does not come again, or not so simply: two keys, an
    upgrade, a target that is more than a path."""
    fields = head.fields
    changing = [CONTENT_LENGTH, *(name for name in fields if name in NOT_REMEMBERED)]
    asks_nothing = not (head.expects_continue or head.names_fields or head.websocket or head.method == "HEAD")
    simple = head.length >= 0 and head.keep_alive and head.http_version == "1.1" and asks_nothing
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
        (places[name], name, _DIGITS if name is CONTENT_LENGTH else _TEXT, raw[stop:until], until - stop)
        for (_, stop, name), until in zip(offsets, ends, strict=True)
    ]
    headers = head.headers.copy()  # those of `head` go to filters, who may change them
    for place, name, *_ in values:
        headers[place] = (name, b"")
    return KnownHead(head, headers, raw[: offsets[0][0]], values)
