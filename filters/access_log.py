"""One line of JSON for each exchange, when it is over: for log shippers, beside the ledger.

A line has what the usage row has, under the names of OpenTelemetry where it has one: who, what, which model, which
provider, how long, how much. Never a body, a query, a header's value but the user agent, or a key. The chosen fields
are compiled into a list of readers; the file is a thread's (line_writer.py), so that a slow disk drops lines, which is
counted, and never holds up or fails an exchange.

Written by `on_done` of exchanges that reached this filter: what `auth` turns away never becomes one.

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import finalize

from ..proxy.accounting.record import encode_fields
from ..proxy.accounting.usage import NO_USAGE
from ..proxy.filter import Filter
from .line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config import AccessLogConfig
    from ..proxy.accounting.usage import Usage
    from ..proxy.attempt import Attempt
    from ..proxy.exchange import Exchange


class AccessLog(Filter):
    """Counts the lines it has handed on (`logged`), those for which the queue had no room (`dropped`), and those the
    file did not take (`lost`, as of the last exchange). What waits is written when the filter is let go of: at the end
    of the process, or after a reload without it."""

    reads_body = False
    after = ("auth",)

    def __init__(self, config: AccessLogConfig, *, now: Callable[[], float], rng: Random | None = None) -> None:
        self.name = "access_log"
        self.logged = 0
        self.dropped = 0
        self.lost = 0
        self._now = now
        self._rng = rng or Random()  # noqa: S311 - a sample, not a secret
        self._min_status = config.min_status
        self._share = config.sample_percent / 100
        self._readers: list[tuple[str, Callable[[_Seen], Any]]] = [(name, _READERS[name]) for name in config.fields]
        self._writer = LineWriter(config.path, config.queue)
        finalize(self, self._writer.end)

    def on_done(self, ex: Exchange) -> None:
        """Put the line into the queue."""
        if ex.status < self._min_status or (self._share < 1 and self._rng.random() >= self._share):
            return
        seen = _Seen(ex, self._now())
        fields = {name: value for name, read in self._readers if (value := read(seen)) is not None}
        if self._writer.put(encode_fields(fields)):
            self.logged += 1
        else:
            self.dropped += 1
        self.lost = self._writer.lost

    def close(self) -> None:
        """Write what waits, for at most a second; nothing is logged afterwards."""
        self._writer.close()


class _Seen:
    """An exchange at its end, and what several fields are read from."""

    __slots__ = ("attempt", "ex", "now", "usage")

    def __init__(self, ex: Exchange, now: float) -> None:
        self.ex = ex
        self.now = now
        self.attempt: Attempt | None = ex.attempt
        self.usage: Usage = ex.usage or NO_USAGE


def _ms(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1000


def _start(seen: _Seen) -> str:
    return datetime.fromtimestamp(seen.ex.wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _upstream(seen: _Seen) -> float | None:
    return _ms(seen.ex.upstream_seconds(seen.now)) if seen.attempt is not None else None


def _overhead(seen: _Seen) -> float | None:
    if seen.attempt is None:
        return None
    return _ms(max(0.0, seen.now - seen.ex.started - seen.ex.upstream_seconds(seen.now)))


def _first_token(seen: _Seen) -> float | None:
    at = seen.ex.first_token_at
    return _ms(at - seen.ex.started) if at is not None else None


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None


def _tokens(read: Callable[[Usage], int]) -> Callable[[_Seen], int | None]:
    return lambda seen: read(seen.usage) if seen.usage.source != "none" else None


_READERS: Mapping[str, Callable[[_Seen], Any]] = {
    "start_time": _start,
    "headgate.request_id": lambda seen: seen.ex.id,
    "headgate.client_request_id": lambda seen: _text(seen.ex.client_request_id),
    "headgate.upstream_request_id": lambda seen: (seen.attempt.request_id or None) if seen.attempt else None,
    "http.request.method": lambda seen: seen.ex.head.method,
    "url.path": lambda seen: seen.ex.head.path,
    "http.response.status_code": lambda seen: seen.ex.status,
    "http.request.body.size": lambda seen: seen.ex.bytes_in,
    "http.response.body.size": lambda seen: seen.ex.bytes_out,
    "client.address": lambda seen: seen.ex.head.client or None,
    "user_agent.original": lambda seen: _text(seen.ex.head.header(b"user-agent")),
    "error.type": lambda seen: seen.ex.error.code if seen.ex.error is not None else None,
    "headgate.outcome": lambda seen: seen.ex.outcome,
    "headgate.key": lambda seen: seen.ex.principal.name,
    "headgate.team": lambda seen: seen.ex.principal.team,
    "headgate.owner": lambda seen: seen.ex.principal.owner,
    "headgate.route": lambda seen: seen.ex.route.name if seen.ex.route is not None else None,
    "headgate.stream": lambda seen: seen.ex.facts is not None and seen.ex.facts.stream,
    "headgate.attempts": lambda seen: len(seen.ex.attempts),
    "headgate.duration_ms": lambda seen: _ms(seen.now - seen.ex.started),
    "headgate.upstream_ms": _upstream,
    "headgate.overhead_ms": _overhead,
    "headgate.first_token_ms": _first_token,
    "gen_ai.operation.name": lambda seen: seen.ex.face.name,
    "gen_ai.provider.name": lambda seen: seen.attempt.target.cluster.name if seen.attempt else None,
    "gen_ai.request.model": lambda seen: seen.ex.model or None,
    "gen_ai.response.model": lambda seen: (seen.attempt.target.model or None) if seen.attempt else None,
    "gen_ai.usage.input_tokens": _tokens(lambda usage: usage.prompt_tokens),
    "gen_ai.usage.output_tokens": _tokens(lambda usage: usage.completion_tokens),
    "gen_ai.usage.cache_read.input_tokens": _tokens(lambda usage: usage.cached_tokens),
    "gen_ai.usage.cache_creation.input_tokens": _tokens(lambda usage: usage.cache_write_tokens),
    "gen_ai.usage.reasoning.output_tokens": _tokens(lambda usage: usage.reasoning_tokens),
    "headgate.usage_source": lambda seen: seen.usage.source,
    "headgate.service_tier": lambda seen: seen.usage.service_tier,
    "headgate.cost_usd": lambda seen: seen.ex.cost_usd,
    "headgate.cost_source": lambda seen: seen.ex.cost_source or None,
    "headgate.cache": lambda seen: seen.ex.cache.verdict if seen.ex.cache is not None else None,
    "headgate.config": lambda seen: seen.ex.graph.version,
    "process.pid": lambda _: os.getpid(),
}
