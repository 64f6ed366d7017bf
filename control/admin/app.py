"""The admin app: every endpoint with the access it asks for, in one table.

    app = admin_app(view)

What is not in `endpoints` does not exist, and a row cannot be written without its access (gate.py). No page of
documentation, no CORS, no debug mode.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ...config.effective import dump
from ...proxy.errors import ObjectNotFoundError
from ..telemetry.exposition import CONTENT_TYPE
from .access import Access
from .audit import Audit
from .budgets import budget_report
from .clusters import clusters_json, clusters_text
from .gate import Endpoint, Gate, permitted
from .keys import KeyPages
from .metrics import Metrics
from .page import page
from .state import LIVE, readiness, server_info, state
from .usage import usage_report

if TYPE_CHECKING:
    from starlette.requests import Request

    from .view import AdminView

MAX_ID = 128


def admin_app(view: AdminView) -> Starlette:
    """The app of the admin listener over `view`."""
    rows = endpoints(view)
    return Starlette(
        routes=[Route(row.path, row.handler, methods=[row.method]) for row in rows],
        middleware=[Middleware(Gate, view=view, endpoints=rows, audit=Audit(view))],
    )


def endpoints(view: AdminView) -> list[Endpoint]:
    """All there is."""
    pages, keys = Pages(view), KeyPages(view)
    return [
        Endpoint("GET", "/", Access.OPEN, pages.status),
        Endpoint("GET", "/ready", Access.EVERYBODY, pages.ready),
        Endpoint("GET", "/metrics", Access.OPEN, pages.metrics),
        Endpoint("GET", "/stats", Access.OPEN, pages.stats),
        Endpoint("GET", "/clusters", Access.OPEN, pages.clusters),
        Endpoint("GET", "/server_info", Access.OPEN, pages.server_info),
        Endpoint("GET", "/config_dump", Access.VIEWER, pages.config_dump),
        Endpoint("GET", "/admin/usage", Access.VIEWER, pages.usage),
        Endpoint("GET", "/admin/budgets", Access.VIEWER, pages.budgets),
        Endpoint("GET", "/admin/decisions/{id}", Access.VIEWER, pages.decision),
        Endpoint("GET", "/admin/keys", Access.VIEWER, keys.list),
        Endpoint("POST", "/admin/keys", Access.ADMIN, keys.create),
        Endpoint("POST", "/admin/keys/{name}/rotate", Access.ADMIN, keys.rotate),
        Endpoint("DELETE", "/admin/keys/{name}", Access.ADMIN, keys.revoke),
        Endpoint("GET", "/admin/audit", Access.VIEWER, Audit(view).show),
        Endpoint("POST", "/drain", Access.ADMIN, pages.drain),
    ]


class Pages:
    """The handlers."""

    def __init__(self, view: AdminView) -> None:
        self._view = view
        self._version = version("headgate")
        self._metrics = Metrics(view, self._version)
        self._page, self._policy = page()
        self._readers = anyio.CapacityLimiter(2)

    async def status(self, request: Request) -> Response:
        """The page for eyes."""
        return Response(self._page, 200, {"content-security-policy": self._policy}, media_type="text/html")

    async def ready(self, request: Request) -> Response:
        """LIVE, or not; and why, for those who may know more than that."""
        word = state(self._view)
        status = 200 if word == LIVE else 503
        if _wants_text(request):
            return PlainTextResponse(word + "\n", status)
        trusted = permitted(self._view, Access.OPEN, request.scope)
        return _json(readiness(self._view) if trusted else {"state": word}, status)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(await self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def stats(self, request: Request) -> Response:
        """The same samples as JSON; `?filter=` keeps those that hold a text, which is no pattern."""
        return _json(await self._metrics.stats(request.query_params.get("filter", "")))

    async def clusters(self, request: Request) -> Response:
        """Every upstream with what it counted."""
        told = self._view.config, self._view.snapshot(), self._view.checks()
        if request.query_params.get("format") == "json":
            return _json(clusters_json(*told))
        return PlainTextResponse(clusters_text(*told))

    async def server_info(self, request: Request) -> Response:
        """Version, state, uptime, workers."""
        return _json(server_info(self._view, self._version))

    async def config_dump(self, request: Request) -> Response:
        """The configuration in force without its secrets, and what it was compiled to."""
        config = self._view.config
        return _json({"version": config.digest, "config": dump(config), "chains": self._view.chains()})

    async def usage(self, request: Request) -> Response:
        """Sums of the ledger."""
        store = self._view.config.events.path
        body = await usage_report(store, request.query_params, self._view.clock.wall(), self._readers)
        return Response(body, media_type="application/json")

    async def budgets(self, request: Request) -> Response:
        """What is spent of them."""
        body = await budget_report(self._view.config, self._view.clock.wall(), self._readers)
        return Response(body, media_type="application/json")

    async def decision(self, request: Request) -> Response:
        """Why one exchange went as it did. Raises ObjectNotFoundError."""
        id_ = request.path_params["id"]
        found = await self._view.decision(id_) if id_.isascii() and len(id_) <= MAX_ID else None
        if found is None:
            raise ObjectNotFoundError(
                "No decision of this id is kept: it is in the memory of the worker that made it, among its latest. "
                "The ledger may have the row: headgate explain ID."
            )
        return _json(found)

    async def drain(self, request: Request) -> Response:
        """Take no new work; the process stays."""
        await self._view.drain()
        return _json(readiness(self._view))


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _wants_text(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "text/plain" in accepted and "application/json" not in accepted
