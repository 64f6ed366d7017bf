"""Who changed what over the admin listener: a line in the log and a row in the event store, for each change asked for.

The row is written before the answer begins, so a change that was answered is on record, refusals and failures of it
included. Where the store is away the change is made all the same and the log has it: an operator must be able to revoke
a key on a full disk. Requests of those who may not change anything are not recorded: anybody could fill the store.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog
from anyio import to_thread
from starlette.responses import Response

from ...proxy.errors import InvalidRequestError, OverloadError
from ..events.audit import MOST_READ, Change, append, latest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

    from ...proxy.exchange import Principal
    from .view import AdminView

WHAT = "headgate.what"
SHOWN = 100
log = structlog.get_logger("headgate.admin")


def note(request: Request, what: str) -> None:
    """What a change is about to do, in words; without it its method and path have to do."""
    request.scope[WHAT] = what


class Audit:
    """Records changes, and shows them."""

    def __init__(self, view: AdminView) -> None:
        self._view = view
        self._one = anyio.CapacityLimiter(1)

    async def record(self, scope: Scope, principal: Principal, status: int, request_id: str) -> None:
        """This change has come to `status`. Never raises but when cancelled."""
        client = scope.get("client")
        change = Change(
            at=self._view.clock.wall(),
            key=principal.name,
            client=str(client[0]) if client else "",
            what=scope.get(WHAT) or f"{scope['method']} {scope['path'][:256]}",
            status=status,
            request_id=request_id,
        )
        log.info("admin_change", method=scope["method"], path=scope["path"], **msgspec.structs.asdict(change))
        store = self._view.config.events.path
        try:
            await to_thread.run_sync(lambda: append(store, change), limiter=self._one)
        except sqlite3.Error as error:
            log.error("audit_not_written", request_id=request_id, error=str(error))

    async def show(self, request: Request) -> Response:
        """GET /admin/audit?limit=: the latest changes, the newest first."""
        query = request.query_params
        if unknown := sorted(query.keys() - {"limit"}):
            raise InvalidRequestError("Only 'limit' is known here.", param=unknown[0][:64])
        text = query.get("limit", str(SHOWN))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 0 < limit <= MOST_READ:
            raise InvalidRequestError(f"'limit' must be a number from 1 to {MOST_READ}.", param="limit")
        store = self._view.config.events.path
        try:
            rows = await to_thread.run_sync(lambda: latest(store, limit), limiter=self._one)
        except sqlite3.Error as error:
            raise OverloadError(
                "The event store cannot be read now. Try again.", retry_after=5.0, detail=repr(error)
            ) from error
        return Response(msgspec.json.encode({"object": "list", "data": rows}), media_type="application/json")
