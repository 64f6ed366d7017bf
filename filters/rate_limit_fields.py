"""`x-ratelimit-*`, as OpenAI writes them: how much of a limit is left, and when it is whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..proxy.headers import LONG_NAME

if TYPE_CHECKING:
    from ..proxy.edge.downstream import Headers
    from .stores.rules import Report

PREFIX: Final = b"x-ratelimit-"
LIMIT: Final = PREFIX + b"limit-%b"
REMAINING: Final = PREFIX + b"remaining-%b"
RESET: Final = PREFIX + b"reset-%b"
MOST_NAMES: Final = 1024
_SECONDS: Final = (b"0s", *[b"%ds" % n for n in range(1, 60)], b"1m0s")
"""What most windows have left."""


class _Kept(dict[bytes, bool]):
    """Of the fields of an answer, by name: whether it says nothing of limits. Their names are few, and come again."""

    def __missing__(self, name: bytes) -> bool:
        if len(self) >= MOST_NAMES:
            self.clear()
        kept = not name.startswith(PREFIX)
        if len(name) <= LONG_NAME:
            self[name] = kept
        return kept


is_kept: Final = _Kept()


def limit_fields(what: bytes, report: Report, now: int) -> Headers:
    """The three fields of `what` (`requests` or `tokens`) at the time `now`."""
    return [
        (LIMIT % what, b"%d" % report.limit),
        (REMAINING % what, b"%d" % report.left),
        (RESET % what, duration(report.resets_at - now)),
    ]


def duration(microseconds: int) -> bytes:
    """`6m0s`, `1s`, `20ms`: rounded up to a millisecond, below a second, or to a second; `0s` for what is over."""
    if 999_000 < microseconds <= 60_000_000:
        return _SECONDS[-(-microseconds // 1_000_000)]
    if microseconds <= 0:
        return b"0s"
    if microseconds <= 999_000:
        return b"%dms" % -(-microseconds // 1000)
    minutes, seconds = divmod(-(-microseconds // 1_000_000), 60)
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, seconds) if hours else b"%dm%ds" % (minutes, seconds)
