"""One request and what became of it: the object every filter sees.

Slotted and plain. It holds facts and decisions, never behaviour of the engine: who moves it along is run.py,
succession.py, dispatch.py, attempt.py and answer.py.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from .errors import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .accounting.estimate import PromptEstimate
    from .accounting.record import Outcome
    from .accounting.usage import Usage
    from .attempt import Attempt
    from .cache_note import CacheNote
    from .decisions import Timings
    from .dialect import RequestFacts
    from .edge.downstream import RequestHead
    from .errors import GatewayError
    from .faces import Face
    from .graph import Graph, Route
    from .model_names import ModelNames
    from .path_globs import PathGlobs
    from .plan import Plan, RetryPolicy, Scorer, Target, Vetoed


TAGS = b"x-headgate-tags"


class Principal:
    """Who calls. Without `auth` everybody is ANONYMOUS."""

    __slots__ = ("allow_tags", "expires", "models", "name", "owner", "paths", "roles", "tags", "team")

    def __init__(
        self,
        name: str,
        *,
        team: str | None = None,
        owner: str | None = None,
        roles: frozenset[str] = frozenset(),
        paths: PathGlobs | None = None,
        models: ModelNames | None = None,
        tags: frozenset[str] = frozenset(),
        allow_tags: frozenset[str] = frozenset(),
        expires: float = inf,
    ) -> None:
        self.name = name
        self.team = team
        self.owner = owner
        self.roles = roles
        self.paths = paths
        """The only paths it may call, and those whose lists and unknown ids it may see; None: all, and none."""
        self.models = models
        """The only models it may ask for; None: all."""
        self.tags = tags
        self.allow_tags = allow_tags
        """Tags that its requests may add."""
        self.expires = expires
        """Unix seconds from which it is nobody any more."""

    def __repr__(self) -> str:
        return f"<Principal {self.name}>"


ANONYMOUS = Principal("-")


class Veto:
    """A filter's objection to targets: `check(target)` gives a reason or None. `soft`: may be overruled when all
    are vetoed; `yields`: is, whatever the model's `on_exhausted` says. One may serve every exchange."""

    __slots__ = ("check", "idle", "soft", "yields")

    def __init__(self, check: Callable[[Target], str | None], soft: bool, yields: bool = False) -> None:
        self.check = check
        self.soft = soft
        self.yields = yields
        self.idle = False
        """There is no target that it objects to now, so a plan is made without it."""


_ADOPTED = (
    "attempt", "cost_source", "cost_usd", "inputs", "lost_cost_usd", "model", "overruled", "plan", "reached", "retry",
    "rough_prompt", "scorer", "skipped", "usage",
)  # fmt: skip
_BRANCHED = (
    "admitted", "asks", "attempts", "bytes_in", "client_request_id", "facts", "is_stranger", "model", "pinned",
    "principal", "provider", "reached", "region", "reserved_for", "retry", "rough_prompt", "route", "scorer", "state",
    "timings", "vetoes",
)  # fmt: skip


class Exchange:
    """The life of one request. Filters read all of it and may set `model`, `principal`, `retry`, `scorer` and
    `state`."""

    __slots__ = (
        "_candidates", "_resolved", "admitted", "asks", "attempt", "attempts", "bytes_in", "bytes_out", "cache",
        "client_request_id", "cost_source", "cost_usd", "deadline", "error", "face", "facts", "first_token_at",
        "graph", "head", "id", "inputs", "is_stranger", "lost_cost_usd", "model", "notes", "outcome", "overruled",
        "pinned", "plan", "principal", "provider", "reached", "region", "reserved_for", "retry", "rough_prompt",
        "route", "scorer", "skipped", "started", "state", "status", "timings", "usage", "vetoes", "wall",
    )  # fmt: skip

    id: str
    """`x-headgate-request-id`, and the key of its record."""
    head: RequestHead
    face: Face
    graph: Graph
    """The config this exchange lives under to its end, reloads notwithstanding."""
    started: float
    wall: float
    client_request_id: bytes | None
    principal: Principal
    route: Route | None
    facts: RequestFacts | None
    retry: RetryPolicy | None
    scorer: Scorer | None
    vetoes: list[Veto]
    attempts: list[Attempt]
    attempt: Attempt | None
    """The one whose answer or failure the client gets: the latest, unless the answer of an earlier one goes
    down."""
    plan: Plan | None
    """The latest one that was made for it."""
    overruled: tuple[Vetoed, ...]
    """Soft vetoes that the plan passes over, because nobody was left."""
    skipped: tuple[Vetoed, ...]
    """Targets of the plan that an `on_attempt` has skipped, or that had no room when they were asked. Not asked
    again before the next plan; for want of room, not before the next failure."""
    inputs: dict[str, Any] | None
    """What its plan was made from, where that was read."""
    timings: Timings | None
    """When each filter began, where the caller asks for an explanation."""
    notes: dict[str, str] | None
    """What filters say of their decisions, by name; see `note`."""
    provider: str | None
    """The only provider the caller wants (`x-headgate-provider`)."""
    pinned: str | None
    """The only provider that has what the request names."""
    is_stranger: bool
    """Nobody knows who made what the request names."""
    region: str
    """Where the caller wants to be served (`x-headgate-region`), as far as a provider has endpoints there."""
    state: dict[object, Any]
    deadline: float
    """Monotonic time after which the caller no longer waits (`x-headgate-timeout-ms`)."""
    asks: bool
    """The request has fields of ours (`x-headgate-…`)."""
    admitted: bool
    """It has an `open` record, so it will have a `done` one."""
    reached: int
    """How far down the chain: the position of the filter whose `on_request` runs or ended the exchange; the
    number of filters once all let it pass."""
    status: int
    outcome: Outcome
    error: GatewayError | None
    usage: Usage | None
    """What it used, once that is settled; its source is `none` where nothing is known."""
    rough_prompt: PromptEstimate | None
    """The prompt as estimated, where something asked for it."""
    cost_usd: float | None
    lost_cost_usd: float
    """Of that: what attempts have cost that a faster one has replaced."""
    cost_source: str
    first_token_at: float | None
    bytes_in: int
    bytes_out: int
    model: str
    """What the exchange asks for: the client's, until a filter sets another. What was reserved for the one before
    is then reserved anew."""
    reserved_for: str
    """The model that the filters have reserved for."""
    cache: CacheNote | None
    """What a cache had to do with it."""
    _candidates: tuple[Target, ...] | None
    _resolved: str
    """The model that the candidates belong to."""

    def __init__(self, id_: str, head: RequestHead, face: Face, graph: Graph, started: float, wall: float) -> None:
        self.id = id_
        self.head = head
        self.face = face
        self.graph = graph
        self.started = started
        self.wall = wall
        self.client_request_id = None
        self.principal = ANONYMOUS
        self.route = None
        self.facts = None
        self.retry = None
        self.scorer = None
        self.vetoes = []
        self.attempts = []
        self.attempt = None
        self.plan = None
        self.overruled = ()
        self.skipped = ()
        self.inputs = None
        self.timings = None
        self.notes = None
        self.provider = None
        self.pinned = None
        self.is_stranger = False
        self.region = ""
        self.state = {}
        self.deadline = inf
        self.asks = False
        self.admitted = False
        self.reached = -1
        self.status = 0
        self.outcome = "failed"
        self.error = None
        self.usage = None
        self.rough_prompt = None
        self.cost_usd = None
        self.lost_cost_usd = 0.0
        self.cost_source = ""
        self.first_token_at = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.model = ""
        self.cache = None
        self._candidates = None

    def branch(self) -> Exchange:
        """The same request, for a call that others wait for, too: what it comes to stands apart, and nobody's deadline
        is its own. What filters keep and the attempts are one for both."""
        other = Exchange(self.id, self.head, self.face, self.graph, self.started, self.wall)
        for name in _BRANCHED:
            setattr(other, name, getattr(self, name))
        return other

    def adopt(self, other: Exchange) -> None:
        """Take over what a branch has come to."""
        for name in _ADOPTED:
            setattr(self, name, getattr(other, name))

    @property
    def candidates(self) -> tuple[Target, ...]:
        """Every target that the config, the route and the caller allow for the model, in config order. Raises
        ModelNotFoundError when there is none."""
        if self._candidates is None or self._resolved != self.model:
            self._resolved = self.model
            only = self.route.provider if self.route is not None else None
            if self.provider is not None:
                if only not in (None, self.provider):
                    raise ModelNotFoundError(f"This route does not lead to the provider '{self.provider}'.")
                only = self.provider
            if self.pinned is not None:
                only = self.pinned
            if self.face.passes:
                self._candidates = self.graph.models.issuer(only)
                return self._candidates
            self._candidates = self.graph.models.resolve(self.model, only)
        return self._candidates

    def note(self, name: str, text: str) -> None:
        """Have the decision record say `text` of the filter `name`; the last word counts. No secrets, nothing of the
        caller's."""
        if self.notes is None:
            self.notes = {}
        self.notes[name] = text

    def pin(self, provider: str) -> None:
        """Nobody else may answer from now on."""
        self.pinned = provider
        self._candidates = None

    @property
    def tags(self) -> frozenset[str]:
        """The key's own, and those of `x-headgate-tags` that it may add."""
        principal = self.principal
        wished = self.head.header(TAGS) if principal.allow_tags else None
        if wished is None:
            return principal.tags
        added = frozenset(tag.strip() for tag in wished.decode("latin-1").split(","))
        return principal.tags | (added & principal.allow_tags)

    def veto(self, check: Callable[[Target], str | None], *, soft: bool = False, yields: bool = False) -> None:
        """Object to targets. `check` is asked when the plan is built and again before each attempt."""
        self.vetoes.append(Veto(check, soft, yields))

    def upstream_seconds(self, now: float) -> float:
        """How long attempts have taken in all, up to the monotonic time `now`."""
        seconds = 0.0
        for attempt in self.attempts:
            seconds += (attempt.ended_at or now) - attempt.started
        return seconds

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.face.name} model={self.model!r}>"
