"""The opening handshake on both sides: what a client may ask for, and what a provider must answer (RFC 6455, 4).

The gateway makes two handshakes, each with a key of its own, and agrees on no extension with anybody: compressed
messages could not be read for their usage, and could be made to explode. Sub-protocols pass, and the provider chooses;
but for `openai-insecure-api-key.KEY`, in which a browser sends the gateway's key because it cannot set a header: that
one is for us alone.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError, ProtocolError, UpgradeRequiredError

if TYPE_CHECKING:
    from ..edge.downstream import Headers, RequestHead
    from ..upstream.call import ResponseHead

NOT_HERE = "WebSockets are not served here."
VERSION = b"13"
UPGRADE = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
KEY_PROTOCOL = b"openai-insecure-api-key."
KEY_BYTES = 16
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PROTOCOLS = b"sec-websocket-protocol"
_OURS = b"sec-websocket-"
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_SWITCHED = "The provider did not open a WebSocket."


def check_upgrade(head: RequestHead, *, served: bool) -> None:
    """Raises DownstreamError unless a WebSocket is both asked for and `served`; asked of paths where one of them is."""
    if not served:
        raise InvalidRequestError(NOT_HERE)
    if not head.websocket:
        raise UpgradeRequiredError("A WebSocket is served here, and nothing else.")


def check_handshake(head: RequestHead) -> None:
    """Raises DownstreamError where a client's handshake is not one that can be answered."""
    if head.method != "GET" or head.http_version != "1.1" or b"upgrade" not in _tokens(head.headers, b"connection"):
        raise InvalidRequestError("This is not how a WebSocket is opened.")
    if head.header(b"sec-websocket-version") != VERSION:
        raise UpgradeRequiredError("WebSockets are served in version 13.")
    if head.header(b"content-length") not in (None, b"0") or head.header(b"transfer-encoding") is not None:
        raise InvalidRequestError("A request that opens a WebSocket has no body.")
    key = head.header(b"sec-websocket-key") or b""
    try:
        whole = len(b64decode(key, validate=True)) == KEY_BYTES
    except binascii.Error:
        whole = False
    if not whole:
        raise InvalidRequestError("The Sec-WebSocket-Key is not one.")
    protocols_of(head)


def protocols_of(head: RequestHead) -> list[bytes]:
    """The sub-protocols that the client offers, but for the one that carries a key. Raises InvalidRequestError."""
    offered = _protocols(head)
    if not all(map(_TOKEN.fullmatch, offered)):
        raise InvalidRequestError("A sub-protocol is not a token.")
    return [name for name in offered if not name.startswith(KEY_PROTOCOL)]


def key_of(head: RequestHead) -> bytes | None:
    """The gateway's key, where a client offers it as a sub-protocol."""
    for name in _protocols(head):
        if name.startswith(KEY_PROTOCOL):
            return name.removeprefix(KEY_PROTOCOL)
    return None


def accept_fields(key: bytes, protocol: bytes | None) -> Headers:
    """What a server answers to `key`, beside `UPGRADE`."""
    fields = [(b"sec-websocket-accept", _accept(key))]
    if protocol is not None:
        fields.append((_PROTOCOLS, protocol))
    return fields


def without_handshake(headers: Headers) -> Headers:
    """`headers` without those of another handshake."""
    return [field for field in headers if not field[0].startswith(_OURS)]


class Offer:
    """Our own handshake with a provider. `nonce`: 16 random bytes."""

    __slots__ = ("_key", "_protocols")

    def __init__(self, nonce: bytes, protocols: list[bytes]) -> None:
        self._key = b64encode(nonce)
        self._protocols = protocols

    def fields(self) -> Headers:
        """What a client sends."""
        fields = [*UPGRADE, (b"sec-websocket-key", self._key), (b"sec-websocket-version", VERSION)]
        if self._protocols:
            fields.append((_PROTOCOLS, b", ".join(self._protocols)))
        return fields

    def check(self, head: ResponseHead) -> bytes | None:
        """The sub-protocol that a provider chose with its 101, or None. Raises ProtocolError."""
        headers = head.headers
        if head.status != 101 or b"websocket" not in _tokens(headers, b"upgrade"):
            raise ProtocolError(_NOT_SWITCHED, detail=f"status {head.status} where 101 was asked for")
        if b"upgrade" not in _tokens(headers, b"connection"):
            raise ProtocolError(_NOT_SWITCHED, detail="101 without 'connection: upgrade'")
        if head.header(b"sec-websocket-accept") != _accept(self._key):
            raise ProtocolError(_NOT_SWITCHED, detail="a sec-websocket-accept that does not fit the key")
        if head.header(b"sec-websocket-extensions") is not None:
            raise ProtocolError(_NOT_SWITCHED, detail="an extension that was not offered")
        chosen = head.header(_PROTOCOLS)
        if chosen is not None and chosen not in self._protocols:
            raise ProtocolError(_NOT_SWITCHED, detail="a sub-protocol that was not offered")
        return chosen


def _accept(key: bytes) -> bytes:
    return b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest())


def _protocols(head: RequestHead) -> list[bytes]:
    lists = [value.split(b",") for name, value in head.headers if name == _PROTOCOLS]
    return [name.strip() for names in lists for name in names]


def _tokens(headers: Headers, name: bytes) -> set[bytes]:
    return {token.strip().lower() for key, value in headers if key == name for token in value.split(b",")}
