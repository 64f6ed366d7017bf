"""Gives an answer again to whoever asks exactly the same, and lets those who ask it at the same time share one call.

What is kept is what came from below this filter: whole, good answers of providers, a stream as its events. On the way
to a client it passes the filters above as ever, and those below never hear of it. So what must hold for each client
stands above (auth, limits, budgets), and what belongs to the call below (breaker, strategy, retry).

Nobody gets what was made for another tenant, under another policy, or for a request that differs in anything that may
change an answer (cache_key.py). Who may not ask any of a model's targets gets nothing from here. What is not
repeatable, makes or reads something that the provider keeps, or is to be asked anew by its caller's word, passes by.

Not here: how a call is shared (proxy/flight.py), how an answer is played (proxy/replay.py).

Status: alpha. Trusts: upstream to answer for the request that it was sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..proxy.cache_note import bypass, note_hit
from ..proxy.errors import ModelNotFoundError
from ..proxy.filter import Filter
from ..proxy.flight import Flight
from ..proxy.flight_owner import Room
from ..proxy.headers import to_upstream
from ..proxy.plan import MONEY
from ..proxy.replay import Played
from .cache_key import canonical, digest, fields, tenant, wishes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import CacheConfig
    from ..proxy.cache_note import Verdict
    from ..proxy.exchange import Exchange
    from ..proxy.filter import Shared
    from ..proxy.tape import Recorded

FORMAT: Final = b"headgate cache 1"
MOST_BODY: Final = 8 * 1024 * 1024
"""A larger request is not even looked at."""
_SAMPLED: Final = frozenset(("chat", "completions", "responses"))
_FLAGGED: Final = re.compile(rb'"(?:finish_reason|reason)"\s*:\s*"content_filter"')


class _Asked(msgspec.Struct):
    temperature: Any = None
    tools: Any = None
    functions: Any = None
    web_search_options: Any = None
    conversation: Any = None
    background: Any = None


_decode = msgspec.json.Decoder(_Asked).decode


class Cache(Filter):
    """`monotonic` is the time, `wall` that of the calendar. The owner of its flights."""

    after = ("auth",)

    def __init__(self, config: CacheConfig, *, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self.name = "cache"
        self.hits = 0
        self.misses = 0
        """Calls that were made because nobody had the answer."""
        self.joined = 0
        """Answers from the call of another."""
        self.bypassed = 0
        """Requests that were none of its business, by their kind or by their caller's word."""
        self.stored = 0
        self.stored_bytes = 0
        self.unfit = 0
        """Answers that were not kept: cut, failed, flagged or too large."""
        self.evicted = 0
        """Answers that had to go before their time, for want of room."""
        self.cut = 0
        """Clients that were much slower than others with the same answer."""
        self.room = Room(config.size)
        from .stores.answers import MemoryAnswers  # and its library, which only a cache needs

        self._answers = MemoryAnswers(
            size=config.size, max_entry=config.max_entry, ttl=config.ttl.total_seconds(), monotonic=monotonic
        )
        self._flights: dict[bytes, Flight] = {}
        self._wall = wall
        self._operations = frozenset(config.operations)
        self._max_temperature = config.max_temperature
        self._tools = config.tools
        self._ignored = frozenset(name.encode() for name in config.ignore_headers)

    def on_request(self, ex: Exchange) -> Shared | None:
        """The answer where it is known, or will be; None where this exchange has to ask by itself."""
        face = ex.face
        if face.handler is not None or face.websocket or face.passes:
            return None
        why = self._objection(ex)
        key = self._key(ex) if why is None else None
        if key is None:
            self.bypassed += 1
            ex.cache = bypass(why or "no target of the model may be asked")
            return None
        recorded = self.at_hand(key)
        if recorded is not None:
            self.hits += 1
            note_hit(ex, recorded, self._wall())
            return Played(recorded)
        flight = self._flights.get(key)
        if flight is None or not flight.joinable:
            self._flights[key] = flight = Flight(key, self)
        return flight

    def at_hand(self, key: bytes) -> Recorded | None:
        """An answer that needs no waiting."""
        return self._answers.get(key)

    # -- from its flights

    def begins(self, flight: Flight) -> None:
        """Nobody else has the answer."""
        flight.lead()

    def landed(self, flight: Flight, recorded: Recorded | None) -> None:
        """Keep what is fit to be given again."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if recorded is not None and not _is_flagged(recorded) and self.keep(flight, recorded):
            self.stored += 1
            self.stored_bytes += recorded.size
        elif flight.called:
            self.unfit += 1

    def keep(self, flight: Flight, recorded: Recorded) -> bool:
        """Give it again from now on; False where that cannot be."""
        kept = self._answers.put(flight.key, recorded)
        self.evicted = self._answers.evicted
        return kept

    def noted(self, verdict: Verdict) -> None:
        """One more client of a flight knows where its answer comes from."""
        if verdict == "miss":
            self.misses += 1
        elif verdict == "joined":
            self.joined += 1
        else:
            self.hits += 1

    def lost(self) -> None:
        """One was too slow."""
        self.cut += 1

    # -- inside

    def _objection(self, ex: Exchange) -> str | None:
        """Why this request is none of its business; None: it is."""
        face, facts, header = ex.face, ex.facts, ex.head.header
        if not face.repeatable or face.operation not in self._operations or facts is None or not facts.body:
            return "this endpoint is not cached"
        wish = b",".join([header(b"x-headgate-cache") or b"", header(b"cache-control") or b""]).lower()
        if b"no-store" in wish or b"no-cache" in wish:
            return "the request wants a new answer"
        if facts.stores or ex.pinned is not None or ex.is_stranger:
            return "the provider keeps something of it"
        if len(facts.body) > MOST_BODY:
            return "the request is too large"
        try:
            asked = _decode(facts.body)
        except (msgspec.MsgspecError, RecursionError):
            return "the request cannot be read"
        if asked.conversation or asked.background:
            return "the provider keeps something of it"
        if not self._tools and (asked.tools or asked.functions or asked.web_search_options is not None):
            return "it offers tools"
        if self._max_temperature is not None and face.operation in _SAMPLED:
            heat = 1 if asked.temperature is None else asked.temperature
            if not isinstance(heat, int | float) or heat > self._max_temperature:
                return "its temperature is too high"
        return None

    def _key(self, ex: Exchange) -> bytes | None:
        """All that may change the answer; None where nobody may give one."""
        try:
            candidates = ex.candidates
        except ModelNotFoundError:
            return None
        head, facts, graph = ex.head, ex.facts, ex.graph
        assert facts is not None  # noqa: S101 - narrows for the type checker: without a body there was an objection
        targets: list[str] = []
        for target in candidates:
            reasons = [veto.check(target) for veto in ex.vetoes if not veto.soft]
            if all(reason is None or reason in MONEY for reason in reasons):
                targets += (target.cluster.name, target.model)
        if not targets:
            return None
        sent = to_upstream(head, b"", graph.own_fields)
        names = (
            graph.policy, tenant(ex.principal), self.name, ex.route.name if ex.route is not None else "",
            ex.face.operation, head.method, head.path, ex.model, ex.region, "\0".join(sorted(ex.tags)), *targets,
        )  # fmt: skip
        return digest(
            [
                FORMAT, b"%d" % len(targets), *(name.encode("utf-8", "surrogatepass") for name in names), head.query,
                fields(sent, self._ignored), wishes(head.headers), canonical(facts.body),
            ]
        )  # fmt: skip


def _is_flagged(recorded: Recorded) -> bool:
    """Whether a filter of the provider's has stopped it."""
    return any(_FLAGGED.search(piece) for piece in recorded.pieces)
