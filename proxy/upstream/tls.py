"""The one way this package speaks TLS to a provider: verified, 1.2 or newer, HTTP's version by ALPN.

There is no switch that turns verification off, so a key cannot leave over a connection whose other end is not proven.
Who runs a private certificate authority names it: `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's store, `ca`
adds to it.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Final, Literal

Http2 = Literal["auto"] | bool
"""Whether HTTP/2 is spoken: as ALPN says, always, never. Without TLS there is no ALPN, and `auto` means never."""

ALPN: Final[dict[Http2, list[str]]] = {"auto": ["h2", "http/1.1"], True: ["h2"], False: ["http/1.1"]}


@cache
def client_context(ca: str | None = None, http2: Http2 = False) -> ssl.SSLContext:
    """One context for all connections of a kind, because building it reads the whole store. `ca` is a PEM file."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN[http2])
    if ca is not None:
        context.load_verify_locations(cafile=ca)
    return context
