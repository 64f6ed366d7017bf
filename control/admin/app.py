"""The admin app: every endpoint with the access it asks for, in one table.

    app = admin_app(view)

What is not in `endpoints` does not exist, and a row cannot be written without its access (gate.py). No page of
documentation, no CORS, no debug mode.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ...config.effective import dump
from .access import Access
from .clusters import clusters_json, clusters_text
from .gate import Endpoint, Gate
from .state import LIVE, readiness, server_info

if TYPE_CHECKING:
    from starlette.requests import Request

    from .view import AdminView


def admin_app(view: AdminView) -> Starlette:
    """The app of the admin listener over `view`."""
    rows = endpoints(view)
    return Starlette(
        routes=[Route(row.path, row.handler, methods=[row.method]) for row in rows],
        middleware=[Middleware(Gate, view=view, endpoints=rows)],
    )


def endpoints(view: AdminView) -> list[Endpoint]:
    """All there is."""
    pages = Pages(view)
    return [
        Endpoint("GET", "/ready", Access.EVERYBODY, pages.ready),
        Endpoint("GET", "/clusters", Access.OPEN, pages.clusters),
        Endpoint("GET", "/server_info", Access.OPEN, pages.server_info),
        Endpoint("GET", "/config_dump", Access.VIEWER, pages.config_dump),
        Endpoint("POST", "/drain", Access.ADMIN, pages.drain),
    ]


class Pages:
    """The handlers."""

    def __init__(self, view: AdminView) -> None:
        self._view = view
        self._version = version("headgate")

    async def ready(self, request: Request) -> Response:
        """LIVE, or why not."""
        body = readiness(self._view)
        status = 200 if body["state"] == LIVE else 503
        if _wants_text(request):
            return PlainTextResponse(body["state"] + "\n", status)
        return _json(body, status)

    async def clusters(self, request: Request) -> Response:
        """Every upstream with what it counted."""
        snapshot = self._view.snapshot()
        if request.query_params.get("format") == "json":
            return _json(clusters_json(self._view.config, snapshot))
        return PlainTextResponse(clusters_text(self._view.config, snapshot))

    async def server_info(self, request: Request) -> Response:
        """Version, state, uptime, workers."""
        return _json(server_info(self._view, self._version))

    async def config_dump(self, request: Request) -> Response:
        """The configuration in force without its secrets, and what it was compiled to."""
        config = self._view.config
        return _json({"version": config.digest, "config": dump(config), "chains": self._view.chains()})

    async def drain(self, request: Request) -> Response:
        """Take no new work; the process stays."""
        await self._view.drain()
        return _json(readiness(self._view))


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _wants_text(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "text/plain" in accepted and "application/json" not in accepted
