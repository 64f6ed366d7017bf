"""The admin listener's routes times roles, over sockets, against a table that somebody has looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from headgate.control.admin.access import Access
from headgate.control.admin.app import admin_app, endpoints
from headgate.control.admin.gate import Gate
from tests_support.admin import config_with, running_admin
from tests_support.edge import EchoAcceptor, running_edge
from tests_support.raw import request

if TYPE_CHECKING:
    from tests_support.admin import RunningAdmin

CALLERS = (None, "nobody", "app", "viewer", "admin")
OPEN = (200, 200, 200, 200, 200)
NEEDS_ROLE = (401, 401, 403, 200, 200)
NEEDS_ADMIN = (401, 401, 403, 403, 200)
NO_FILE = (401, 401, 403, 403, 409)
REFUSED = (403, 403, 403, 403, 403)

# What each caller gets on loopback with keys, on loopback without, and on a public address.
ROUTES = {
    ("GET", "/"): (OPEN, OPEN, NEEDS_ROLE),
    ("GET", "/ready"): (OPEN, OPEN, OPEN),
    ("GET", "/metrics"): (OPEN, OPEN, NEEDS_ROLE),
    ("GET", "/stats"): (OPEN, OPEN, NEEDS_ROLE),
    ("GET", "/clusters"): (OPEN, OPEN, NEEDS_ROLE),
    ("GET", "/server_info"): (OPEN, OPEN, NEEDS_ROLE),
    ("GET", "/config_dump"): (NEEDS_ROLE, OPEN, NEEDS_ROLE),
    ("GET", "/admin/usage"): (NEEDS_ROLE, OPEN, NEEDS_ROLE),
    ("GET", "/admin/budgets"): (NEEDS_ROLE, OPEN, NEEDS_ROLE),
    ("GET", "/admin/decisions/{id}"): ((401, 401, 403, 404, 404), (404,) * 5, (401, 401, 403, 404, 404)),
    ("GET", "/admin/keys"): (NEEDS_ROLE, OPEN, NEEDS_ROLE),
    ("POST", "/admin/keys"): (NO_FILE, REFUSED, NO_FILE),
    ("POST", "/admin/keys/{name}/rotate"): (NO_FILE, REFUSED, NO_FILE),
    ("DELETE", "/admin/keys/{name}"): (NO_FILE, REFUSED, NO_FILE),
    ("GET", "/admin/audit"): (NEEDS_ROLE, OPEN, NEEDS_ROLE),
    ("POST", "/drain"): (NEEDS_ADMIN, REFUSED, NEEDS_ADMIN),
}
SETTINGS = {
    "loopback": config_with(auth=True),
    "keyless": config_with(),
    "public": config_with(auth=True, public=True),
}


async def statuses(admin: RunningAdmin, method: str, path: str) -> tuple[int, ...]:
    return tuple([(await admin.ask(method, path, key=caller)).status for caller in CALLERS])


async def test_the_table_names_every_route_and_no_other() -> None:
    async with running_admin() as admin:
        assert {(row.method, row.path) for row in endpoints(admin.view)} == set(ROUTES)


@pytest.mark.parametrize(("setting", "column"), [("loopback", 0), ("keyless", 1), ("public", 2)])
async def test_every_caller_gets_what_the_table_says(setting: str, column: int) -> None:
    async with running_admin(SETTINGS[setting]) as admin:
        # /drain comes last: what follows it would find the gateway not ready.
        found = {route: await statuses(admin, *route) for route in ROUTES}
    assert found == {route: columns[column] for route, columns in ROUTES.items()}


@pytest.mark.parametrize(("setting", "column"), [("loopback", 0), ("keyless", 1), ("public", 2)])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_has_no_effect_and_is_405_for_those_who_may_know(
    method: str, setting: str, column: int
) -> None:
    hidden = {"loopback": (405,) * 5, "keyless": (405,) * 5, "public": (401, 401, 403, 405, 405)}[setting]
    async with running_admin(SETTINGS[setting]) as admin:
        for path in {path for _, path in ROUTES}:
            if (method, path) in ROUTES or (method == "HEAD" and ("GET", path) in ROUTES):
                continue
            assert await statuses(admin, method, path) == hidden, path
        assert not admin.gateway.half.engine.draining
        assert admin.gateway.half.ready


@pytest.mark.parametrize(("setting", "seen"), [("loopback", (404,) * 5), ("public", (401, 401, 403, 404, 404))])
async def test_unknown_paths_are_404_for_those_who_may_know(setting: str, seen: tuple[int, ...]) -> None:
    async with running_admin(SETTINGS[setting]) as admin:
        for path in (
            "/nothing",
            "/ready/",
            "/READY",
            "//ready",
            "/admin",
            "/admin/",
            "/admin/decisions",
            "/admin/decisions/",
            "/docs",
            "/openapi.json",
        ):
            assert await statuses(admin, "GET", path) == seen, path


async def test_a_web_page_rebound_to_this_machine_needs_a_key() -> None:
    """While keys guard the listener, the edge lets every Host in; what is open to this machine is not open to it."""
    async with running_admin(SETTINGS["loopback"]) as admin:
        for method, path in ROUTES:
            if path == "/ready":
                continue
            assert (await admin.ask(method, path, host="evil.example")).status == 401, path
        assert (await admin.ask("GET", "/stats", host="gateway.internal", key="viewer")).status == 200
        assert (await admin.ask("GET", "/ready", host="evil.example")).json() == {"state": "LIVE"}


async def test_a_foreign_origin_and_a_foreign_host_without_keys_are_refused_by_the_edge() -> None:
    async with running_admin(SETTINGS["keyless"]) as admin:
        assert (await admin.ask("GET", "/stats", host="evil.example")).error["code"] == "host_not_allowed"
        foreign = [("origin", "https://evil.example")]
        answer = await admin.get("/stats", headers=foreign)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


async def test_a_route_without_a_declared_access_cannot_be_reached() -> None:
    async with running_admin() as admin:
        app = admin_app(admin.view)
        app.router.routes.append(Route("/forgotten", lambda request: PlainTextResponse("open")))
        async with running_edge(EchoAcceptor(), app=app) as edge:
            assert (await edge.ask(request("GET", "/ready"))).status == 200
            assert (await edge.ask(request("GET", "/forgotten"))).status == 404


async def test_every_route_of_the_app_is_behind_the_gate() -> None:
    async with running_admin() as admin:
        app = admin_app(admin.view)
        gate: list[object] = [middleware.cls for middleware in app.user_middleware]
        assert gate == [Gate]
        declared = {(row.path, row.method) for row in endpoints(admin.view)}
        mounted = {
            (route.path, method)
            for route in app.routes
            if isinstance(route, Route)
            for method in (route.methods or set()) - {"HEAD"}
        }
        assert mounted == declared
        assert len(app.routes) == len(declared)
        assert all(isinstance(row.access, Access) for row in endpoints(admin.view))


async def test_no_key_no_role_and_no_admin_are_three_answers() -> None:
    async with running_admin(SETTINGS["loopback"]) as admin:
        unknown = await admin.ask("POST", "/drain", key="nobody")
        assert (unknown.error["code"], unknown.header("www-authenticate")) == ("invalid_api_key", "Bearer")
        assert (await admin.get("/config_dump", key="app")).error["code"] == "permission_denied"
        assert (await admin.ask("POST", "/drain", key="viewer")).error["code"] == "admin_key_required"
    async with running_admin(SETTINGS["keyless"]) as admin:
        assert (await admin.ask("POST", "/drain")).error["code"] == "admin_key_required"


async def test_the_key_comes_in_the_header_of_auth_or_as_bearer_token() -> None:
    config = config_with(auth=True)
    config["filters"] = [{"auth": {**config["filters"][0]["auth"], "header": "x-headgate-key"}}]
    async with running_admin(config) as admin:
        viewer = "hg-viewer-canary-2Vb7nM4kJh9GfDsA"
        assert (await admin.get("/config_dump", headers=[("x-headgate-key", viewer)])).status == 200
        assert (await admin.get("/config_dump", key="viewer")).status == 200
        assert (await admin.get("/config_dump", headers=[("x-headgate-key", "x")], key="viewer")).status == 401
        assert (await admin.get(f"/config_dump?key={viewer}&access_token={viewer}")).status == 401
