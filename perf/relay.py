"""The floor for any gateway on uvloop: bytes from one socket to another, nothing looked at, one provider connection
a client.

What stands between this and Headgate is Headgate's own work; what stands between this and Envoy is the interpreter.
Started by the benchmark, never part of the gateway.
"""

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One end of a pair; what it receives it writes to the other."""

    def __init__(self, provider_port: int | None) -> None:
        self.provider_port = provider_port
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.provider_port is not None:
            loop = asyncio.get_running_loop()
            loop.create_task(self.dial(loop, self.provider_port))  # noqa: RUF006 - ends at once, or with the process

    async def dial(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        _, other = await loop.create_connection(lambda: Side(None), "127.0.0.1", port)
        other.other, self.other = self, other
        self.data_received(b"".join(self.early))

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        elif data:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def main(port: int, provider_port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Side(provider_port), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
