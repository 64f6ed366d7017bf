"""Why an exchange went the way it went: facts that are kept of the latest ones, and what they come to when asked.

On the request's path nothing is rendered and nothing is copied that is not plain: at its end an exchange leaves tuples
of strings, numbers and its plan (`facts_of`), which become `Facts` when somebody asks. The exchange itself is not kept,
so neither are its bodies, its headers or any secret; of an error its code and the message that the client has read.
Whoever asks pays for the rest.

What is kept is bounded by number: the latest exchanges, the latest of those that failed, of those whose inputs were
read, and of those that `auth` refused, so that neither traffic nor guessing drives out a failure.

Not here: what the state of a candidate was (decision_inputs.py), who may ask (run.py for the header, control/admin for
the rest).
"""

from __future__ import annotations

import json
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from .cache_note import CacheNote
    from .exchange import Exchange
    from .plan import Plan, Target, Vetoed

KEPT: Final = 4096
KEPT_FAILED: Final = 1024
KEPT_SAMPLED: Final = 256
KEPT_UNKNOWN: Final = 256
"""Exchanges of which the facts are kept in a worker: any, those that failed, those with their inputs, and those that
auth refused."""

MAX_FIELD: Final = 4096
"""Bytes of `x-headgate-explain`."""
_MODEL: Final = 256
_MESSAGE: Final = 512
_SHOWN: Final = 16
"""Candidates and attempts of which the header tells."""
_DEL: Final = 0x7F

Timings = list[tuple[int, float]]
"""When each `on_request` began: (position in the chain, monotonic time); -1 is where the last of them was over."""


class AttemptFacts(NamedTuple):
    """Of one attempt; times are monotonic."""

    provider: str
    model: str
    endpoint: str
    key: str
    started: float
    sent_at: float | None
    head_at: float | None
    ended_at: float | None
    status: int
    condition: str
    message: str
    cancelled: bool
    request_id: str


class Facts(NamedTuple):
    """What an exchange leaves, or has come to so far. Times are monotonic but for `wall`."""

    id: str
    wall: float
    started: float
    ended: float
    config: str
    endpoint: str
    key: str
    route: str
    model: str
    filters: tuple[str, ...]
    reached: int
    timings: Timings | None
    status: int
    outcome: str
    code: str
    message: str
    strategy: str
    plan: Plan | None
    overruled: tuple[Vetoed, ...]
    skipped: tuple[Vetoed, ...]
    attempts: tuple[AttemptFacts, ...]
    inputs: dict[str, Any] | None
    cache: CacheNote | None = None
    notes: dict[str, str] | None = None


_NAME = slice(_MODEL)


def facts_of(ex: Exchange, now: float) -> tuple[Any, ...]:
    """What `Facts` are made of, at `now`: plain tuples, because every exchange makes one."""
    attempts: tuple[tuple[Any, ...], ...] = ()
    for made in ex.attempts:
        target, host, key, failure = made.target, made.host, made.credential, made.error
        attempts += (
            (
                target.cluster.name, target.model, made.started, made.sent_at, made.head_at, made.ended_at, made.status,
                made.cancelled, host and host.name, key and key.name, made.request_id[_NAME],
                (failure.condition or failure.code, failure.message[:_MESSAGE]) if failure is not None else None,
            ),
        )  # fmt: skip
    route, error, scorer = ex.route, ex.error, ex.scorer
    return (
        ex.id, ex.wall, ex.started, now, ex.graph.version, ex.face.name, ex.principal.name, ex.reached, ex.timings,
        ex.status, ex.outcome, ex.plan, ex.overruled, ex.skipped, ex.inputs, ex.cache, ex.notes, ex.model[_NAME],
        (route.name, route.chain.names) if route is not None else ("", ex.graph.prefix.names),
        (error.code, error.message[:_MESSAGE]) if error is not None else None,
        scorer.name if scorer is not None else None, attempts,
    )  # fmt: skip


def _facts(kept: tuple[Any, ...]) -> Facts:
    (
        id_, wall, started, ended, config, endpoint, key, reached, timings, status, outcome, plan, overruled, skipped,
        inputs, cache, notes, model, (route, filters), error, strategy, attempts,
    ) = kept  # fmt: skip
    code, message = error or ("", "")
    return Facts(
        id_, wall, started, ended, config, endpoint, key, route, model, filters, reached, timings, status, outcome,
        code, message, strategy or "config-order", plan, overruled, skipped,
        tuple(_attempt_facts(one) for one in attempts), inputs, cache, notes,
    )  # fmt: skip


def _attempt_facts(kept: tuple[Any, ...]) -> AttemptFacts:
    (
        provider, model, started, sent_at, head_at, ended_at, status, cancelled, host, key, request_id, failure,
    ) = kept  # fmt: skip
    condition, message = failure or ("", "")
    return AttemptFacts(
        provider, model[_NAME], host or "", key or "", started, sent_at, head_at, ended_at, status, condition, message,
        cancelled, request_id,
    )  # fmt: skip


class Decisions:
    """What one worker remembers."""

    __slots__ = ("_failed", "_latest", "_sampled", "_unknown")

    def __init__(
        self,
        *,
        kept: int = KEPT,
        failed: int = KEPT_FAILED,
        sampled: int = KEPT_SAMPLED,
        unknown: int = KEPT_UNKNOWN,
    ) -> None:
        self._latest: deque[tuple[Any, ...]] = deque(maxlen=kept)
        self._failed: deque[tuple[Any, ...]] = deque(maxlen=failed)
        self._sampled: deque[tuple[Any, ...]] = deque(maxlen=sampled)
        self._unknown: deque[tuple[Any, ...]] = deque(maxlen=unknown)

    def keep(self, ex: Exchange, now: float, *, known: bool) -> None:
        """It is over. `known`: auth let it in."""
        facts = facts_of(ex, now)
        if not known:
            self._unknown.append(facts)
            return
        self._latest.append(facts)
        if ex.outcome != "ok":
            self._failed.append(facts)
        if ex.inputs is not None:
            self._sampled.append(facts)

    def find(self, id_: str) -> dict[str, Any] | None:
        """The decision of this id, rendered; None where it is not kept any more, or never was here."""
        for kept in (self._latest, self._failed, self._sampled, self._unknown):
            for facts in reversed(kept):
                if facts[0] == id_:
                    return render(_facts(facts))
        return None


# -- rendering: off the path


def render(facts: Facts) -> dict[str, Any]:
    """All that is known, as JSON has it. Times are milliseconds since the request, durations milliseconds."""
    decision: dict[str, Any] = {
        "object": "decision",
        "id": facts.id,
        "at": facts.wall,
        "config": facts.config,
        "endpoint": facts.endpoint,
        "key": facts.key,
        "route": facts.route or None,
        "model": _plain(facts.model) or None,
        "status": facts.status,
        "outcome": facts.outcome,
        "error": _error(facts),
        "duration_ms": _ms(facts.ended - facts.started),
        "filters": _filters(facts),
        "strategy": _strategy(facts),
        "candidates": _candidates(facts),
        "vetoes": _vetoes(facts),
        "inputs": facts.inputs,
        "attempts": _attempts(facts),
        "cache": {"verdict": facts.cache.verdict, "why": facts.cache.why} if facts.cache is not None else None,
    }
    decision["why"] = _why(decision)
    return decision


def explain(ex: Exchange, now: float) -> tuple[bytes, bytes]:
    """What the head of an explained answer says: `x-headgate-explain`, which is the decision as far as it is made, in
    ASCII and at most MAX_FIELD bytes; and what `server-timing` adds for the filters, empty where none was timed."""
    facts = _facts(facts_of(ex, now))
    filters = _filters(facts)
    timing = b""
    for one in filters:
        if one["ms"] is not None:
            # '@' may stand in the name of a filter and not in a token.
            timing += b", filter.%b;dur=%.3f" % (one["name"].replace("@", "_").encode(), one["ms"])
    return _header(facts, filters), timing


def _header(facts: Facts, filters: list[dict[str, Any]]) -> bytes:
    # Status and outcome are not settled yet, and the times of the answer stand in other fields.
    said = {
        "id": facts.id,
        "config": facts.config,
        "key": facts.key,
        "route": facts.route or None,
        "model": _plain(facts.model) or None,
        "strategy": _strategy(facts),
        "error": _error(facts),
        "filters": filters,
    }
    candidates, attempts = _candidates(facts), _attempts(facts)
    for shown in (_SHOWN, 4, 0):
        lists: dict[str, Any] = {"candidates": candidates[:shown], "attempts": attempts[:shown]}
        if len(candidates) > shown:
            lists["candidates_left_out"] = len(candidates) - shown
        if len(attempts) > shown:
            lists["attempts_left_out"] = len(attempts) - shown
        value = _ascii({**said, **lists})
        if len(value) <= MAX_FIELD:
            return value
    return _ascii({"id": facts.id, "left_out": "too long for a header"})


def _ascii(value: object) -> bytes:
    """JSON without a character that a header may not hold, whatever a filter or a provider has said."""
    with suppress(UnicodeEncodeError):
        data = msgspec.json.encode(value)
        if data.isascii() and _DEL not in data:
            return data
    return json.dumps(value, separators=(",", ":")).encode()


def _strategy(facts: Facts) -> str | None:
    return facts.strategy if facts.plan is not None else None


def _error(facts: Facts) -> dict[str, str] | None:
    return {"code": facts.code, "message": _plain(facts.message)} if facts.code else None


def _attempts(facts: Facts) -> list[dict[str, Any]]:
    return [_attempt(n, one, facts.started) for n, one in enumerate(facts.attempts, 1)]


def _plain(text: str) -> str:
    """Names of models may come from paths, with bytes that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _filters(facts: Facts) -> list[dict[str, Any]]:
    spent, notes = _spent(facts), facts.notes or {}
    return [
        {"name": name, "verdict": _verdict(at, facts), "ms": spent.get(at)}
        | ({"note": notes[name]} if name in notes else {})
        for at, name in enumerate(facts.filters)
    ]


def _spent(facts: Facts) -> dict[int, float]:
    """Milliseconds by position: filters follow each other, so one ends where the next begins."""
    timings = facts.timings
    if not timings:
        return {}
    ends = [began for _, began in timings[1:]] + [facts.ended]
    return {at: _ms(end - began) for (at, began), end in zip(timings, ends, strict=True) if at >= 0}


def _verdict(at: int, facts: Facts) -> str:
    if at < facts.reached:
        return "passed"
    if at > facts.reached:
        return "not reached"
    if facts.code:
        return "refused"
    return "interrupted" if facts.outcome == "cancelled" else "answered"


def _candidates(facts: Facts) -> list[dict[str, Any]]:
    plan = facts.plan
    if plan is None:
        return []
    found = []
    scores = plan.scores or (None,) * len(plan.targets)
    for rank, (target, score) in enumerate(zip(plan.targets, scores, strict=True), 1):
        overruled = next((one.reason for one in facts.overruled if one.target is target), None)
        found.append(
            {**_target(target), "rank": rank, "score": score, "veto": None, "soft": None, "overruled": overruled}
        )
    for one in facts.skipped:
        if one.target in plan.targets:  # a filter did not let it pass, or it had no room
            found[plan.targets.index(one.target)] |= {"veto": one.reason, "soft": one.soft}
    found += [
        {**_target(one.target), "rank": None, "score": None, "veto": one.reason, "soft": one.soft, "overruled": None}
        for one in plan.vetoed
    ]
    return found


def _vetoes(facts: Facts) -> dict[str, int]:
    """How many candidates each reason has taken out."""
    taken_out = (*(facts.plan.vetoed if facts.plan is not None else ()), *facts.skipped)
    return dict(Counter(one.reason for one in taken_out))


def _target(target: Target) -> dict[str, Any]:
    return {"provider": target.cluster.name, "model": _plain(target.model[:_MODEL]), "priority": target.priority}


def _attempt(number: int, made: AttemptFacts, started: float) -> dict[str, Any]:
    def since(at: float | None) -> float | None:
        return _ms(at - started) if at is not None else None

    return {
        "number": number,
        "provider": made.provider,
        "model": _plain(made.model),
        "endpoint": made.endpoint or None,
        "key": made.key or None,
        "status": made.status or None,
        "error": {"condition": made.condition, "message": _plain(made.message)} if made.condition else None,
        "cancelled": made.cancelled,
        "request_id": made.request_id or None,
        "started_ms": since(made.started),
        "sent_ms": since(made.sent_at),
        "head_ms": since(made.head_at),
        "ended_ms": since(made.ended_at),
    }


def _why(decision: dict[str, Any]) -> list[str]:
    """The same, in sentences and in order."""
    said = [
        f"The filter '{one['name']}' {one['verdict']} it."
        for one in decision["filters"]
        if one["verdict"] not in ("passed", "not reached")
    ]
    cache = decision["cache"]
    if cache is not None:
        said.append(f"For the cache it was a {cache['verdict']}: {cache['why']}.")
    for one in decision["candidates"]:
        name = _name(one)
        if one["veto"] is not None:
            said.append(f"{name} was not asked: {one['veto']}.")
        elif one["overruled"] is not None:
            said.append(f"{name} might be asked although it rests ({one['overruled']}), for nobody better was left.")
        else:
            score = f" with the score {one['score']:g}" if one["score"] is not None else ""
            said.append(f"{name} was choice {one['rank']} by {decision['strategy']}{score}.")
    said += [f"Attempt {one['number']} at {_name(one)} {_fate(one)}." for one in decision["attempts"]]
    error = decision["error"]
    if error is not None:
        said.append(f"The client was told {error['code']}: {error['message']}")
    return said


def _name(place: dict[str, Any]) -> str:
    return f"{place['provider']}/{place['model']}" if place["model"] else str(place["provider"])


def _fate(made: dict[str, Any]) -> str:
    if made["error"] is not None:
        status = f", status {made['status']}" if made["status"] else ""
        return f"failed ({made['error']['condition']}{status})"
    if made["cancelled"]:
        return "was given up: nobody waited for it any more"
    return f"answered {made['status']}" if made["status"] else "never began"
