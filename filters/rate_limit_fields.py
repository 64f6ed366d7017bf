"""`x-ratelimit-*`, as OpenAI writes them: how much of a limit is left, and when it is whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..proxy.edge.downstream import Headers
    from .stores.rules import Report

PREFIX = b"x-ratelimit-"


def limit_fields(what: bytes, report: Report, now: int) -> Headers:
    """The three fields of `what` (`requests` or `tokens`) at the time `now`."""
    return [
        (b"x-ratelimit-limit-%b" % what, b"%d" % report.limit),
        (b"x-ratelimit-remaining-%b" % what, b"%d" % report.left),
        (b"x-ratelimit-reset-%b" % what, duration(report.resets_at - now)),
    ]


def duration(microseconds: int) -> bytes:
    """`6m0s`, `1s`, `20ms`: rounded up to a millisecond, below a second, or to a second; `0s` for what is over."""
    if microseconds <= 0:
        return b"0s"
    if microseconds <= 999_000:
        return b"%dms" % -(-microseconds // 1000)
    seconds = -(-microseconds // 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
