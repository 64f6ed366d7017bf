"""Whom a call may have to pay: the targets that may be asked, as far as that is known before the plan is made, and
whether two of them at a time.

Pure. Not here: what they cost (budget.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..proxy.exchange import Exchange
    from ..proxy.plan import Target

FREE: Final = frozenset(("files", "uploads", "conversations", "stored_responses", "stored_chats"))
"""Endpoints that name no model and cost nothing to use. What others of them start (a batch, a training) nobody here can
put a price on."""
READING: Final = frozenset(("GET", "HEAD", "DELETE"))


def pays_nobody(ex: Exchange) -> bool:
    """Of a request that names no model, whether it costs nothing."""
    return ex.face.name in FREE or ex.head.method in READING


def asked(ex: Exchange, costs: Mapping[Target, int | None]) -> list[int | None]:
    """The costs of those that may be asked: nothing speaks against them for good. What else does may be over when it is
    their turn."""
    real = any(not (target.cluster.stand_in or target.cluster.unconfigured) for target in costs)
    return [
        cost
        for target, cost in costs.items()
        if not (target.cluster.unconfigured or (real and target.cluster.stand_in) or is_objected(ex, (target,)))
    ]


def is_objected(ex: Exchange, targets: Iterable[Target]) -> bool:
    """Whether a filter objects to one of them for good."""
    for veto in ex.vetoes:
        if not veto.soft:
            for target in targets:
                if veto.check(target) is not None:
                    return True
    return False


def may_be_hedged(ex: Exchange) -> bool:
    """Whether a second attempt may be asked beside a late first one."""
    if ex.facts is None or not ex.facts.stream:
        return False
    if ex.retry is not None and ex.retry.hedge is not None:
        return True
    for link in ex.route.chain.filters if ex.route is not None else ():  # its policy may be set below
        if isinstance(link, Retry) and link.policy.hedge is not None:
            return True
    return False
