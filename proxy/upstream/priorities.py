"""How load is shared out between priority levels, and when a level is beyond choosing.

Envoy's arithmetic, in whole per cents. A level whose healthy share times the over-provisioning factor reaches 100 %
carries all that falls on it; below that, the missing part spills to the next level. When even all levels together
cannot reach 100 %, what there is counts as the whole, and a level under the panic threshold stops choosing: all its
members take load, since the few healthy ones would be crushed by it. When nobody at all is healthy, the first level
takes everything, so that a paid provider below it is not flooded by a failing probe.

Source: Envoy's load balancing documentation (priority levels, degraded endpoints, panic threshold).

Not here: which member of a level takes a request (policies.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

OVERPROVISIONING = 140
"""Per cent: 72 % healthy members still carry 100 % of the load."""

PANIC_THRESHOLD = 50
"""Per cent of healthy members below which a level panics; 0 turns panic off."""


class Health(NamedTuple):
    """Members of a level: how many may be used, of how many."""

    healthy: int
    total: int


class Share(NamedTuple):
    """What one level takes: `load` in per cent; `panic` when health no longer decides who takes it."""

    load: int
    panic: bool


def sufficiency(health: Health, overprovisioning: int = OVERPROVISIONING) -> int:
    """The part of its load that a group of members can carry, 0 to 100 %; never 0 while one of them is healthy."""
    if not health.healthy:
        return 0
    return min(100, max(1, overprovisioning * health.healthy // health.total))


def share_load(
    levels: Sequence[Health], *, overprovisioning: int = OVERPROVISIONING, panic_threshold: float = PANIC_THRESHOLD
) -> list[Share]:
    """One share for each of `levels`, highest priority first. The loads add up to 100, or to 0 where nothing can take
    any: no members at all, or nobody healthy and panic turned off."""
    healths = [sufficiency(level, overprovisioning) for level in levels]
    total = min(100, sum(healths))
    panics = [
        total < 100 and level.total > 0 and 100 * level.healthy < panic_threshold * level.total for level in levels
    ]
    loads = [0] * len(levels)
    if total == 0:
        for at, panic in enumerate(panics):
            if panic:
                loads[at] = 100
                break
    else:
        left = 100
        for at, health in enumerate(healths):
            loads[at] = min(left, health * 100 // total)
            left -= loads[at]
        loads[next(at for at, health in enumerate(healths) if health)] += left  # what rounding down left over
    return [Share(load, panic) for load, panic in zip(loads, panics, strict=True)]
