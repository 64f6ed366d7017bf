"""What a listener's config makes of the edge in front of it: who may come in, and how a connection is secured."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from ...proxy.edge.cors import Cors
from ...proxy.edge.guard import Guard
from ...proxy.edge.proxies import TrustedProxies
from ...proxy.edge.server_tls import ServerCertificate, renew, server_context
from .errors import BootError

if TYPE_CHECKING:
    from ...config import Listener
    from ...config.listeners import ListenerTls
    from ...proxy.edge.context import EdgeContext


class Front:
    """Of one listener; `setting` is its place in the config. Raises BootError for certificates that cannot be used."""

    def __init__(self, listener: Listener, setting: str) -> None:
        self._listener = listener
        self._setting = setting
        self.tls: ssl.SSLContext | None = None
        if listener.tls is not None:
            try:
                self.tls = server_context(_files(listener.tls))
            except OSError as error:
                raise BootError(f"{setting}.tls: {_reason(error)}") from None

    def adopt(self, context: EdgeContext, *, open_to_all: bool) -> None:
        """Put the listener's rules in force."""
        listener = self._listener
        context.guard = Guard(open_to_all=open_to_all, origins=listener.cors.origins)
        context.cors = Cors(listener.cors.origins) if listener.cors.origins else None
        context.proxies = TrustedProxies(listener.trusted_proxies) if listener.trusted_proxies else None

    def renew(self) -> str | None:
        """Use the certificate that the files hold now. Returns why that cannot be done, and keeps the old one then."""
        tls = self._listener.tls
        if self.tls is None or tls is None:
            return None
        try:
            renew(self.tls, _files(tls))
        except OSError as error:
            return f"{self._setting}.tls: {_reason(error)}"
        return None


def _files(tls: ListenerTls) -> ServerCertificate:
    return ServerCertificate(str(tls.cert), str(tls.key), str(tls.client_ca) if tls.client_ca is not None else None)


def _reason(error: OSError) -> str:
    """What is wrong with the files, in words."""
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        return "these are no certificate and key in PEM form"
    return f"{error.filename or 'a file'}: {error.strerror}"
