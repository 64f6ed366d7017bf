"""The gateway's state in Envoy's words: /ready, /server_info, and the two things that follow from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .view import AdminView

LIVE = "LIVE"
WORDS = {"draining": "DRAINING", "starting": "INITIALIZING"}
OTHERWISE = "UNAVAILABLE"


def state(view: AdminView) -> str:
    """One word."""
    reasons = view.readiness()
    if not reasons:
        return LIVE
    return next((word for reason, word in WORDS.items() if reason in reasons), OTHERWISE)


def readiness(view: AdminView) -> dict[str, Any]:
    """The body of /ready for those who may know why."""
    return {"state": state(view), "reasons": view.readiness(), "warnings": view.warnings()}


def server_info(view: AdminView, version: str) -> dict[str, Any]:
    """The body of /server_info."""
    config = view.config
    workers = view.workers()
    return {
        "version": version,
        "state": state(view),
        "uptime_seconds": round(max(0.0, view.clock.wall() - view.started), 3),
        "started": view.started,
        "pid": os.getpid(),
        "config_version": config.digest,
        "config_files": [str(path) for path in config.files],
        "workers": [
            {
                "worker": one.worker,
                "pid": one.pid,
                "started": one.started,
                "config_version": one.config,
                "ready": one.ready,
                "draining": one.draining,
                "live": one.live,
                "connections": one.connections,
                "rss_bytes": one.rss_bytes,
                "loop_lag_seconds": one.loop_lag,
            }
            for one in workers
        ],
    }
