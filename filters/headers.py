"""Which header fields pass, beyond what the gateway decides by itself.

Rules are compiled into one verdict a name, remembered, since the same twenty names come with every request. What passes
may then get another name, and last come the values that are set. In each direction: forward, deny, rename, set.

What a client names in `connection` is dropped first, as it would be on its way up: a client must not be able to strip
what is set here by naming it there. Fields that are not the operator's to change (config/headers.py) stay in place, and
keep the gateway's own rules (proxy/headers.py).

Not here: answers that never were an exchange (an unknown path) and the 500 after a bug of ours; they pass no filter.

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from ..config.headers import is_kept
from ..proxy.filter import Filter
from ..proxy.headers import LONG_NAME, named_by_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config import HeaderRules, HeadersConfig
    from ..proxy.edge.downstream import Headers as Fields
    from ..proxy.exchange import Exchange
    from ..proxy.upstream.call import ResponseHead

_REMEMBERED = 4096
_HEADS = 256
"""Heads of answers, by the names in them, that are known to pass whole."""
_MOST_NAMES = 64
_name = itemgetter(0)


class Headers(Filter):
    """Drops, renames and sets fields on their way up and down; counts the fields it has dropped."""

    reads_body = False
    after = ("auth",)

    def __init__(self, config: HeadersConfig) -> None:
        self.name = "headers"
        self.request_dropped = 0
        self.response_dropped = 0
        self._whole: set[tuple[bytes, ...]] = set()
        self._up = _compiled(config.request, partial(is_kept, direction="request"))
        self._down = _compiled(config.response, partial(is_kept, direction="response"))

    def on_request(self, ex: Exchange) -> None:
        """Rewrite what will go up."""
        up = self._up
        if up is not None:
            head = ex.head
            fields, known = head.headers, head.known
            if known is not None and fields == head.came:
                head.headers, head.known = rewritten, after = known.rewrite(fields, up)
                head.came = rewritten.copy()
                self.request_dropped += after.fewer + up.added
            else:
                fields = _without_hop(fields) if head.names_fields else fields
                head.headers = rewritten = up.apply(fields)
                self.request_dropped += len(fields) - len(rewritten) + up.added

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """Rewrite what goes down."""
        down = self._down
        if down is not None:
            fields = head.headers
            names = tuple(map(_name, fields))
            if names in self._whole:
                fields += down.set
            else:
                head.headers = rewritten = down.apply(fields)
                dropped = len(fields) - len(rewritten) + down.added
                self.response_dropped += dropped
                if not dropped and len(self._whole) < _HEADS and rewritten == fields + down.set and _is_plain(names):
                    self._whole.add(names)


class _Rules(dict[bytes, bool]):
    """name -> whether it passes, be it under another name. Filled on demand and bounded, as names come from outside."""

    def __init__(self, rules: HeaderRules, kept: Callable[[str], bool]) -> None:
        super().__init__()
        self._kept = kept
        self._forward = rules.forward
        self._deny = rules.deny
        self._renamed = {old.encode(): new.encode() for old, new in rules.rename.items()}
        self._made = frozenset((*rules.rename.values(), *rules.set))
        self.set = [(name.encode(), value.encode()) for name, value in rules.set.items()]
        self.added = len(self.set)

    def apply(self, fields: Fields) -> Fields:
        """The fields that pass, under their new names, and those that are set."""
        passing = [field for field in fields if self[field[0]]]
        renamed = self._renamed
        if renamed:
            passing = [(renamed[field[0]], field[1]) if field[0] in renamed else field for field in passing]
        passing += self.set
        return passing

    def __missing__(self, name: bytes) -> bool:
        passes = self._judge(name.decode("latin-1"))
        if len(self) < _REMEMBERED and len(name) <= LONG_NAME:
            self[name] = passes
        return passes

    def _judge(self, name: str) -> bool:
        if self._kept(name):
            return True
        if self._forward is not None and not _matches(name, self._forward):
            return False
        if _matches(name, self._deny):
            return False
        return name.encode("latin-1") in self._renamed or name not in self._made


def _compiled(rules: HeaderRules, kept: Callable[[str], bool]) -> _Rules | None:
    """None where nothing is to be done."""
    if rules.forward is None and not (rules.deny or rules.rename or rules.set):
        return None
    return _Rules(rules, kept)


def _is_plain(names: tuple[bytes, ...]) -> bool:
    """Few and short enough to be remembered."""
    return len(names) <= _MOST_NAMES and max(map(len, names), default=0) <= LONG_NAME


def _without_hop(fields: Fields) -> Fields:
    """Without what `connection` names, and then without `connection`, so that it names nothing that is set."""
    named = named_by_connection(fields)
    if not named:
        return fields
    return [
        field
        for field in fields
        if field[0] != b"connection" and (field[0] not in named or is_kept(field[0].decode("latin-1"), "request"))
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in patterns)
