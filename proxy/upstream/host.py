"""One endpoint as its cluster sees it: what balancing reads, how it fares, what it has answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .balance import Member
from .outlier import OutlierState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .call import Endpoint


class Host(Member):
    """A member of a cluster and the endpoint behind it."""

    __slots__ = (
        "endpoint",
        "healthy",
        "metadata",
        "outlier",
        "rq_cancelled",
        "rq_error",
        "rq_success",
        "rq_timeout",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        weight: int = 1,
        priority: int = 0,
        region: str = "",
        metadata: Mapping[str, str] | None = None,
        healthy: bool = True,
    ) -> None:
        super().__init__(endpoint.name, weight=weight, priority=priority, region=region, available=healthy)
        self.endpoint = endpoint
        self.metadata = dict(metadata or {})
        self.healthy = healthy
        """As the last active check found it; before the first one, whatever serves better."""
        self.outlier = OutlierState(self)
        self.rq_success = 0
        self.rq_error = 0
        self.rq_timeout = 0
        self.rq_cancelled = 0

    @property
    def ejected(self) -> bool:
        """By outlier detection."""
        return self.outlier.ejected

    @property
    def rq_total(self) -> int:
        """Calls that it was given: under way, or over."""
        return self.active + self.rq_success + self.rq_error + self.rq_cancelled
