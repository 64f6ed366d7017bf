"""A provider as the engine sees it: its endpoints, its time-outs, and what all its calls share.

Not here: connections (pool.py), which target comes next (plan.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .retry_budget import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..accounting.prices import Price
    from ..catalog import ListedModel
    from ..dialect import Dialect
    from .call import Call, CallReceiver, Endpoint, UpstreamRequest


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
    """One provider. Outlives the configs that name it, as long as its address and credential stay."""

    __slots__ = (
        "credential_origin",
        "dialect",
        "endpoints",
        "has_credential",
        "host",
        "listed",
        "name",
        "price",
        "price_as",
        "retries_waiting",
        "retry_budget",
        "rq_error",
        "rq_retry",
        "rq_success",
        "rq_total",
        "stand_in",
        "timeouts",
        "unconfigured",
    )

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        endpoints: Sequence[Endpoint],
        *,
        host: str = "",
        timeouts: Timeouts | None = None,
        unconfigured: bool = False,
        credential_origin: str | None = None,
        has_credential: bool = False,
        stand_in: bool = False,
        price_as: str | None = None,
        price: Price | None = None,
        listed: Mapping[str, ListedModel] | None = None,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.endpoints = tuple(endpoints)
        self.host = host
        self.timeouts = timeouts or Timeouts()
        self.unconfigured = unconfigured
        """It has a key in the config, and the key expanded to nothing."""
        self.credential_origin = credential_origin
        """Where the key should have come from, for the message that says so."""
        self.has_credential = has_credential
        """Calls carry a key of ours: a 401 is ours to explain, not the client's."""
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
        self.rq_total = 0
        self.rq_success = 0
        self.rq_error = 0
        self.rq_retry = 0

    @property
    def health(self) -> str:
        """What an operator would say of it: `configured` or `unconfigured`."""
        return "unconfigured" if self.unconfigured else "configured"

    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> tuple[Call, str]:
        """Begin an attempt at the next endpoint; returns the handle and the endpoint's name."""
        endpoint = self.endpoints[0]
        self.rq_total += 1
        return endpoint.start(request, receiver), endpoint.name

    async def aclose(self) -> None:
        """Close idle connections; running calls end on their own."""
        for endpoint in self.endpoints:
            await endpoint.aclose()

    def __repr__(self) -> str:
        return f"<Cluster {self.name}>"
