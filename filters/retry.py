"""How often, and after what, a failed attempt is followed by another.

The filter only installs a policy; whether a retry really happens is decided where the failure is seen
(proxy/succession.py), by the policy, by what is left to try, and by the budget of the provider it would go to.

Not here: time-outs (`providers.*.timeouts`).

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..proxy.filter import Filter
from ..proxy.plan import RetryPolicy
from ..proxy.upstream.hedge import HedgeSettings

if TYPE_CHECKING:
    from ..config import HedgeConfig, RetryConfig
    from ..proxy.exchange import Exchange


class Retry(Filter):
    """Installs `ex.retry`. `workers` share the retries that are always allowed."""

    reads_body = False
    after = ("auth",)

    def __init__(self, config: RetryConfig, *, workers: int = 1) -> None:
        self.name = "retry"
        self.policy = RetryPolicy(
            config.attempts,
            frozenset(config.on),
            budget_percent=config.budget.percent,
            budget_min_per_second=config.budget.min_per_second / workers,
            hedge=_hedge(config.hedge),
        )

    def on_request(self, ex: Exchange) -> None:
        """From now on failures may be repeated."""
        ex.retry = self.policy


def _hedge(config: HedgeConfig | None) -> HedgeSettings | None:
    return HedgeSettings(percent=config.percent, spend_percent=config.spend_percent) if config is not None else None
