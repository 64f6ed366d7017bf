"""A provider as the engine sees it: its hosts and keys, its limits, and what all its calls share.

Everything that is decided for a call is decided here, once and together: whether there is room for it, which host takes
it, with which key. `start` takes the place of a call and `end` gives it back, exactly once each; in between the call is
the host's. A cluster that cannot take a call now says why beforehand (`objection`), so that the plan can go elsewhere.

`strained` is the one thing every request asks. It is False while nobody could object, which is nearly always.

Not here: connections (pool.py), which target comes next (plan.py), the rules themselves (admission.py, balance.py,
outlier.py, credentials.py).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple, cast

from ..clock import NEVER
from ..errors import NoTargetError
from .admission import Admission, overflow
from .balance import Balancer, Balancing
from .credentials import Credentials
from .hedge import Hedge
from .limits import LimitSettings
from .outlier import Outlier, OutlierSettings, result_of
from .place import PLAIN
from .queued import QueuedCall
from .retry_budget import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ..accounting.prices import Price
    from ..catalog import ListedModel
    from ..clock import Deadlines
    from ..dialect import Dialect
    from ..errors import GatewayError
    from .balance import Policy
    from .call import Call, UpstreamRequest
    from .credentials import Credential
    from .hedge import HedgeSettings
    from .host import Host
    from .place import Holder, Needs

COOLING = "cooling after a 429"
REFUSED = "credential refused"
UNHEALTHY = "no healthy endpoint"
OVERLOADED = "overloaded"
"""Why a cluster cannot take a call now."""

MAX_HEDGES = 64


class Timeouts(NamedTuple):
    """Seconds. `first_token` and `idle` are for streams; a plain answer has `connect` and `total`, a WebSocket
    `connect` and `idle`.

    `total` starts when the request has been sent.
    """

    connect: float = 5.0
    first_token: float = 300.0
    idle: float = 120.0
    total: float = 600.0


class Cluster:
    """One provider. Outlives the configs that name it, as long as its dialect and credentials stay."""

    __slots__ = (
        "_balancer", "_credentials", "_deadlines", "_hedges", "_outlier", "_rng", "_single", "address", "admission",
        "asks", "checked", "counts_tokens", "credential_origin", "deadline", "dialect", "host", "hosts", "is_sticky",
        "listed", "name", "price", "price_as", "retries_waiting", "retry_budget", "rq_error", "rq_hedged", "rq_retry",
        "_rq_cancelled", "_rq_unplaced", "rq_success", "rq_timeout", "stand_in", "strained", "timeouts", "unconfigured",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        hosts: Sequence[Host],
        *,
        address: str = "",
        host: str = "",
        timeouts: Timeouts | None = None,
        limits: LimitSettings = LimitSettings(),  # noqa: B008 - immutable
        queue_seconds: float = 0.0,
        credentials: Sequence[Credential] = (),
        before: Cluster | None = None,
        policy: Policy = "least_request",
        balancing: Balancing = Balancing(),  # noqa: B008 - immutable
        outliers: OutlierSettings = OutlierSettings(),  # noqa: B008 - immutable
        deadlines: Deadlines | None = None,
        rng: Random | None = None,
        unconfigured: bool = False,
        credential_origin: str | None = None,
        stand_in: bool = False,
        price_as: str | None = None,
        price: Price | None = None,
        listed: Mapping[str, ListedModel] | None = None,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.address = address
        """The first of its URLs, which tells whose list of models it is."""
        self.host = host
        """The address that prices are looked up by; empty for a self-hosted provider."""
        self.timeouts = timeouts or Timeouts()
        self.checked = False
        """Its endpoints are asked whether they are well."""
        self.unconfigured = unconfigured
        """It has a key in the config, and the key expanded to nothing."""
        self.credential_origin = credential_origin
        """Where the key should have come from, for the message that says so."""
        self.stand_in = stand_in
        """Answers only while no other target of the model is configured (the mock)."""
        self.price_as = price_as
        self.price = price
        """What every model costs here, where the cluster itself knows; None leaves it to the price order."""
        self.listed = listed or {}
        """What it says of its own models, by their names there; replaced whole when it says something new."""
        self.retry_budget = RetryBudget()
        self.retries_waiting = 0
        """Exchanges whose next attempt goes here once their back-off is over."""
        self.rq_success = 0
        self.rq_error = 0
        self.rq_retry = 0
        self.rq_timeout = 0
        self.rq_hedged = 0
        """Second attempts at a stream that was late; they are among `rq_total`."""
        self._rq_cancelled = 0
        self._rq_unplaced = 0
        """Those of `rq_error` that never had a place."""
        self.strained = before is not None
        """Ask `objection`: some call might not be taken."""
        self.asks = False
        """A call has to say what it `Needs`."""
        self.is_sticky = policy == "ring_hash"
        """A call has to say which session it belongs to."""
        self.counts_tokens = False
        """There is a bound on the tokens of all calls: what a call says of its own must be a good estimate."""
        self.admission = Admission(limits, queue_seconds, deadlines)
        self.hosts: tuple[Host, ...] = ()
        self.deadline = NEVER
        """Of the next look at who was ejected."""
        self._rng = rng or Random()  # noqa: S311 - spreads load, guards nothing
        self._balancer = Balancer(policy, (), self._rng, balancing)
        known = before._credentials if before is not None else None
        self._credentials: Credentials | None = Credentials(credentials, before=known) if credentials else None
        self._outlier = Outlier(outliers, (), self._rng)
        self._deadlines = deadlines
        self._hedges: dict[str, Hedge] = {}
        self._single: Host | None = None
        self.set_hosts(hosts)

    @property
    def health(self) -> str:
        """What an operator would say of it: `configured`, `unconfigured`, or `unhealthy` while none of its endpoints
        passes its checks."""
        if self.unconfigured:
            return "unconfigured"
        return "configured" if any(host.healthy for host in self.hosts) else "unhealthy"

    @property
    def has_credential(self) -> bool:
        """Calls carry a key of ours: a 401 is ours to explain, not the client's."""
        return self._credentials is not None

    @property
    def rq_total(self) -> int:
        """Calls that were begun: each is under way or has had its end, so that nobody needs to count them twice."""
        ended = self.rq_success + self.rq_error - self._rq_unplaced + self._rq_cancelled
        return self.admission.requests + ended

    @property
    def rq_active(self) -> int:
        """Calls under way."""
        return self.admission.requests

    @property
    def rq_pending_active(self) -> int:
        """Calls that wait for a place."""
        return self.admission.pending

    @property
    def rq_overflow(self) -> int:
        """Calls refused because of `limits`."""
        return self.admission.overflow

    @property
    def ejections(self) -> int:
        """Hosts ejected so far, each time it happened."""
        return sum(self._outlier.enforced.values())

    @property
    def ejections_overflow(self) -> int:
        """Times a host was left in because too many were out."""
        return self._outlier.overflow

    @property
    def healthy_panic(self) -> int:
        """Calls that went to hosts, well or not, because too few were well."""
        return self._balancer.healthy_panic

    def resting_keys(self, now: float) -> Iterator[tuple[str, str, str, float]]:
        """See `Credentials.resting`."""
        return self._credentials.resting(now) if self._credentials is not None else iter(())

    # -- for the plan

    def objection(self, model: str, now: float) -> str | None:
        """Why a call for `model` cannot be taken now; None when it can. Ask only while `strained`."""
        if self.hosts and not self._balancer.usable:
            return UNHEALTHY
        if self.admission.refuses:
            return OVERLOADED
        keys = self._credentials
        rests = keys.soonest(model, now) if keys is not None else 0.0
        if keys is not None and rests > 0:
            return COOLING if keys.limited(model, now) else REFUSED
        self.strained = self.admission.is_full or (keys is not None and keys.is_strained(now))
        return None

    def rests_for(self, model: str, now: float) -> float:
        """Seconds until a key of the cluster may be used for `model` again; 0 where it rests for another reason."""
        return self._credentials.soonest(model, now) if self._credentials is not None else 0.0

    def has_spare(self, model: str, now: float, hosts: Collection[Host], keys: Collection[Credential]) -> bool:
        """Whether a call for `model` could go another way than by these hosts and keys."""
        if self.strained and self.objection(model, now) is not None:
            return False
        if any(host.available and host not in hosts for host in self.hosts):
            return True
        return self._credentials is not None and self._credentials.has_other(model, now, keys)

    # -- for attempts

    def start(self, request: UpstreamRequest, holder: Holder, model: str, now: float, needs: Needs = PLAIN) -> Call:
        """Begin an attempt, or queue it where the limits say so.

        Raises PoolOverflowError when there is no room, NoTargetError when there is no host at all. The place is
        `holder`'s until it is given back by `end`, whatever becomes of the call.
        """
        admission = self.admission
        under_way = admission.requests + 1
        if self.counts_tokens or admission.queue or under_way >= admission.settings.requests:
            return self._start_where_it_is_tight(request, holder, model, now, needs)
        admission.requests = under_way
        admission.tokens += needs.tokens
        return self._begin(request, holder, model, now, needs)

    def _start_where_it_is_tight(
        self, request: UpstreamRequest, holder: Holder, model: str, now: float, needs: Needs
    ) -> Call:
        """As `start`, where this call takes the last place, or may find none."""
        admission = self.admission
        if admission.try_acquire(needs.tokens):
            if self.counts_tokens or admission.requests >= admission.settings.requests:
                self.strained = True
            return self._begin(request, holder, model, now, needs)
        queued = QueuedCall(self, request, holder, model, needs, now + admission.queue_seconds)
        if not admission.enqueue(queued):
            raise overflow()
        self.strained = True
        return queued

    def end(self, holder: Holder, now: float, error: GatewayError | None, *, status: int, cancelled: bool) -> None:
        """The attempt is over: give the place back, and remember what it says about its host and its key."""
        host = holder.host
        if host is None:  # it never came to have a place
            if error is not None:
                self.rq_error += 1
                self._rq_unplaced += 1
            return
        admission = self.admission
        host.active -= 1
        host.tokens -= holder.tokens
        admission.requests -= 1  # `release`, without a call
        admission.tokens -= holder.tokens
        if cancelled:
            self._rq_cancelled += 1
            host.rq_cancelled += 1
        elif error is None:
            self.rq_success += 1
            host.rq_success += 1
            key = holder.credential
            if key is not None and key.refusals and self._credentials is not None:
                self._credentials.on_success(key)
            if self._single is None:
                self._outlier.on_success(host.outlier)
                if self.deadline == NEVER:
                    self._watch(now)
        else:
            self._count_failure(host, error)
            if self._single is None:
                self._judge(host, now, error, status)
        if admission.queue:
            admission.serve(now)

    def limited(self, holder: Holder, model: str, now: float, seconds: float) -> None:
        """A 429: its key rests for this model."""
        if holder.credential is not None and self._credentials is not None:
            self._credentials.on_limited(holder.credential, model, seconds, now)
            self.strained = True

    def refused(self, holder: Holder, now: float) -> None:
        """A 401: its key rests for all models."""
        if holder.credential is not None and self._credentials is not None:
            self._credentials.on_refused(holder.credential, now)
            self.strained = True

    def hedge(self, model: str, settings: HedgeSettings) -> Hedge:
        """What is known of how long first tokens of `model` take here. Models are forgotten, the oldest first, above
        a bound: their names may come from clients."""
        found = self._hedges.get(model)
        if found is None or found.settings != settings:
            if len(self._hedges) >= MAX_HEDGES:
                del self._hedges[next(iter(self._hedges))]
            found = self._hedges[model] = Hedge(settings)
        return found

    @property
    def adapts(self) -> bool:
        """It wants to know when first tokens come."""
        return self.admission.adapts

    def on_first_token(self, seconds: float, prompt_tokens: int, now: float) -> None:
        """The first token of a stream came, `seconds` after its request began; who waits may be next."""
        if self.admission.on_first_token(seconds, prompt_tokens, now):
            self.strained = True
        self.admission.serve(now)

    # -- for the queue

    def begin_queued(self, queued: QueuedCall, now: float) -> Call:
        """As `start`, for a call that has a place now. Raises NoTargetError."""
        return self._begin(queued.request, queued.holder, queued.model, now, queued.needs)

    # -- for reloads and checks

    def set_hosts(self, hosts: Sequence[Host]) -> None:
        """Who is there from now on, with the weights and places they have now. Calls under way at others go on."""
        self.hosts = tuple(hosts)
        self._outlier.states = [host.outlier for host in hosts]
        self._single = self.hosts[0] if len(self.hosts) == 1 else None
        self._settle_needs()
        self._rebuild()

    def set_limits(self, limits: LimitSettings, queue_seconds: float, now: float) -> None:
        """Bounds from now on; who waits may be next."""
        if self.admission.bound(limits, queue_seconds):
            self.strained = True
        self._settle_needs()
        self.admission.serve(now)

    def set_adaptive(self, on: bool) -> None:
        """Whether first tokens that come late lower the limit on requests. What was learned is forgotten when it is
        turned off."""
        if self.admission.adapt(on):
            self.strained = True

    def set_outliers(self, outliers: OutlierSettings) -> None:
        """Rules from now on; who is out stays out for its time."""
        self._outlier.settings = outliers

    def set_health(self, name: str, healthy: bool, now: float) -> bool:
        """What an active check found at the host `name`; returns whether that is news. One that is well is no longer
        ejected [Envoy's successful_active_health_check_uneject_host]."""
        for host in self.hosts:
            if host.name == name and host.healthy is not healthy:
                host.healthy = healthy
                if healthy and host.outlier.ejected:
                    self._outlier.restore(host.outlier)
                self._update(host, now)
                return True
        return False

    def on_deadline(self) -> None:
        """Look who may come back, and who is worse than the others."""
        assert self._deadlines is not None  # noqa: S101 - narrows for the type checker: who else would call
        now = self._deadlines.now()
        for state in self._outlier.sweep(now):
            self._update(cast("Host", state.member), now)
        self.deadline = now + self._outlier.settings.interval
        if not any(state.ejected or state.ejections or state.total for state in self._outlier.states):
            self.deadline = NEVER
            self._deadlines.discard(self)

    def __repr__(self) -> str:
        return f"<Cluster {self.name}>"

    # -- inside

    def _begin(self, request: UpstreamRequest, holder: Holder, model: str, now: float, needs: Needs) -> Call:
        """Send; the place is taken."""
        host = self._single
        if host is None:
            usual = self._balancer.usual
            # A cluster's members are its hosts; `cast` would be a call.
            host = self._pick(now, needs) if usual is None or needs.avoid else usual.pick(now, needs.key, ())  # type: ignore[assignment]
            assert host is not None  # noqa: S101 - narrows for the type checker: with nobody to avoid it takes one
        keys = self._credentials
        if keys is not None:
            key = keys.sole
            if key is None or key.refusals:
                key = keys.pick(model, now) or keys.least_bad(model)
            holder.credential = key
            request.headers += key.fields
            if request.lines:
                request.lines += key.lines
                request.lined += key.lined
        holder.host = host
        holder.tokens = needs.tokens
        host.active += 1
        host.tokens += needs.tokens
        return host.endpoint.start(request, holder)

    def _pick(self, now: float, needs: Needs) -> Host:
        """The balancer's choice; where it has none without a host that failed before, one of those."""
        pick = self._balancer.pick
        member = pick(now, key=needs.key, region=needs.region, avoid=needs.avoid)
        if member is None and needs.avoid:
            member = pick(now, key=needs.key, region=needs.region)
        if member is None and self.hosts:
            member = self._rng.choice(self.hosts)  # all are down, and somebody decided to ask all the same
        if member is None:
            self.admission.release(needs.tokens)
            raise NoTargetError(f"The provider '{self.name}' has no endpoint.")
        return member  # type: ignore[return-value]  # a cluster's members are its hosts; `cast` would be a call

    def _judge(self, host: Host, now: float, error: GatewayError, status: int) -> None:
        """What a call that failed says about its host."""
        if self._outlier.on_result(host.outlier, result_of(error, status), now):
            self._update(host, now)
        if self.deadline == NEVER:
            self._watch(now)

    def _watch(self, now: float) -> None:
        """There is something to look at after an interval."""
        if self._deadlines is not None:
            self.deadline = now + self._outlier.settings.interval
            self._deadlines.add(self)

    def _update(self, host: Host, now: float) -> None:
        """It has become well or unwell, was ejected or came back."""
        available = host.healthy and not host.ejected
        if host.available is not available:
            host.available = available
            if available:
                host.since = now
            self._rebuild()

    def _rebuild(self) -> None:
        self._balancer.rebuild(self.hosts)
        if self.hosts and not self._balancer.usable:
            self.strained = True

    def _settle_needs(self) -> None:
        """What a call has to say of itself."""
        self.counts_tokens = self.admission.settings.tokens is not None
        self.asks = self.is_sticky or self._single is None or self.counts_tokens

    def _count_failure(self, host: Host, error: GatewayError) -> None:
        self.rq_error += 1
        host.rq_error += 1
        if error.status == 504:
            self.rq_timeout += 1
            host.rq_timeout += 1
