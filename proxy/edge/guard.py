"""Host and Origin: a web page must not be able to spend the user's keys.

Two attacks come through the user's own browser. A page of another origin posts to 127.0.0.1: browsers name that
origin, and it is refused unless it is the listener's own or listed. A page whose host name was re-bound to 127.0.0.1
is of the same origin as the listener; it cannot know a key, so it matters only while no key is asked for: then the
Host must be this machine's.

Not here: the syntax of Host (request_head.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import HostNotAllowedError, OriginNotAllowedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..errors import GatewayError

_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_THIS_MACHINE = re.compile(
    rb"(?:localhost|127\." + _OCTET + rb"\." + _OCTET + rb"\." + _OCTET + rb"|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE
)
_ORIGIN = re.compile(rb"(https?)://([^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORT = {b"http": b":80", b"https": b":443"}


class Guard:
    """`open_to_all`: no key guards the listener. `origins` are those of `cors.origins`, as browsers write them."""

    __slots__ = ("_open_to_all", "_origins")

    def __init__(self, *, open_to_all: bool, origins: Iterable[str] = ()) -> None:
        self._open_to_all = open_to_all
        self._origins = frozenset(origin.lower().encode() for origin in origins)

    def check(self, host: bytes | None, origin: bytes | None) -> GatewayError | None:
        """Why a request with these two fields is refused, or None. A request without Host comes from no browser."""
        if self._open_to_all and host is not None and _THIS_MACHINE.fullmatch(host) is None:
            return HostNotAllowedError(
                "While no API key guards this gateway, it answers to localhost, 127.0.0.0/8 and [::1] only."
            )
        if origin is not None and not self._is_allowed(origin.lower(), host):
            return OriginNotAllowedError("This web origin may not use the gateway.")
        return None

    def _is_allowed(self, origin: bytes, host: bytes | None) -> bool:
        if origin in self._origins:
            return True
        match = _ORIGIN.fullmatch(origin)
        if match is None or host is None:
            return False
        default = _DEFAULT_PORT[match[1]]
        return match[2].removesuffix(default) == host.lower().removesuffix(default)
