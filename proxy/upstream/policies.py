"""How one member of a group is picked: round robin, least request, random, weighted random.

A picker is built when the group changes and does the least it can for each request: no scan, no lock, no sorting. The
weighted draw is an alias table, so a pick costs the same over two members as over two hundred.

Slow start, for members that have just joined: the weight grows with the time since, as in Envoy. Randomised policies
need no second table for it, they draw by full weight and let a cold member pass the request on.

Not here: which members form the group (balance.py) and keys that stick to a member (ring_hash.py).
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from .balance import Member

RE_PICKS = 3
"""Draws for a retry before somebody has to look who is left."""

_COLD_DRAWS = 16


class Picker(Protocol):
    """Chooses among the members it was built from, at least one, each with a weight above zero."""

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        """One of them, or None where no draw found one that is not in `avoid`: there may still be one."""


class SlowStart(NamedTuple):
    """A member's weight during its first `window` seconds; 0 turns it off."""

    window: float = 0.0
    aggression: float = 1.0
    min_weight: float = 0.1

    def factor(self, age: float) -> float:
        """What the weight is multiplied by, `age` seconds after the member joined.

        max(min_weight, (age / window) ^ (1 / aggression)), at most 1 [Envoy, slow start mode].
        """
        if age >= self.window:
            return 1.0
        ramp: float = (max(0.0, age) / self.window) ** (1 / self.aggression)
        return max(self.min_weight, ramp)

    def until(self, members: Sequence[Member]) -> float:
        """From when on all `members` have their full weight; -inf where slow start is off."""
        return max(member.since for member in members) + self.window if self.window > 0 else float("-inf")


class Sole:
    """A group of one."""

    __slots__ = ("_member",)

    def __init__(self, member: Member) -> None:
        self._member = member

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        return None if self._member in avoid else self._member


class Rotation:
    """Round robin over members of one weight. Begins anywhere, or all workers would begin at the same member."""

    __slots__ = ("_at", "_members")

    def __init__(self, members: Sequence[Member], rng: Random) -> None:
        self._members = members
        self._at = rng.randrange(len(members))

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        members = self._members
        last = len(members) - 1
        for _ in members:
            self._at = at = self._at + 1 if self._at < last else 0
            member = members[at]
            if not avoid or member not in avoid:
                return member
        return None


class EarliestDeadline:
    """Round robin by weight: a member is due again 1/weight after it was, and the one due first is next.

    Interleaves smoothly (a b a, never a a b for 2:1), and no member is ever more than one turn off its share.
    """

    __slots__ = ("_heap", "_slow", "_warm")

    def __init__(self, members: Sequence[Member], rng: Random, slow_start: SlowStart) -> None:
        self._heap = [(rng.random() / member.weight, order, member) for order, member in enumerate(members)]
        heapify(self._heap)
        self._slow = slow_start
        self._warm = slow_start.until(members)

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        heap = self._heap
        for _ in heap:
            due, order, member = heap[0]
            weight = member.weight if now >= self._warm else member.weight * self._slow.factor(now - member.since)
            heapreplace(heap, (due + 1 / weight, order, member))
            if not avoid or member not in avoid:
                return member
        return None


class WeightedDraw:
    """A member at random, in proportion to its weight; `even` takes all weights for equal.

    Vose's alias method: each column of the table holds at most two members, so one random number decides.
    """

    __slots__ = ("_members", "_other", "_own", "_random", "_slow", "_warm")

    def __init__(self, members: Sequence[Member], rng: Random, slow_start: SlowStart, *, even: bool = False) -> None:
        self._members = members
        self._random = rng.random
        self._slow = slow_start
        self._warm = slow_start.until(members)
        count = len(members)
        self._own = [1.0] * count
        self._other = list(members)
        if even:
            return
        scale = count / sum(member.weight for member in members)
        shares = [member.weight * scale for member in members]
        small = [at for at, share in enumerate(shares) if share < 1]
        large = [at for at, share in enumerate(shares) if share >= 1]
        while small and large:
            less, more = small.pop(), large[-1]
            self._own[less], self._other[less] = shares[less], members[more]
            shares[more] -= 1 - shares[less]
            if shares[more] < 1:
                small.append(large.pop())

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        for _ in range(RE_PICKS):
            member = self.draw(now)
            if not avoid or member not in avoid:
                return member
        return None

    def draw(self, now: float) -> Member:
        """One member. A cold one takes what it is drawn for with the probability of its slow start factor."""
        draws = _COLD_DRAWS
        while True:
            column = self._random() * len(self._members)
            at = int(column)
            member = self._members[at] if column - at < self._own[at] else self._other[at]
            draws -= 1
            if now >= self._warm or not draws or self._random() < self._slow.factor(now - member.since):
                return member


class LeastRequest:
    """The less loaded of two members drawn by weight. Two are enough: a scan for the least makes all workers, which do
    not see each other's load, run to the same member at once.

    Load is requests in flight and tokens outstanding, each divided by the weight and measured against the other
    member's, so neither needs a unit: one prompt of 100 000 tokens outweighs a handful of short ones. Where the loads
    do not decide, the first drawn keeps the request, so idle members are used by weight.
    """

    __slots__ = ("_draw", "_even_from", "_members", "_random", "_slow", "_warm")

    def __init__(self, members: Sequence[Member], rng: Random, slow_start: SlowStart) -> None:
        self._members = members
        self._random = rng.random
        self._slow = slow_start
        self._warm = slow_start.until(members)
        self._even_from = self._warm if len({member.weight for member in members}) == 1 else inf
        """From when on all have the same weight."""
        self._draw = WeightedDraw(members, rng, slow_start)

    def pick(self, now: float, key: int | None, avoid: Collection[Member]) -> Member | None:
        if now >= self._even_from and not avoid:  # nearly always; as below, in one
            members, random = self._members, self._random
            drawn = int(random() * len(members))
            first = members[drawn]
            if not first.active:  # whatever the other one has
                return first
            second = members[drawn - 1 - int(random() * (len(members) - 1))]
            tokens = first.tokens + second.tokens
            more = (first.active - second.active) / (first.active + second.active)
            if tokens:
                more += (first.tokens - second.tokens) / tokens
            return second if more > 0 else first
        for _ in range(RE_PICKS):
            first, second = self._two(now)
            better, other = (second, first) if self._heavier(first, second, now) else (first, second)
            if not avoid or better not in avoid:
                return better
            if other not in avoid:
                return other
        return None

    def _two(self, now: float) -> tuple[Member, Member]:
        """Two different members, in the order drawn."""
        members, random = self._members, self._random
        others = len(members) - 1
        if now >= self._even_from:
            first = int(random() * len(members))
            return members[first], members[first - 1 - int(random() * others)]
        drawn, second = self._draw.draw(now), self._draw.draw(now)
        if second is drawn:
            second = members[members.index(drawn) - 1 - int(random() * others)]
        return drawn, second

    def _heavier(self, first: Member, second: Member, now: float) -> bool:
        """Whether `first` has so much more load than `second` that the request should go there instead."""
        requests = first.active + second.active
        if not requests:
            return False
        tokens = first.tokens + second.tokens
        weight: float = first.weight
        other: float = second.weight
        if now < self._warm:
            weight *= self._slow.factor(now - first.since)
            other *= self._slow.factor(now - second.since)
        if weight == other:
            more = (first.active - second.active) / requests
            return more + (first.tokens - second.tokens) / tokens > 0 if tokens else more > 0
        lead = other - weight
        more = _surplus(first.active * other, second.active * weight, lead)
        return more + _surplus(first.tokens * other, second.tokens * weight, lead * tokens / requests) > 0


def _surplus(mine: float, theirs: float, one_more: float) -> float:
    """(a - b) / (a + b) of two loads. 0 where it would change sign with `one_more` request on either: between unequal
    weights whole requests do not balance, and a small member would be taken for free each time it is idle."""
    difference = mine - theirs
    return difference / (mine + theirs) if difference * (difference + one_more) > 0 else 0.0
