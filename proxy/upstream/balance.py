"""Which endpoint of a cluster takes a request.

Three questions, in Envoy's order: which priority level, by how healthy each is (priorities.py); which region of it, the
caller's own while that has enough healthy members; which member, by the cluster's policy (policies.py, ring_hash.py).
All that only depends on who is there is answered in `rebuild`, so `pick` has little to do for each request.

Not here: which cluster and model (plan.py), and who is available (health.py and outlier.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from .policies import EarliestDeadline, LeastRequest, Rotation, SlowStart, Sole, WeightedDraw
from .priorities import OVERPROVISIONING, PANIC_THRESHOLD, Health, share_load, sufficiency
from .ring_hash import BALANCE_FACTOR, Ring, RingHash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from random import Random

    from .policies import Picker

Policy = Literal["round_robin", "least_request", "random", "weighted", "ring_hash"]


class Member:
    """What balancing sees of an endpoint. Its owner changes it; a change of anything but load needs a `rebuild`."""

    __slots__ = ("active", "available", "name", "priority", "region", "since", "tokens", "weight")

    def __init__(
        self,
        name: str,
        *,
        weight: int = 1,
        priority: int = 0,
        region: str = "",
        available: bool = True,
        since: float = 0.0,
    ) -> None:
        self.name = name
        """Unique in its cluster: a ring's points follow from it."""
        self.weight = weight
        """Its part of the load against others; 0 takes none, not even in a panic."""
        self.priority = priority
        """0 first."""
        self.region = region
        self.available = available
        """Passes its health checks and is not ejected."""
        self.active = 0
        """Requests in flight."""
        self.tokens = 0
        """Tokens estimated for them."""
        self.since = since
        """Monotonic seconds at which it joined or came back, for slow start."""

    def __repr__(self) -> str:
        return f"<Member {self.name}{'' if self.available else ' unavailable'}>"


class Balancing(NamedTuple):
    """What an operator may set; the defaults are Envoy's. `overprovisioning` and `panic_threshold` in per cent."""

    slow_start: SlowStart = SlowStart()
    overprovisioning: int = OVERPROVISIONING
    panic_threshold: float = PANIC_THRESHOLD
    hash_balance_factor: float = BALANCE_FACTOR


DEFAULT_BALANCING = Balancing()


class _Split(NamedTuple):
    """A level as callers of one region see it: `near` takes `share` of their requests, `far` the rest."""

    near: Picker
    far: Picker
    share: float


class _Level(NamedTuple):
    upto: float
    """Its load and that of the levels before it, 0 to 1: a random number below belongs here."""
    panic: bool
    picker: Picker
    splits: dict[str, _Split]


class Balancer:
    """See the top. One for each cluster and worker."""

    __slots__ = (
        "_levels", "_members", "_only", "_policy", "_ring", "_rng", "_settings", "healthy_panic", "usable", "usual",
    )  # fmt: skip

    def __init__(
        self, policy: Policy, members: Iterable[Member], rng: Random, settings: Balancing = DEFAULT_BALANCING
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._settings = settings
        self._ring = Ring(())
        self.healthy_panic = 0
        """Picks made by a level in panic [Envoy's lb_healthy_panic]."""
        self.rebuild(members)

    def pick(
        self, now: float, *, key: int | None = None, region: str = "", avoid: Collection[Member] = ()
    ) -> Member | None:
        """A member for one request, or None when nobody can take it.

        `now` is in monotonic seconds. `key` is what ring_hash follows (see `hash_key`), `region` the caller's. `avoid`
        are members that have failed this request already: any other usable one is taken instead.
        """
        only = self._only
        if only is not None:
            return None if avoid and only in avoid else only
        if not self._levels:
            return None
        level = self._levels[0]
        if level.upto < 1:
            at, place = self._rng.random(), 0
            while at >= self._levels[place].upto:
                place += 1
            level = self._levels[place]
        if level.panic:
            self.healthy_panic += 1
        picker = level.picker
        if region and region in level.splits:
            split = level.splits[region]
            picker = split.near if split.share >= 1 or self._rng.random() < split.share else split.far
        member = picker.pick(now, key, avoid)
        if member is None:
            return next((member for member in self.usable if member not in avoid), None)
        return member

    def rebuild(self, members: Iterable[Member] | None = None) -> None:
        """Take over what has changed of the members; or, where `members` is given, who is there at all."""
        if members is not None:
            self._members = tuple(members)
        by_priority: dict[int, list[Member]] = {}
        for member in self._members:
            if member.weight > 0:
                by_priority.setdefault(member.priority, []).append(member)
        groups = [by_priority[priority] for priority in sorted(by_priority)]
        if self._policy == "ring_hash":
            weights = tuple(sorted((member.name, member.weight) for group in groups for member in group))
            if self._ring.weights != weights:
                self._ring = Ring(weights)
        shares = share_load(
            [_health(group) for group in groups],
            overprovisioning=self._settings.overprovisioning,
            panic_threshold=self._settings.panic_threshold,
        )
        self.usable: list[Member] = []
        self._levels: list[_Level] = []
        upto = 0
        for group, share in zip(groups, shares, strict=True):
            panics = share.panic and share.load > 0
            usable = group if panics else [member for member in group if member.available]
            self.usable += usable
            if share.load:
                upto += share.load
                splits = {} if panics else self._splits(group)
                self._levels.append(_Level(upto / 100, panics, self._picker(usable), splits))
        # The commonest cluster has one endpoint: then there is nothing to choose.
        alone = len(self.usable) == 1 and not self._levels[0].panic
        self._only: Member | None = self.usable[0] if alone else None
        level = self._levels[0] if len(self._levels) == 1 else None
        plain = level is not None and level.upto >= 1 and not level.panic and not level.splits
        self.usual: Picker | None = level.picker if level is not None and plain else None
        """Who picks for every request that has nobody to avoid, where neither priorities nor regions are in question:
        as `pick`, without the rest of it."""

    def _splits(self, group: Sequence[Member]) -> dict[str, _Split]:
        splits: dict[str, _Split] = {}
        for region in {member.region for member in group if member.region}:
            inside = [member for member in group if member.region == region]
            near = [member for member in inside if member.available]
            far = [member for member in group if member.available and member.region != region]
            if near and far:  # else there is no choice to make
                share = sufficiency(_health(inside), self._settings.overprovisioning) / 100
                splits[region] = _Split(self._picker(near), self._picker(far), share)
        return splits

    def _picker(self, members: Sequence[Member]) -> Picker:
        rng, slow_start = self._rng, self._settings.slow_start
        if len(members) == 1:
            return Sole(members[0])
        match self._policy:
            case "round_robin":
                if slow_start.window > 0 or len({member.weight for member in members}) > 1:
                    return EarliestDeadline(members, rng, slow_start)
                return Rotation(members, rng)
            case "least_request":
                return LeastRequest(members, rng, slow_start)
            case "ring_hash":
                return RingHash(self._ring, members, rng, self._settings.hash_balance_factor)
            case _:
                return WeightedDraw(members, rng, slow_start, even=self._policy == "random")


def _health(members: Sequence[Member]) -> Health:
    return Health(sum(member.available for member in members), len(members))
