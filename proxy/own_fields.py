"""The `x-headgate-*` fields, both ways: what a caller may ask of the gateway, and what it says on every answer of its
ids and choices, of the times, and of what the answer used.

One place for providers' answers and for our own, so that an error tells as much as a success. What the head of a stream
cannot know yet comes as one comment block before its terminal event: comments, because every SDK skips them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .accounting.prices import format_usd
from .cache_note import COST_SOURCE
from .decisions import explain
from .errors import InvalidRequestError

if TYPE_CHECKING:
    from .dialect import StreamReader
    from .edge.downstream import Headers
    from .exchange import Exchange
    from .run import Run

CONFIG_ORDER = (b"x-headgate-strategy", b"config-order")
OURS = b"x-headgate-"
"""How the names of all our fields begin."""
EXPLAIN = b"x-headgate-explain"
ROLES = frozenset(("viewer", "admin"))
THIS_MACHINE = frozenset(("::1", "::ffff:127.0.0.1"))
MAX_TIMEOUT_MS = 86_400_000
_encode = msgspec.json.encode


def read_wishes(ex: Exchange) -> None:
    """What the caller asks of the gateway itself. Raises InvalidRequestError."""
    timeout = ex.head.header(b"x-headgate-timeout-ms")
    if timeout is not None:
        if not (timeout.isdigit() and len(timeout) < 10 and 0 < int(timeout) <= MAX_TIMEOUT_MS):
            raise InvalidRequestError("x-headgate-timeout-ms must be a whole number of milliseconds from 1 to a day.")
        ex.deadline = ex.started + int(timeout) / 1000
    provider = ex.head.header(b"x-headgate-provider")
    if provider is not None:
        name = provider.decode("latin-1")
        if name not in ex.graph.clusters:
            raise InvalidRequestError("x-headgate-provider: there is no provider of this name.")
        ex.provider = name
    region = ex.head.header(b"x-headgate-region")
    if region is not None:
        ex.region = region.decode("latin-1")


def own_fields(ex: Exchange, now: float) -> Headers:
    """The `x-headgate-*` fields and `server-timing`, as far as they are known at `now`.

    Times are milliseconds so far: in all, at providers (all attempts), and the difference, which is ours.
    """
    id_ = ex.id.encode()
    fields = [
        (b"x-headgate-request-id", id_),
        (b"x-headgate-decision-id", id_),
        ex.graph.field,
        (b"x-headgate-attempts", b"%d" % len(ex.attempts)),
    ]
    if ex.route is not None:
        fields.append(ex.route.field)
    attempt = ex.attempt
    if attempt is not None:
        fields += attempt.target.fields
        fields.append(CONFIG_ORDER if ex.scorer is None else (b"x-headgate-strategy", ex.scorer.name.encode()))
    usage = ex.usage
    if usage is not None and usage.source != "none":
        fields += (
            (b"x-headgate-tokens-prompt", b"%d" % usage.prompt_tokens),
            (b"x-headgate-tokens-completion", b"%d" % usage.completion_tokens),
        )
        if ex.cost_usd is not None:
            fields.append((b"x-headgate-cost-usd", format_usd(ex.cost_usd).encode()))
    if ex.cache is not None:
        fields += ex.cache.fields
        if ex.cost_source == COST_SOURCE:
            fields.append((b"x-headgate-cost-usd", b"0"))
    total, spent = now - ex.started, ex.upstream_seconds(now)
    upstream, own = b"%.1f" % (spent * 1000), b"%.1f" % ((total - spent) * 1000 if total > spent else 0.0)
    timing = b"upstream;dur=%b, gateway;dur=%b" % (upstream, own)
    if ex.timings is not None and may_explain(ex):
        explanation, timed = explain(ex, now)
        fields.append((EXPLAIN, explanation))
        timing += timed
    fields += (
        (b"x-headgate-latency-ms", b"%.1f" % (total * 1000)),
        (b"x-headgate-upstream-ms", upstream),
        (b"x-headgate-overhead-ms", own),
        (b"server-timing", timing),
    )
    return fields


def may_explain(ex: Exchange) -> bool:
    """Whether the caller may see decisions: a key with a role of the admin listener, or, where there are no keys,
    anybody on this machine."""
    if ex.graph.auth_open:
        return ex.head.client in THIS_MACHINE or ex.head.client.startswith("127.")
    return not ex.principal.roles.isdisjoint(ROLES)


def request_id(ex: Exchange) -> tuple[bytes, bytes]:
    """`x-request-id` of an answer to which no provider gave one: the client's own, or ours."""
    return (b"x-request-id", ex.client_request_id or ex.id.encode())


def wants_comment(ex: Exchange) -> bool:
    """Unless the caller switched it off."""
    wish = ex.head.header(b"x-headgate-stream-metadata")
    return wish is None or wish.lower() != b"off"


def stream_comment(run: Run, reader: StreamReader) -> bytes:
    """`: headgate {…}`, once the last of a stream's text and usage is known; settles what it used."""
    ex, engine = run.ex, run.engine
    engine.ledger.settle(ex, reader.facts())
    facts: dict[str, object] = {
        "request_id": ex.id,
        "latency_ms": round((engine.clock.monotonic() - ex.started) * 1000, 1),
    }
    if ex.first_token_at is not None:
        facts["ttft_ms"] = round((ex.first_token_at - ex.started) * 1000, 1)
    usage = ex.usage
    if usage is not None and usage.source != "none":
        facts["tokens_prompt"] = usage.prompt_tokens
        facts["tokens_completion"] = usage.completion_tokens
        facts["usage"] = usage.source
    if ex.cost_usd is not None:
        facts["cost_usd"] = ex.cost_usd
    return b": headgate %b\n\n" % _encode(facts)
