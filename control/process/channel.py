"""What a supervisor and a worker say to each other: length-prefixed msgpack over one AF_UNIX socket pair.

The supervisor speaks first (`Configure`). A worker that hears the end of the stream has lost its supervisor.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ...config import Problem
from ...proxy.accounting.record import Issued
from ...proxy.catalog import Listing
from ...proxy.snapshot import Snapshot
from ...proxy.upstream.health import Verdict

if TYPE_CHECKING:
    import socket

MAX_MESSAGE = 16 * 1024 * 1024
CLOSE_SECONDS = 1.0
TELL_SECONDS = 1.0
"""Between two `Told` of a worker, which are its heartbeat as well."""
_LENGTH = struct.Struct("!I")


class Configure(msgspec.Struct, tag=True, frozen=True):
    """Serve under this text. The first one starts the worker, later ones reload it; `digest` is its version."""

    text: str
    digest: str


class Show(msgspec.Struct, tag=True, frozen=True):
    """What a provider has told of its models."""

    listing: Listing


class Mark(msgspec.Struct, tag=True, frozen=True):
    """What an active check has found out about an endpoint."""

    verdict: Verdict


class Jwks(msgspec.Struct, tag=True, frozen=True):
    """What was found at the `jwks_url`."""

    url: str
    data: bytes


class ReadKeys(msgspec.Struct, tag=True, frozen=True):
    """The `keys_file` has changed: take over what stands there now."""


class Refuse(msgspec.Struct, tag=True, frozen=True):
    """Take no new work, and stay."""


class Retire(msgspec.Struct, tag=True, frozen=True):
    """Your successor serves: accept no more, bring to its end what is connected, exit."""


class Leave(msgspec.Struct, tag=True, frozen=True):
    """Take no new work, finish what runs, exit. Said again: cut what still runs."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Serves what the `Configure` with this digest said. `chains` as admin shows them."""

    digest: str
    chains: list[dict[str, Any]]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Could not take that `Configure` over, and serves on under what it had."""

    digest: str
    problems: list[Problem]


class Told(msgspec.Struct, tag=True, frozen=True):
    """The worker's counters, every TELL_SECONDS and once more at its end."""

    snapshot: Snapshot


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Who made these?"""

    number: int
    ids: list[str]


class WantJwks(msgspec.Struct, tag=True, frozen=True):
    """A token names a key that is not known."""


class LeaveAlone(msgspec.Struct, tag=True, frozen=True):
    """An endpoint has said that it is to be left alone."""

    provider: str
    endpoint: str


class Answer(msgspec.Struct, tag=True, frozen=True):
    """The rows of those of the `Ask` of this number that are known; None: nobody can say."""

    number: int
    rows: list[Issued] | None


class Explain(msgspec.Struct, tag=True, frozen=True):
    """Why did the exchange of this id go as it did?"""

    number: int
    id: str


class Explained(msgspec.Struct, tag=True, frozen=True):
    """The decision that the `Explain` of this number asks for, as JSON has it; None: not one of mine."""

    number: int
    decision: dict[str, Any] | None


FromSupervisor = Configure | Show | Mark | Jwks | ReadKeys | Refuse | Retire | Leave | Answer | Explain
FromWorker = Ready | Refused | Told | Ask | Explained | WantJwks | LeaveAlone
Message = TypeVar("Message", FromSupervisor, FromWorker)

_encode = msgspec.msgpack.Encoder().encode
_decode_supervisor: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)
_decode_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


class Channel:
    """One end. Reading raises EOFError when the other end is gone, or says what nobody understands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: FromSupervisor | FromWorker) -> None:
        """Hand a message to the socket; dropped when the other end is gone, or leaves 16 MiB of them unread."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > MAX_MESSAGE:
            return
        data = _encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def from_supervisor(self) -> FromSupervisor:
        """The next message, at a worker's end."""
        return await self._next(_decode_supervisor)

    async def from_worker(self) -> FromWorker:
        """The next message, at the supervisor's end."""
        return await self._next(_decode_worker)

    async def _next(self, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                raise EOFError(f"a message of {length} bytes is too large")
            return decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the other end is gone") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EOFError(f"a message is not understood: {error}") from error

    async def aclose(self) -> None:
        """Send what is buffered, for at most a second, and close. Harmless when it is closed."""
        if self._writer.is_closing():
            return
        self._writer.close()
        with suppress(TimeoutError, ConnectionError):  # nobody is there to read it
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        self._writer.transport.abort()
