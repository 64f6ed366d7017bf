"""Whose word on the client's address is taken: a reverse proxy of the operator's own, and nobody else's.

`x-forwarded-for` is a list that every proxy adds to at its end. Read from the end, the first address that is not a
trusted proxy is the client's: what stands before it, the client may have made up.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class TrustedProxies:
    """`networks` in CIDR notation, or single addresses."""

    __slots__ = ("_is_trusted", "_networks")

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]
        self._is_trusted = lru_cache(maxsize=1024)(self._look_up)

    def client(self, peer: str, forwarded: bytes | None) -> str:
        """The client's address, for a connection from `peer` whose request has this `x-forwarded-for`."""
        if forwarded is None or not self._is_trusted(peer):
            return peer
        client = peer
        for word in reversed(forwarded.split(b",")):
            address = _address(word)
            if address is None:
                return client
            client = address
            if not self._is_trusted(address):
                return client
        return client

    def _look_up(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _address(word: bytes) -> str | None:
    """An address, without the port that some proxies add; None for anything else."""
    text = word.strip().decode("ascii", "replace")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return None
