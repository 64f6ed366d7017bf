"""Consistent hashing: one key stays with one endpoint, as long as that endpoint can take it.

Each endpoint owns points on a circle of 64-bit numbers, and a key belongs to the owner of the next point. The points
follow from an endpoint's name and weight alone, so one that leaves gives its keys away and moves no others. Loads are
bounded: an endpoint that has more than 1.25 times its fair share of the requests in flight passes a key on to the next
owner along the circle, so a popular session cannot drown one host.

Not here: what the key is made of. A session or a prompt's prefix is hashed by whoever asks, with `hash_key`.

Source: Karger et al. 1997; Mirrokni, Thorup, Zadimoghaddam 2016 (bounded loads); Envoy's `hash_balance_factor`.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b, shake_128
from struct import unpack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from random import Random

    from .balance import Member

POINTS_PER_WEIGHT = 1024
"""Shares of endpoints of equal weight then differ by 3 % (one standard deviation)."""

MAX_POINTS = 16384
"""Bounds memory and the time of a build (10 ms); heavier sets get half, a quarter, … of the points for each weight."""

BALANCE_FACTOR = 1.25

_MASK = (1 << 64) - 1


def hash_key(text: bytes) -> int:
    """A key for `pick`: 64 well-spread bits, the same in every process."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


class Ring:
    """Points on the circle, and for each the place of its owner in `weights`. Immutable."""

    __slots__ = ("_owners", "_points", "weights")

    def __init__(self, weights: Iterable[tuple[str, int]]) -> None:
        """`weights`: unique names, each with its weight."""
        self.weights = tuple(weights)
        per_weight = float(POINTS_PER_WEIGHT)
        while per_weight * sum(weight for _, weight in self.weights) > MAX_POINTS:
            per_weight /= 2
        circle: list[tuple[int, int]] = []
        for owner, (name, weight) in enumerate(self.weights):
            count = max(1, round(per_weight * weight))
            # An extendable hash: fewer points for a weight are the first of those that more would give.
            points = unpack(f"<{count}Q", shake_128(name.encode()).digest(8 * count))
            circle += [(point, owner) for point in points]
        circle.sort()
        self._points = [point for point, _ in circle]
        self._owners = [owner for _, owner in circle]

    def owned_by(self, members: Sequence[Member]) -> tuple[list[int], list[Member]]:
        """The circle when only `members`, all of them named in it, own points."""
        by_name = {member.name: member for member in members}
        present = [by_name.get(name) for name, _ in self.weights]
        points: list[int] = []
        owners: list[Member] = []
        for point, at in zip(self._points, self._owners, strict=True):
            owner = present[at]
            if owner is not None:
                points.append(point)
                owners.append(owner)
        return points, owners


class RingHash:
    """The policy `ring_hash` over some members of a ring. Without a key, a random point is taken."""

    __slots__ = ("_factor", "_members", "_owners", "_points", "_rng")

    def __init__(self, ring: Ring, members: Sequence[Member], rng: Random, factor: float = BALANCE_FACTOR) -> None:
        self._points, self._owners = ring.owned_by(members)
        self._members = members
        self._factor = factor / sum(member.weight for member in members)
        self._rng = rng

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        """The owner of `key`; the next along the circle where that one has too much already or is to be avoided.

        When all who are left have too much, the nearest of them takes it; None when all are to be avoided.
        """
        owners = self._owners
        at = bisect_left(self._points, self._rng.getrandbits(64) if key is None else key & _MASK)
        if at == len(owners):
            at = 0
        owner = owners[at]
        if not owner.active and not (avoid and owner in avoid):
            return owner  # a fair share is never less than one request
        in_flight = 1
        for member in self._members:
            in_flight += member.active
        fair = self._factor * in_flight
        nearest: Member | None = None
        seen: list[Member] = []
        while True:
            if owner not in avoid:
                if owner.active < fair * owner.weight:  # for whole numbers the same as against the share rounded up
                    return owner
                nearest = nearest or owner
            seen.append(owner)
            if len(seen) == len(self._members):
                return nearest
            while owner in seen:
                at += 1
                owner = owners[at - len(owners)]
