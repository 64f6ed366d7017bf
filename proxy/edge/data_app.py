"""What the data listener answers beside the endpoint table: liveness, readiness, health. No key is asked for.

Liveness says that the process serves at all. Readiness and `/v1/health` turn 503 while it starts or drains, and say no
more than that: what a gateway depends on is nobody's business here (/ready on the admin listener tells).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..errors import MethodNotAllowedError, UnknownPathError
from ..replies import error_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

PHASES = frozenset(("starting", "draining"))
"""Reasons that may be told to everybody; any other is `unavailable`."""


def data_app(ready: Callable[[], list[str]], version: str) -> Starlette:
    """The app beside the engine. `ready` gives the reasons for no traffic, none when there are none."""

    async def healthz(request: Request) -> Response:
        return _answer({"status": "alive"})

    async def readyz(request: Request) -> Response:
        reasons = ready()
        return _answer({"status": _phase(reasons) if reasons else "ready"}, 503 if reasons else 200)

    async def health(request: Request) -> Response:
        reasons = ready()
        status = _phase(reasons) if reasons else "healthy"
        return _answer({"status": status, "version": version}, 503 if reasons else 200)

    app = Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/v1/health", health)],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    return app


def _phase(reasons: list[str]) -> str:
    return next((reason for reason in reasons if reason in PHASES), "unavailable")


def _answer(body: dict[str, str], status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}
    if status == 503:
        headers["retry-after"] = "1"
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


async def _refuse(request: Request, refusal: Exception) -> Response:
    """The router knows two refusals: no such path, and no such method there."""
    methods = dict(getattr(refusal, "headers", None) or {}).get("Allow", "")
    allow = ", ".join(sorted(methods.split(", ")))
    path = request.scope["path"]
    error = MethodNotAllowedError(f"'{path[:128]}' takes {allow}.") if allow else UnknownPathError.of(path)
    request_id = secrets.token_hex(16)
    reply = error_reply(error, request_id)
    headers = {"x-request-id": request_id, "x-headgate-request-id": request_id} | ({"allow": allow} if allow else {})
    return Response(reply.body, reply.status, headers, media_type="application/json")
