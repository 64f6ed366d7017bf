"""Raw HTTP/1.1 over a socket, for requests no client library would send and for answers seen byte by byte.

    async with RawClient(port) as client:
        await client.send(request("POST", CHAT, body))
        answer = await client.answer()              # or head(), then piece() by piece()

An answer says whether it was `whole`: its own framing came to its end. Every wait is bounded.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

CHAT = "/v1/chat/completions"
WITHIN = 15.0
_READ = 65536


def request(
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
    *,
    host: str | None = "localhost",
) -> bytes:
    """A request in order: with `host`, and with content-length where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"])]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [] if body is None else [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@dataclass
class Answer:
    """What came back. `raw` is every byte of it, `body` without framing, `pieces` as the chunks cut it."""

    status: int
    headers: list[tuple[str, str]]
    raw: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    whole: bool = False

    @property
    def body(self) -> bytes:
        """The body."""
        return b"".join(self.pieces)

    def header(self, name: str) -> str | None:
        """The first value of `name`."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails where the body is none."""
        error = self.json()["error"]
        assert isinstance(error, dict)
        return error


class RawClient:
    """One connection."""

    def __init__(self, port: int, within: float = WITHIN) -> None:
        self.port = port
        self.within = within
        self._unread = bytearray()
        self._taken = bytearray()
        self._answer: Answer | None = None
        self._framing = ""
        self._left = 0

    async def __aenter__(self) -> RawClient:
        async with asyncio.timeout(self.within):
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return

    async def send(self, data: bytes) -> None:
        """Write, and wait until the kernel has it."""
        self._writer.write(data)
        async with asyncio.timeout(self.within):
            await self._writer.drain()

    def send_unseen(self, data: bytes) -> None:
        """Into the kernel at once, before this loop turns: for a server on the same loop that is behind."""
        sock = self._writer.get_extra_info("socket")
        assert os.write(sock.fileno(), data) == len(data)

    @property
    def heard(self) -> bytes:
        """What has been read of the answer so far."""
        return bytes(self._taken + self._unread)

    def leave(self, *, reset: bool = False) -> None:
        """Close at once, in order or with a reset."""
        sock = self._writer.get_extra_info("socket")
        if reset and sock is not None:  # none once the other side has reset it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    @property
    def _transport(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self._writer.transport)

    def pause(self) -> None:
        """Stop reading from the socket."""
        self._transport.pause_reading()

    def unpause(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    async def closed(self) -> bool:
        """Whether the other side closes, with nothing more said, in time."""
        return not await self._fill()

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer to its end; `bodiless` for HEAD."""
        answer = await self.head()
        if bodiless:
            answer.whole = True
        return await self.rest()

    async def rest(self) -> Answer:
        """What is left of the answer whose head was read."""
        assert self._answer is not None
        while not self._answer.whole and await self.piece():
            pass
        self._answer.raw = bytes(self._taken)
        return self._answer

    async def head(self) -> Answer:
        """The next head that is not 1xx; its body is then read by `piece`."""
        while True:
            self._taken.clear()
            answer = await self._one_head()
            if answer.status >= 200:
                return answer

    async def continue_head(self) -> Answer:
        """The next head, 1xx or not."""
        self._taken.clear()
        return await self._one_head()

    async def piece(self) -> bytes:
        """The next bytes of the body: one chunk, or what one read gave. Empty at the end, whole or not."""
        assert self._answer is not None
        if self._answer.whole:
            return b""
        piece = await self._piece()
        if piece:
            self._answer.pieces.append(piece)
        return piece

    async def _one_head(self) -> Answer:
        while (end := self._unread.find(b"\r\n\r\n")) < 0:
            assert await self._fill(), f"closed before an answer: {bytes(self._unread)!r}"
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self._answer = answer = Answer(int(first.split(" ")[1]), headers)
        length = answer.header("content-length")
        if (answer.header("transfer-encoding") or "").lower() == "chunked":
            self._framing = "chunked"
        elif length is not None:
            self._framing, self._left = "length", int(length)
            answer.whole = self._left == 0
        else:
            self._framing = "close"
            answer.whole = answer.status in (204, 304)
        return answer

    async def _piece(self) -> bytes:
        assert self._answer is not None
        if self._framing == "chunked":
            return await self._chunk(self._answer)
        if not self._unread and not await self._fill():
            return b""
        piece = self._take(self._left if self._framing == "length" else len(self._unread))
        if self._framing == "length":
            self._left -= len(piece)
            self._answer.whole = self._left == 0
        return piece

    async def _chunk(self, answer: Answer) -> bytes:
        while (line_end := self._unread.find(b"\r\n")) < 0:
            if not await self._fill():
                return b""
        size = int(bytes(self._unread[:line_end]), 16)
        end = line_end + 2 + size + 2
        while len(self._unread) < end:
            if not await self._fill():
                return b""
        chunk = self._take(end)
        assert chunk.endswith(b"\r\n"), chunk
        answer.whole = size == 0
        return chunk[line_end + 2 : -2]

    def _take(self, n: int) -> bytes:
        taken = bytes(self._unread[:n])
        del self._unread[:n]
        self._taken += taken
        return taken

    async def _fill(self) -> bool:
        try:
            async with asyncio.timeout(self.within):
                data = await self._reader.read(_READ)
        except ConnectionError:
            return False
        self._unread += data
        return bool(data)
