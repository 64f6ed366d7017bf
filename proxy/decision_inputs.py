"""What a decision was made from: the state of every candidate at the moment it was made, for a sample of exchanges.

It is gone a moment later, so it is read then or never; and reading it costs more than the decision. So most exchanges
pay one subtraction: `Sampling` draws how many are passed over before the next one is taken, which is the same as a coin
tossed for each of them, without the tosses.

Not here: what is kept of every exchange, and how it is shown (decisions.py).
"""

from __future__ import annotations

import sys
from math import inf, log
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from random import Random

    from .exchange import Exchange
    from .plan import Target
    from .upstream.cluster import Cluster

SHOWN: Final = 16
"""Candidates, and endpoints of each, of which the state is read."""
_LONGEST: Final = 256


class Sampling:
    """Takes this share (0 to 1) of what it is asked about, at random.

    `left` is to be lowered by one for each; below 0 this one is taken, and `draw` says when the next is.
    """

    __slots__ = ("_log", "_rng", "left")

    def __init__(self, share: float, rng: Random) -> None:
        self._rng = rng
        self._log = -inf if share >= 1 else log(1 - share)
        self.left = 0
        self.draw()

    def draw(self) -> None:
        """How many are passed over now: geometrically distributed, by inversion."""
        self.left = int(log(1 - self._rng.random()) / self._log) if self._log else sys.maxsize


def read_inputs(ex: Exchange, now: float) -> dict[str, Any]:
    """What is known when the plan is about to be made, as JSON has it. `now` is monotonic. Changes nothing."""
    facts, policy = ex.facts, ex.retry
    candidates = ex.candidates
    return {
        "request": {
            "bytes": ex.bytes_in,
            "stream": facts.stream if facts is not None else None,
            "max_tokens": facts.max_tokens if facts is not None else None,
            "prompt_tokens": ex.rough_prompt.tokens if ex.rough_prompt is not None else None,
            "tags": sorted(ex.tags),
            "region": ex.region or None,
            "provider": ex.provider or ex.pinned,
            "seconds_left": round(ex.deadline - now, 3) if ex.deadline < inf else None,
        },
        "attempts_allowed": policy.attempts if policy is not None else 1,
        "candidates_in_all": len(candidates),
        "candidates": [_candidate(target, now) for target in candidates[:SHOWN]],
    }


def _candidate(target: Target, now: float) -> dict[str, Any]:
    cluster = target.cluster
    return {
        "provider": cluster.name,
        "model": target.model[:_LONGEST].encode("utf-8", "replace").decode(),
        "priority": target.priority,
        "unconfigured": cluster.unconfigured,
        "stand_in": cluster.stand_in,
        "objection": cluster.objection(target.model, now) if cluster.strained else None,
        "rests_seconds": round(cluster.rests_for(target.model, now), 3),
        "active": cluster.rq_active,
        "waiting": cluster.rq_pending_active,
        "retries_waiting": cluster.retries_waiting,
        "endpoints_in_all": len(cluster.hosts),
        "endpoints": _endpoints(cluster),
    }


def _endpoints(cluster: Cluster) -> list[dict[str, Any]]:
    return [
        {
            "endpoint": host.name,
            "priority": host.priority,
            "weight": host.weight,
            "region": host.region or None,
            "healthy": host.healthy,
            "ejected": host.ejected,
            "active": host.active,
            "tokens": host.tokens,
        }
        for host in cluster.hosts[:SHOWN]
    ]
