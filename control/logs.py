"""Operational events on stderr: one JSON line each, or readable text on a terminal.

Exactly one line per event, whatever is in it: line ends and control characters of a field arrive escaped. What a field
may hold is bounded. The access line of an exchange is not written here: it is the record in the ledger
(proxy/accounting).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIELD_CHARACTERS = 2048
LEVELS = ("debug", "info", "warning", "error")


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Set up structlog for the process. `json` None: text where stderr is a terminal, JSON elsewhere."""
    as_json = not sys.stderr.isatty() if json is None else json
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cut,
    ]
    processors.append(
        structlog.processors.JSONRenderer(ensure_ascii=True)
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _cut(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Bound every text; a traceback keeps its end, where the cause is."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > FIELD_CHARACTERS:
            event[name] = value[-FIELD_CHARACTERS:] if name == "exception" else value[:FIELD_CHARACTERS] + "…"
    return event
