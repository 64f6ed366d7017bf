"""GET /admin/usage?by=model&since=7d: what the ledger says, with the dearest first."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar, cast

import anyio
from anyio import to_thread

from ...config.units import parse_duration
from ...proxy.errors import InvalidRequestError, OverloadError
from ..events.report import GROUPINGS, as_json, usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..events.report import By

T = TypeVar("T")

READ_SECONDS = 10.0
PARAMETERS = frozenset(("by", "since"))


async def usage_report(store: Path, query: Mapping[str, str], now: float, limiter: anyio.CapacityLimiter) -> bytes:
    """The body, read in a thread. Raises InvalidRequestError, and OverloadError while the store cannot be read."""
    by, since = read_query(query, now)
    return as_json(await read_ledger(lambda: usage(store, by, since), limiter) or [], by)


async def read_ledger(read: Callable[[], T], limiter: anyio.CapacityLimiter) -> T | None:
    """What `read` gives, in a thread; None where there is no ledger yet. Raises OverloadError while it cannot be
    read."""
    try:
        with anyio.fail_after(READ_SECONDS):
            return await to_thread.run_sync(read, abandon_on_cancel=True, limiter=limiter)
    except FileNotFoundError:
        return None
    except (sqlite3.Error, TimeoutError) as error:
        raise OverloadError(
            "The event store cannot be read now. Try again.", retry_after=5.0, detail=repr(error)
        ) from error


def read_query(query: Mapping[str, str], now: float) -> tuple[By, float | None]:
    """The grouping, `key` by default, and the Unix time to begin at, None for everything."""
    unknown = sorted(query.keys() - PARAMETERS)
    if unknown:
        raise InvalidRequestError("Only 'by' and 'since' are known here.", param=unknown[0][:64])
    by = query.get("by", "key")
    if by not in GROUPINGS:
        raise InvalidRequestError(f"'by' must be one of {', '.join(GROUPINGS)}.", param="by")
    return cast("By", by), read_since(query["since"], now) if "since" in query else None


def read_since(text: str, now: float) -> float:
    """Unix seconds from an age (`90m`, `7d`), a day or a time (`2026-01-31`, `2026-01-31T12:00:00Z`; UTC where it names
    no zone), or Unix seconds. Raises InvalidRequestError."""
    try:
        return now - parse_duration(text).total_seconds()
    except ValueError:
        return _read_moment(text)


def _read_moment(text: str) -> float:
    try:
        if text.isascii() and text.isdigit():
            return float(text[:12])
        moment = datetime.fromisoformat(text[:64])
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            "'since' must be an age like 7d, a day like 2026-01-31, or Unix seconds.", param="since"
        ) from None
