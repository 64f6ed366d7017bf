"""Operational events on stderr: one JSON line each, or readable text on a terminal.

Exactly one line per event, whatever is in it: line ends and control characters of a field arrive escaped, what a field
may hold is bounded, and what looks like a key is masked. What other packages say through `logging` comes the same way.
A line that cannot be written is lost and counted; it never disturbs who wrote it.

The access line of an exchange is not written here: it is the record in the ledger (proxy/accounting).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from math import isfinite
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FIELD_CHARACTERS = 2048
EXACT = 2**53
"""Whole numbers beyond it are not exact for every reader of JSON."""
_KEY = re.compile(r"\b(bearer\s+|sk-|hg-)[\w.~+/=-]{8,}", re.IGNORECASE)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_BUT_LINE_ENDS = {code: text for code, text in _CONTROLS.items() if code != 0x0A}


class Lines:
    """Where the lines go. `lost` counts those that a full disk or a reader that is gone did not take."""

    def __init__(self) -> None:
        self.lost = 0

    def __call__(self, *_: object) -> Lines:
        """Every logger writes to the same place."""
        return self

    def msg(self, line: str) -> None:
        """Write one."""
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            self.lost += 1

    debug = info = warning = error = msg


lines = Lines()
log = structlog.get_logger("headgate")


def configure(level: str = "info", *, json_lines: bool | None = None) -> None:
    """Set up logging for the process. `json_lines` None: text where stderr is a terminal, JSON elsewhere."""
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _tame if as_json else _tame_for_terminals,
            _as_json
            if as_json
            else structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lines,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_FromLogging()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _FromLogging(logging.Handler):
    """Warnings, and what asyncio says about tasks."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit, which is not worth more than saying so
            message = f"{record.msg!r} with arguments that do not fit"
        say = log.error if record.levelno >= logging.ERROR else log.warning
        say("python_log", logger=record.name, message=message, exc_info=record.exc_info)


def _tame(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Every field a short text, a number, a truth or nothing; when, how bad and what come first."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {name: _plain(name, value) for name, value in {**first, **event}.items()}


def _tame_for_terminals(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No field may move the cursor; only a traceback may end lines."""
    return {
        name: _printable(value, _BUT_LINE_ENDS if name == "exception" else _CONTROLS)
        for name, value in _tame(logger, method, event).items()
    }


def _printable(value: object, escapes: Mapping[int, str]) -> object:
    if not isinstance(value, str):
        return value
    return value.translate(escapes).encode("utf-8", "backslashreplace").decode()


def _plain(name: str, value: object) -> str | int | float | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < EXACT:
        return int(value)
    if isinstance(value, float) and isfinite(value):
        return float(value)
    text = _KEY.sub(r"\1***", value if isinstance(value, str) else _shown(value))
    if len(text) <= FIELD_CHARACTERS:
        return text
    # A traceback keeps its end, where the cause is.
    return "…" + text[-FIELD_CHARACTERS:] if name == "exception" else text[:FIELD_CHARACTERS] + "…"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _as_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=True)
