"""`headgate explain ID`: asks the running gateway why, and the ledger where that remembers no more.

The command reads the same config as the gateway, so it knows where admin listens and has a key that may ask: the first
of the config's own with a role, where it is given no other. What a gateway keeps of an exchange is in its memory; the
ledger knows for longer how it ended, and not why.
"""

from __future__ import annotations

import json
import sqlite3
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..config import GatewayConfig
    from ..config.listeners import ListenerTls

SECONDS = 10.0
MAX_ANSWER = 4 * 1024 * 1024
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address that is listened on, to one that is asked
_OK = 200
_UNKNOWN = 404


class ExplainError(Exception):
    """Nobody can say, and why."""


def explain(config: GatewayConfig, id_: str, key: str | None = None) -> dict[str, Any]:
    """The decision of this id, as GET /admin/decisions/{id} has it; `{"object": "usage", …}` where only the ledger
    remembers. `key`: one with a role, instead of the config's own. Raises ExplainError."""
    try:
        status, said = _ask(config, id_, key)
    except (OSError, HTTPException, ValueError) as error:
        status, said, away = 0, {}, f"the gateway does not answer on its admin listener ({error})"
    else:
        away = "no worker remembers its reasons" if status == _UNKNOWN else _message(said).rstrip(".")
    if status == _OK:
        return said
    row = _row(config.events.path, id_)
    if row is not None:
        return row
    raise ExplainError(
        f"no exchange '{id_[:64]}' is known: {away}, and the ledger at {config.events.path} has no row of it"
    )


def as_text(decision: dict[str, Any]) -> str:
    """For eyes."""
    return "\n".join(_usage_lines(decision) if decision["object"] == "usage" else _lines(decision))


def _ask(config: GatewayConfig, id_: str, key: str | None) -> tuple[int, dict[str, Any]]:
    listener = config.listeners.admin
    address = _EVERYWHERE.get(str(listener.address), str(listener.address))
    if listener.tls is None:
        connection = HTTPConnection(address, listener.port, timeout=SECONDS)
    else:
        connection = HTTPSConnection(address, listener.port, timeout=SECONDS, context=_trusting(listener.tls))
    with closing(connection):
        connection.request("GET", f"/admin/decisions/{quote(id_, safe='')}", headers=_key(config, key))
        answer = connection.getresponse()
        said = json.loads(answer.read(MAX_ANSWER))
        return answer.status, said if isinstance(said, dict) else {}


def _trusting(tls: ListenerTls) -> ssl.SSLContext:
    """Trusts the listener's own certificate, whatever its name and whoever signed it: it is read from the same file."""
    context = ssl.create_default_context(cafile=str(tls.cert))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _key(config: GatewayConfig, key: str | None) -> dict[str, str]:
    auth = config.auth
    if auth is None:
        return {}
    key = key or next((one.key.reveal() for one in auth.keys if one.roles), None)
    bearer = "Bearer " if auth.header == "authorization" else ""
    return {auth.header: bearer + key} if key is not None else {}


def _message(said: dict[str, Any]) -> str:
    error = said.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else "the gateway did not say why"


def _row(store: Path, id_: str) -> dict[str, Any] | None:
    if not store.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(store))}?mode=ro", uri=True, timeout=SECONDS)) as db:
            db.row_factory = sqlite3.Row
            row = db.execute("SELECT * FROM usage WHERE id = ?", (id_,)).fetchone()
    except sqlite3.Error as error:
        raise ExplainError(f"the ledger at {store} cannot be read: {error}") from error
    return {"object": "usage", **dict(row)} if row is not None else None


def _lines(decision: dict[str, Any]) -> Iterator[str]:
    """A decision, part by part."""
    yield f"{decision['id']}: {decision['status']} {decision['outcome']} after {decision['duration_ms']:g} ms"
    asked = {name: decision[name] for name in ("endpoint", "key", "route", "model", "config") if decision[name]}
    yield "  request: " + ", ".join(f"{name} {value}" for name, value in asked.items())
    yield "  filters: " + (", ".join(_filter(one) for one in decision["filters"]) or "none")
    for one in decision["attempts"]:
        place = one["endpoint"] or "no endpoint"
        key = f" with the key {one['key']}" if one["key"] else ""
        until = f" to {one['ended_ms']:g}" if one["ended_ms"] is not None else ""
        yield f"  attempt {one['number']}: {place}{key}, from {one['started_ms']:g}{until} ms"
    yield "  why:"
    yield from (f"    {sentence}" for sentence in decision["why"])


def _filter(one: dict[str, Any]) -> str:
    return f"{one['name']} {one['verdict']}" + (f" in {one['ms']:g} ms" if one["ms"] is not None else "")


def _usage_lines(row: dict[str, Any]) -> Iterator[str]:
    """What the ledger knows."""
    yield f"{row['id']}: {row['status']} {row['outcome']}; why is no longer kept, the ledger has:"
    yield from (f"  {name}: {value}" for name, value in row.items() if value not in ("", None) and name != "object")
