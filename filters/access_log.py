"""One line of JSON for each exchange, when it is over: for log shippers, beside the ledger.

A line has what the usage row has, under the names of OpenTelemetry where it has one: who, what, which model, which
provider, how long, how much. Never a body, a query, a header's value but the user agent, or a key. The values that are
chosen become one struct, encoded at once; the file is a thread's (line_writer.py), so that a slow disk drops lines,
which is counted, and never holds up or fails an exchange.

Nearly every line is made of the record that the exchange has left in the ledger, which has been read and rounded
already (`_FROM_RECORD`). Where there is none, or where a field is chosen that it does not have, a few readers that take
many fields each go through the exchange itself (`_compiled`). Both give the same.

Written by `on_record` of exchanges that reached this filter: what `auth` turns away never becomes one.

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import finalize

import msgspec
from msgspec.structs import astuple, fields

from ..proxy.accounting.record import Done, encode
from ..proxy.filter import Filter
from .line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..config import AccessLogConfig
    from ..proxy.exchange import Exchange

    Values = tuple[Any, ...]
    Reader = Callable[[Exchange, float], Values]


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
        self._simple = not self._min_status and self._share >= 1 and set(config.fields) <= set(_FROM_RECORD)
        """Every exchange has a line, of what its record has."""
        self._row = _struct(config.fields, _MISSING)
        self._chosen = _chosen(config.fields, _FROM_RECORD)
        self._line = _compiled(config.fields)
        self._writer = LineWriter(config.path, config.queue)
        finalize(self, self._writer.end)

    def on_record(self, ex: Exchange, record: Done | None) -> None:
        """Put the line into the queue."""
        if self._simple and record is not None and record.usage_source != "none":
            head = ex.head
            values = (*astuple(record), _time(record.at), head.method, head.path, head.client)
            line = encode(self._row(*self._chosen(values)))
        elif ex.status >= self._min_status and (self._share >= 1 or self._rng.random() < self._share):
            line = encode(self._line(ex, self._now()))
        else:
            return
        if self._writer.put(line):
            self.logged += 1
        else:
            self.dropped += 1
        self.lost = self._writer.lost

    def close(self) -> None:
        """Write what waits, for at most a second; nothing is logged afterwards."""
        self._writer.close()


def _struct(fields: Sequence[str], defaults: Mapping[str, str | None]) -> type[msgspec.Struct]:
    """A line: `fields` in their order, without those that have their default."""
    names = {f"field{at}": name for at, name in enumerate(fields)}
    given = [(at, Any, defaults.get(name)) for at, name in names.items()]
    return msgspec.defstruct("Line", given, rename=names, omit_defaults=True, gc=False)


def _chosen(fields: Sequence[str], given: Sequence[str]) -> Callable[[Values], Values]:
    """What takes the values of `fields` out of those that are given."""
    places = [given.index(name) for name in fields if name in given]
    if places == [*range(len(places))]:
        return itemgetter(slice(len(places)))
    return itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))


def _compiled(fields: Sequence[str]) -> Callable[[Exchange, float], msgspec.Struct]:
    """What makes a line of any exchange that is over at a monotonic time."""
    made = _struct(fields, {})
    readers = tuple(dict.fromkeys(_READERS[name] for name in fields))
    chosen = _chosen(fields, [name for read in readers for name in _FIELDS[read]])

    def line(ex: Exchange, now: float) -> msgspec.Struct:
        values: Values = ()
        for read in readers:
            values += read(ex, now)
        return made(*chosen(values))

    return line


_IN_RECORD: Mapping[str, str] = {
    "id": "headgate.request_id", "status": "http.response.status_code", "outcome": "headgate.outcome",
    "error_code": "error.type", "key": "headgate.key", "team": "headgate.team", "owner": "headgate.owner",
    "endpoint": "gen_ai.operation.name", "route": "headgate.route", "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name", "upstream_model": "gen_ai.response.model",
    "upstream_request_id": "headgate.upstream_request_id", "client_request_id": "headgate.client_request_id",
    "stream": "headgate.stream", "attempts": "headgate.attempts", "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens", "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens", "usage_source": "headgate.usage_source",
    "service_tier": "headgate.service_tier", "cost_usd": "headgate.cost_usd", "cost_source": "headgate.cost_source",
    "duration_ms": "headgate.duration_ms", "ttft_ms": "headgate.first_token_ms", "upstream_ms": "headgate.upstream_ms",
    "overhead_ms": "headgate.overhead_ms", "bytes_in": "http.request.body.size", "bytes_out": "http.response.body.size",
    "config": "headgate.config", "cache": "headgate.cache",
}  # fmt: skip
"""Fields of a record, under their names in a line."""

_FROM_RECORD = (
    *(_IN_RECORD.get(name, "") for name in Done.__struct_fields__),
    "start_time", "http.request.method", "url.path", "client.address",
)  # fmt: skip
"""What is there for a line of a record: all that the record has, and what is added to it. What has no name is of no use
here."""

_MISSING: Mapping[str, str | None] = {
    **dict.fromkeys(_FROM_RECORD, ""),
    **{_IN_RECORD[field.name]: None for field in fields(Done) if field.default is None},
}
"""How a record says that it does not have something. A number that it has is neither."""


def _own(ex: Exchange, now: float) -> Values:
    head, principal, error, route, facts, first_token, cache = (
        ex.head, ex.principal, ex.error, ex.route, ex.facts, ex.first_token_at, ex.cache,
    )  # fmt: skip
    started, client_id = ex.started, ex.client_request_id
    return (
        _time(ex.wall), ex.id, client_id.decode("latin-1") if client_id else None, head.method, head.path,
        ex.bytes_in, ex.bytes_out, error.code if error is not None else None, ex.outcome, principal.name,
        principal.team, principal.owner, route.name if route is not None else None,
        facts is not None and facts.stream, len(ex.attempts), int((now - started) * 1e6 + 0.5) / 1000,
        int((first_token - started) * 1e6 + 0.5) / 1000 if first_token is not None else None, ex.face.name,
        ex.model or None, ex.cost_usd, ex.cost_source or None, cache.verdict if cache is not None else None,
        ex.graph.version,
    )  # fmt: skip


def _provider(ex: Exchange, now: float) -> Values:
    attempt = ex.attempt
    if attempt is None:
        return (None,) * 5
    target, spent = attempt.target, ex.upstream_seconds(now)
    own = now - ex.started - spent
    return (
        attempt.request_id or None, int(spent * 1e6 + 0.5) / 1000, int(own * 1e6 + 0.5) / 1000 if own > 0.0 else 0.0,
        target.cluster.name, target.model or None,
    )  # fmt: skip


def _usage(ex: Exchange, _: float) -> Values:
    usage = ex.usage
    if usage is None or usage.source == "none":
        return (None, None, None, None, None, "none", usage.service_tier if usage is not None else None)
    return (
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.cache_write_tokens,
        usage.reasoning_tokens, usage.source, usage.service_tier,
    )  # fmt: skip


def _status(ex: Exchange, _: float) -> Values:
    return (ex.status,)


def _client(ex: Exchange, _: float) -> Values:
    agent = ex.head.header(b"user-agent")
    return (ex.head.client or None, agent.decode("latin-1") if agent else None)


def _process(ex: Exchange, _: float) -> Values:
    del ex
    return (os.getpid(),)


_FIELDS: Mapping[Reader, tuple[str, ...]] = {
    _own: (
        "start_time", "headgate.request_id", "headgate.client_request_id", "http.request.method", "url.path",
        "http.request.body.size", "http.response.body.size", "error.type", "headgate.outcome", "headgate.key",
        "headgate.team", "headgate.owner", "headgate.route", "headgate.stream", "headgate.attempts",
        "headgate.duration_ms", "headgate.first_token_ms", "gen_ai.operation.name", "gen_ai.request.model",
        "headgate.cost_usd", "headgate.cost_source", "headgate.cache", "headgate.config",
    ),
    _provider: (
        "headgate.upstream_request_id", "headgate.upstream_ms", "headgate.overhead_ms", "gen_ai.provider.name",
        "gen_ai.response.model",
    ),
    _usage: (
        "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.reasoning.output_tokens", "headgate.usage_source",
        "headgate.service_tier",
    ),
    _status: ("http.response.status_code",),
    _client: ("client.address", "user_agent.original"),
    _process: ("process.pid",),
}  # fmt: skip
"""What each reader gives, in its order. Times are milliseconds to three places; None stands for what is not known."""

_READERS: Mapping[str, Reader] = {name: read for read, names in _FIELDS.items() for name in names}


def _time(wall: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return _millisecond(int(wall * 1e6 + 0.5) // 1000)


@lru_cache(maxsize=16)
def _millisecond(millis: int) -> str:
    return f"{_second(millis // 1000)}.{millis % 1000:03d}Z"


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
