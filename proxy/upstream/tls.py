"""The one way this package speaks TLS to a provider: verified, 1.2 or newer, HTTP/1.1 by ALPN.

There is no switch that turns verification off, so a key cannot leave over a connection whose other end is not proven.
Who runs a private certificate authority names it: `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's store, `ca`
adds to it.
"""

from __future__ import annotations

import ssl
from functools import cache

ALPN = ["http/1.1"]


@cache
def client_context(ca: str | None = None) -> ssl.SSLContext:
    """One context for all connections, because building it reads the whole store. `ca` is a PEM file."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    if ca is not None:
        context.load_verify_locations(cafile=ca)
    return context
