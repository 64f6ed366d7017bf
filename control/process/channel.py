"""What a supervisor and a worker say to each other: length-prefixed msgpack over one AF_UNIX socket.

The supervisor speaks first (`Configure`); a worker that hears the end of the stream has lost its supervisor and drains.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ...proxy.snapshot import Snapshot

if TYPE_CHECKING:
    import socket

_LENGTH = struct.Struct("!I")
MAX_MESSAGE = 16 * 1024 * 1024


class Configure(msgspec.Struct, tag=True, frozen=True):
    """Serve under this config. The first one starts the worker, later ones reload it; `digest` is its version."""

    text: str
    digest: str


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Take no new work; with `leave`, finish what runs and exit 0."""

    leave: bool = True


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Serves under the version `digest`: after the start, and after each reload. `chains` as admin shows them."""

    digest: str
    chains: list[dict[str, Any]]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """A reload was refused; the worker serves on under what it had."""

    digest: str
    reason: str


class Told(msgspec.Struct, tag=True, frozen=True):
    """The worker's counters, once a second and once more at its end."""

    snapshot: Snapshot


FromSupervisor = Configure | Drain
FromWorker = Ready | Refused | Told

_encode = msgspec.msgpack.Encoder().encode
_decode_supervisor: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)
_decode_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


class Channel:
    """One end. `receive` raises EOFError when the other end is gone; sending to nobody is no error."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MAX_MESSAGE))

    def send(self, message: FromSupervisor | FromWorker) -> None:
        """Hand a message to the socket; dropped when the other end is gone, or does not read 16 MiB of them."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > MAX_MESSAGE:
            return
        data = _encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def from_supervisor(self) -> FromSupervisor:
        """The next message, at a worker's end."""
        return _decode_supervisor.decode(await self._frame())

    async def from_worker(self) -> FromWorker:
        """The next message, at the supervisor's end."""
        return _decode_worker.decode(await self._frame())

    async def _frame(self) -> bytes:
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                raise EOFError("a message is too large")
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the other end is gone") from error

    async def aclose(self) -> None:
        """Send what is buffered and close."""
        with suppress(TimeoutError, ConnectionError):  # nobody is there to read it
            await asyncio.wait_for(self._writer.drain(), 1.0)
        self._writer.close()
