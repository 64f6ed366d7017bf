"""/admin/keys: who may call, listed; and the keys of the `keys_file`, made, replaced and revoked.

The same as `headgate keys` does, by the same code (control/keys.py), to the same file, which every worker notices
within seconds. A key is in the answer that makes it and nowhere else; a list has names and scopes, and no digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import msgspec
from anyio import to_thread
from starlette.responses import Response

from ...config.units import parse_duration, parse_moment
from ...filters.keys_file import KeysFileError, read_records
from ...proxy.errors import (
    ConflictError,
    GatewayError,
    InvalidJsonError,
    InvalidRequestError,
    KeysFileAwayError,
    ObjectNotFoundError,
)
from ..keys import SCOPES, BadKeyError, KeyExistsError, KeyRing, NoSuchKeyError, make_template
from .audit import note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set

    from starlette.requests import Request

    from ...config import AuthConfig, Key
    from ...filters.keys_file import KeyRecord
    from .view import AdminView

T = TypeVar("T")
OVERLAP: Final = "1h"
"""How long the key before a new one is good, where nobody says."""


class KeyPages:
    """The handlers. One change at a time; it runs to its end in a thread, whether or not its caller waits."""

    def __init__(self, view: AdminView) -> None:
        self._view = view
        self._one = anyio.CapacityLimiter(1)

    async def list(self, request: Request) -> Response:
        """Every key of the config and of the file, those that are over included."""
        auth = self._view.config.auth
        shown = [_configured(key) for key in auth.keys] if auth is not None else []
        if auth is not None and auth.keys_file is not None:
            path = auth.keys_file
            shown += [_made(record) for record in await self._in_thread(lambda: read_records(path))]
        return _json({"object": "list", "data": shown})

    async def create(self, request: Request) -> Response:
        """A new key, shown this once."""
        auth, ring = self._ring()
        asked = await _object(request, {"name", "expires", *SCOPES})
        now = self._view.clock.wall()
        end = _end(asked, now)
        scopes = {name: asked[name] for name in SCOPES if asked.get(name) is not None}
        try:
            template = make_template(asked.get("name", ""), scopes, auth, end)
        except BadKeyError as error:
            raise InvalidRequestError(f"{error.field}: {error}.", param=error.field) from error
        note(request, f"create the key '{template.name}'")
        key = await self._in_thread(lambda: ring.create(template))
        return _json({**_made(template), "created": now, "key": key}, 201)

    async def rotate(self, request: Request) -> Response:
        """Another key of this name, shown this once."""
        _, ring = self._ring()
        name = request.path_params["name"]
        asked = await _object(request, {"overlap", "expires"})
        overlap = _seconds(asked.get("overlap", OVERLAP), "overlap")
        end = _end(asked, self._view.clock.wall())
        note(request, f"rotate the key '{name[:64]}'")
        key = await self._in_thread(lambda: ring.rotate(name, overlap, end))
        return _json({"object": "key", "name": name, "overlap_seconds": overlap, "key": key})

    async def revoke(self, request: Request) -> Response:
        """Every key of this name is gone."""
        _, ring = self._ring()
        name = request.path_params["name"]
        note(request, f"revoke the key '{name[:64]}'")
        count = await self._in_thread(lambda: ring.revoke(name))
        return _json({"object": "key", "name": name, "revoked": count})

    def _ring(self) -> tuple[AuthConfig, KeyRing]:
        auth = self._view.config.auth
        if auth is None or auth.keys_file is None:
            raise ConflictError("The config names no file for keys: filters: [auth: {keys_file: ./headgate-keys.db}].")
        return auth, KeyRing(auth.keys_file, auth.pepper, self._view.clock.wall)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Raises InvalidRequestError, ConflictError, ObjectNotFoundError, KeysFileAwayError."""
        try:
            return await to_thread.run_sync(work, limiter=self._one)
        except BadKeyError as error:
            raise InvalidRequestError(f"{error.field}: {error}.", param=error.field) from error
        except KeyExistsError as error:
            raise ConflictError("There is a key of this name already; it can be rotated.", param="name") from error
        except NoSuchKeyError as error:
            raise ObjectNotFoundError("The keys_file has no key of this name.") from error
        except (KeysFileError, OSError) as error:
            message = "The keys_file cannot be read or written; the log says why."
            raise KeysFileAwayError(message, detail=str(error)) from error


def _configured(key: Key) -> dict[str, Any]:
    scopes = {name: getattr(key, name) for name in SCOPES}
    expires = key.expires.timestamp() if key.expires is not None else None
    return {"object": "key", "name": key.name, "from": "config", **scopes, "created": None, "expires": expires}


def _made(record: KeyRecord) -> dict[str, Any]:
    scopes = {name: getattr(record, name) for name in SCOPES}
    return {
        "object": "key",
        "name": record.name,
        "from": "keys_file",
        **scopes,
        "created": record.created,
        "expires": record.expires,
    }


async def _object(request: Request, known: Set[str]) -> Mapping[str, Any]:
    """The body, which may be empty. Raises InvalidJsonError, InvalidRequestError."""
    body = await request.body()
    try:
        asked = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidJsonError("The body must be a JSON object.") from None
    if unknown := sorted(asked.keys() - known):
        raise InvalidRequestError(f"Only {', '.join(sorted(known))} are known here.", param=unknown[0][:64])
    return asked


def _end(asked: Mapping[str, Any], now: float) -> float | None:
    """Unix seconds of `expires`: an age, a date, or a time with its zone."""
    text = asked.get("expires")
    if text is None:
        return None
    try:
        return now + _seconds(text, "expires")
    except GatewayError:
        try:
            return parse_moment(text if isinstance(text, str) else "").timestamp()
        except ValueError:
            message = "'expires' must be an age like 90d, a date like 2030-06-30, or a time with its zone."
            raise InvalidRequestError(message, param="expires") from None


def _seconds(text: object, name: str) -> float:
    try:
        return parse_duration(text if isinstance(text, str) else "").total_seconds()
    except ValueError:
        raise InvalidRequestError(f"'{name}' must be an age like 12h.", param=name) from None


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
