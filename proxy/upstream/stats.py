"""What one endpoint counts, in Envoy's words and as plain integers, which a collector reads."""

from __future__ import annotations


class UpstreamStats:
    """`cx_`: connections, `rq_`: requests. The three `_active` are gauges, all others only grow."""

    __slots__ = (
        "cx_active",
        "cx_close_notify",
        "cx_connect_fail",
        "cx_connect_timeout",
        "cx_destroy_with_active_rq",
        "cx_http2_total",
        "cx_idle_timeout",
        "cx_keepalive_timeout",
        "cx_moved",
        "cx_protocol_error",
        "cx_total",
        "rq_active",
        "rq_cancelled",
        "rq_pending_active",
        "rq_pending_overflow",
        "rq_pending_timeout",
        "rq_retry",
        "rq_rx_reset",
        "rq_total",
        "rq_tx_reset",
    )

    def __init__(self) -> None:
        self.cx_active = 0
        self.cx_total = 0
        self.cx_connect_fail = 0
        self.cx_connect_timeout = 0
        self.cx_destroy_with_active_rq = 0
        self.cx_idle_timeout = 0
        self.cx_protocol_error = 0
        self.cx_http2_total = 0
        """Those of `cx_total` that speak HTTP/2."""
        self.cx_close_notify = 0
        """GOAWAYs: HTTP/2 connections that take no more calls."""
        self.cx_keepalive_timeout = 0
        """HTTP/2 connections given up because a PING was not answered."""
        self.cx_moved = 0
        """Connections that take no more calls because their provider's name leads elsewhere."""
        self.rq_active = 0
        self.rq_total = 0
        self.rq_cancelled = 0
        self.rq_pending_active = 0
        self.rq_pending_overflow = 0
        self.rq_pending_timeout = 0
        self.rq_retry = 0
        """Sent once more by the endpoint itself: the provider closed an idle connection as we took it, or said that it
        had not looked at the request."""
        self.rq_rx_reset = 0
        """HTTP/2 streams that the provider reset."""
        self.rq_tx_reset = 0
        """HTTP/2 streams that we reset."""

    def as_dict(self) -> dict[str, int]:
        """Name to value, in alphabetical order."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"<UpstreamStats {', '.join(f'{name}={value}' for name, value in self.as_dict().items() if value)}>"
