"""WebSockets made of bytes: what a provider's script answers, what a client sends, and the frames in what came back.

async with gateway_over(session(text({"type": "session.created"}), FIN)) as (gateway, upstream):
    async with RawSocket(gateway.port) as client:
        await client.send(frame(TEXT, b"hello", MASK))
        frames, rest = await client.heard_all()
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from websockets.utils import accept_key

from headgate.proxy.websocket.frames import CLOSE, TEXT, encode_frame

from .gateway import CLIENT_KEY, bearer
from .raw import Answer, RawClient, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from .upstream import Request, Step

MASK = b"\x10\x20\x30\x40"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REALTIME = "/v1/realtime?model=gpt-realtime"
HANDSHAKE = (
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", KEY),
)
USAGE: dict[str, Any] = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {"text_tokens": 119, "audio_tokens": 13, "cached_tokens": 64},
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}


class Frame(NamedTuple):
    """A whole frame, its mask taken off."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int:
        """Of a Close; 1005 where there is none."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2]) if self.payload else 1005


def frames_of(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames in `data`, and what is left of it. Written apart from the product's own scanner."""
    frames = []
    while len(data) >= 2:
        size, at = data[1] & 127, 2
        if size > 125:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + wide]), 2 + wide
        mask = data[at : at + 4] if data[1] & 128 else b"\0\0\0\0"
        at += 4 if data[1] & 128 else 0
        if len(data) < at + size:
            break
        payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data[at : at + size]))
        frames.append(Frame(data[0] & 15, payload, bool(data[0] & 128)))
        data = data[at + size :]
    return frames, data


def text(message: Any, mask: bytes | None = None) -> bytes:
    """A text frame: a string as it is, anything else as JSON."""
    return encode_frame(TEXT, (message if isinstance(message, str) else json.dumps(message)).encode(), mask)


def response_done(usage: dict[str, Any] | None = USAGE, response: str = "resp_1") -> dict[str, Any]:
    """The event that ends a response."""
    return {
        "type": "response.done",
        "event_id": "event_1",
        "response": {"object": "realtime.response", "id": response, "status": "completed", "usage": usage},
    }


def switching(key: str, *fields: tuple[str, str]) -> bytes:
    """A provider's 101 to a client's key."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "upgrade: websocket",
        "connection: Upgrade",
        f"sec-websocket-accept: {accept_key(key)}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def session(*steps: Step, fields: Iterable[tuple[str, str]] = ()) -> Callable[[Request], Sequence[Step]]:
    """A provider that takes the handshake and then plays these steps."""
    return lambda asked: [switching(asked.header("sec-websocket-key") or "", *fields), *steps]


class RawSocket:
    """A client with an open WebSocket. `answer` is the head that opened it, or that did not."""

    answer: Answer

    def __init__(
        self,
        port: int,
        target: str = REALTIME,
        headers: Iterable[tuple[str, str]] = (),
        *,
        key: str | None = CLIENT_KEY,
        early: bytes = b"",
    ) -> None:
        self.client = RawClient(port)
        self._request = request("GET", target, headers=[*HANDSHAKE, *headers, *bearer(key)]) + early
        self._heard = b""

    async def __aenter__(self) -> RawSocket:
        await self.client.__aenter__()
        await self.client.send(self._request)
        self.answer = await self.client.continue_head()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.__aexit__(kind, error, trace)

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        await self.client.send(data)

    async def frames(self, n: int) -> list[Frame]:
        """What has come once there are `n` frames."""
        while len((found := frames_of(self._heard))[0]) < n:
            piece = await self.client.piece()
            assert piece, f"closed after {found}"
            self._heard += piece
        return found[0]

    async def heard_all(self) -> tuple[list[Frame], bytes]:
        """Every frame until the connection ends, and what came of another."""
        while piece := await self.client.piece():
            self._heard += piece
        return frames_of(self._heard)
