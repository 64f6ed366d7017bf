"""TLS towards clients: a certificate that can be renewed under the listener.

The context lives as long as the listener. A new certificate is loaded into it, so that the next handshake uses it and
no connection notices. It is tried in a context of its own first: a bad file leaves the listener as it was.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple


class ServerCertificate(NamedTuple):
    """Paths of PEM files. With `client_ca`, clients must show a certificate of that authority."""

    cert: str
    key: str
    client_ca: str | None = None


def server_context(files: ServerCertificate) -> ssl.SSLContext:
    """TLS 1.2 at least, HTTP/1.1 by ALPN. Raises OSError (ssl.SSLError included) for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.cert, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def renew(context: ssl.SSLContext, files: ServerCertificate) -> None:
    """Handshakes from now on show what the files hold. Raises as `server_context`, and then nothing has changed."""
    server_context(files)
    context.load_cert_chain(files.cert, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
