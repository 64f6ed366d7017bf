"""The admin listener beside a running gateway, in this process: both halves, as `workers: 1` has them.

    async with running_admin(config) as admin:
        answer = await admin.get("/ready")
        await admin.gateway.post()

Keys with and without roles are there: `KEYS`. The listener is on 127.0.0.1 whatever address the config names, so that a
test may be told to be public.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from headgate.control.process.control_half import ControlHalf
from headgate.control.process.view import SingleView
from headgate.proxy.edge.listen import bind

from .gateway import CLIENT_KEY, RunningGateway, bearer, running_gateway
from .raw import Answer, RawClient, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping


KEYS = {
    "nobody": "hg-unknown-canary-5Zr8tY3uLp6QwEaS",
    "app": CLIENT_KEY,
    "viewer": "hg-viewer-canary-2Vb7nM4kJh9GfDsA",
    "admin": "hg-admin-canary-8Xc3vB6nKl1PoIuY",
}
AUTH = {
    "auth": {
        "keys": [
            {"name": "app", "key": KEYS["app"]},
            {"name": "viewer", "key": KEYS["viewer"], "roles": ["viewer"]},
            {"name": "admin", "key": KEYS["admin"], "roles": ["admin"]},
        ]
    }
}
MOCK = {"mock": {"base_url": "mock:"}}


class RunningAdmin:
    """See the top."""

    def __init__(self, gateway: RunningGateway, control: ControlHalf, view: SingleView, port: int) -> None:
        self.gateway = gateway
        self.control = control
        self.view = view
        self.port = port

    async def ask(
        self,
        method: str,
        target: str,
        *,
        key: str | None = None,
        host: str | None = "localhost",
        headers: Iterable[tuple[str, str]] = (),
        body: object = None,
    ) -> Answer:
        """One request; `key` is a name of `KEYS`, `body` what becomes JSON, or bytes."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = [*headers, *bearer(KEYS[key] if key is not None else None)]
        async with RawClient(self.port) as client:
            await client.send(request(method, target, None if method in ("GET", "HEAD") else data, sent, host=host))
            return await client.answer(bodiless=method == "HEAD")

    async def get(self, target: str, *, key: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """GET."""
        return await self.ask("GET", target, key=key, headers=headers)


def config_with(*, auth: bool = False, public: bool = False, **changes: Any) -> dict[str, Any]:
    """A config over the mock."""
    address = "0.0.0.0" if public else "127.0.0.1"
    return {
        "listeners": {"data": {"port": 0}, "admin": {"address": address, "port": 0}},
        "providers": MOCK,
        "filters": [AUTH] if auth else [],
        **changes,
    }


@asynccontextmanager
async def running_admin(config: Mapping[str, Any] | None = None) -> AsyncIterator[RunningAdmin]:
    """Serve until the end of the block. The ledger is tailed, too."""
    async with running_gateway(config if config is not None else config_with()) as gateway:
        half = gateway.half
        control = ControlHalf(half.clock, half.deadlines, half.config, "test")
        view = SingleView(control, gateway.server)
        socket = bind("127.0.0.1", 0)
        async with control.running(socket, view):
            await control.tailer.flush()  # so that there is a ledger
            yield RunningAdmin(gateway, control, view, socket.getsockname()[1])
