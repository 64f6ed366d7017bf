"""The one way into the admin app: no declared access, no entry; and every error has the gateway's own shape.

The gate stands before the router and knows the endpoints by their declarations, so a route that is added to the app
without one cannot be reached. What is unknown (404, 405) is told only to those who may see an open endpoint.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ...proxy.edge.guard import Guard
from ...proxy.errors import (
    DownstreamError,
    GatewayError,
    MethodNotAllowedError,
    UnauthorizedError,
    UnknownPathError,
)
from ...proxy.replies import error_reply, internal_error
from .access import Access, authorize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ...proxy.exchange import Principal
    from .audit import Audit
    from .view import AdminView

BEARER = b"authorization"
THIS_MACHINE = Guard(open_to_all=True)
SAFE = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""On every answer: an operator's browser must not keep it, guess at it, or show it inside another page."""

log = structlog.get_logger("headgate.admin")


class Endpoint(NamedTuple):
    """One method of one path, and who may use it. GET serves HEAD, too. A segment of a path may be a name in braces,
    which stands for any."""

    method: str
    path: str
    access: Access
    handler: Callable[[Request], Awaitable[Response]]


class Gate:
    """ASGI middleware that lets declared requests of those who may through to `app`."""

    def __init__(self, app: ASGIApp, *, view: AdminView, endpoints: Iterable[Endpoint], audit: Audit) -> None:
        self._app = app
        self._view = view
        self._audit = audit
        self._paths: dict[str, dict[str, Access]] = {}
        for endpoint in endpoints:
            self._paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint.access
        self._patterns = {tuple(path.split("/")): path for path in self._paths if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # the app's lifespan; it has no WebSocket
            return
        started = False
        request_id = secrets.token_hex(16)
        changing: Principal | None = None

        async def send_safe(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *SAFE]
                if changing is not None:
                    await self._audit.record(scope, changing, message["status"], request_id)
            await send(message)

        extra: list[tuple[bytes, bytes]] = []
        try:
            changing = self._admit(scope)
            await self._app(scope, receive, send_safe)
            return
        except GatewayError as refusal:
            error = refusal
            if error.detail is not None:
                log.warning("admin_refused", request_id=request_id, path=scope["path"], detail=error.detail)
            if isinstance(error, UnauthorizedError):
                extra.append((b"www-authenticate", b"Bearer"))
            if isinstance(error, MethodNotAllowedError):
                extra.append((b"allow", self._allow(scope["path"])))
        except Exception:
            log.exception("admin_failed", request_id=request_id, path=scope["path"])
            if started:
                raise
            error = internal_error()
        reply = error_reply(error, request_id)
        headers = [*reply.headers, (b"x-request-id", request_id.encode()), *extra]
        await send_safe({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send_safe({"type": "http.response.body", "body": reply.body})

    def _admit(self, scope: Scope) -> Principal | None:
        """Whoever is about to change something, if this is to change anything."""
        methods = self._methods(scope["path"])
        if methods is None:
            check(self._view, Access.OPEN, scope)
            raise UnknownPathError("Unknown path. GET / lists what there is.")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        access = methods.get(method)
        if access is None:
            check(self._view, Access.OPEN, scope)
            raise MethodNotAllowedError(f"This path takes {', '.join(sorted(methods))}.")
        principal = check(self._view, access, scope)
        return principal if access is Access.ADMIN else None

    def _methods(self, path: str) -> dict[str, Access] | None:
        """Of what is declared: the path itself, else one with any segments in the places of its names."""
        if path in self._paths:
            return self._paths[path]
        segments = path.split("/")
        for pattern, declared in self._patterns.items():
            if len(pattern) == len(segments) and all(map(_fits, pattern, segments)):
                return self._paths[declared]
        return None

    def _allow(self, path: str) -> bytes:
        methods = set(self._methods(path) or ())
        return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set()))).encode()


def _fits(declared: str, segment: str) -> bool:
    return segment == declared or (declared.startswith("{") and segment != "")


def check(view: AdminView, access: Access, scope: Scope) -> Principal | None:
    """Who asks, where that matters; raises UnauthorizedError or PermissionDeniedError where he may not."""
    return authorize(
        access,
        loopback=_is_local(view, scope),
        keyless=view.config.auth_is_open,
        identify=lambda: _identify(view, scope),
    )


def permitted(view: AdminView, access: Access, scope: Scope) -> bool:
    """Whether the caller may."""
    try:
        check(view, access, scope)
    except DownstreamError:
        return False
    return True


def _is_local(view: AdminView, scope: Scope) -> bool:
    """Only this machine reaches the listener, and no web page that had its name re-bound to it."""
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    return view.loopback and THIS_MACHINE.check(host, None) is None


def _identify(view: AdminView, scope: Scope) -> Principal:
    """Whose key the request carries: in the header of `auth`, or as the bearer token that scrapers can send."""
    auth = view.config.auth
    own = auth.header.encode() if auth is not None else BEARER
    fields: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        fields.setdefault(name, value)
    return view.identify(fields.get(own, fields.get(BEARER)))
