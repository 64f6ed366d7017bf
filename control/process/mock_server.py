"""`headgate mock`: the mock provider on a socket of its own, behind the same edge as the gateway."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from ...dialects.mock import CREATED, answer
from ...proxy.clock import Deadlines, LoopClock
from ...proxy.edge.context import EdgeContext
from ...proxy.edge.data_app import data_app
from ...proxy.edge.guard import Guard
from ...proxy.edge.listen import serve
from ...proxy.errors import GatewayError, MethodNotAllowedError
from ...proxy.replies import error_reply, json_reply
from .sockets import bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...proxy.clock import Clock
    from ...proxy.edge.downstream import Downstream

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
BODY_LIMIT = 32 * 1024 * 1024


async def run_mock(address: str, port: int, delay: float, announce: Callable[[int], None]) -> int:
    """Serve until SIGTERM or SIGINT; `delay` seconds before each event. Returns the exit code.

    Raises BootError when the address is taken.
    """
    clock = LoopClock()
    context = EdgeContext(
        Provider(clock, delay),
        clock=clock,
        deadlines=Deadlines(clock),
        guard=Guard(open_to_all=True),
    )
    sock = bound(address, port, "--port", "--address")
    server = await serve(data_app(list, "mock"), context, [sock])
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    announce(server.port)
    await stop.wait()
    await server.aclose(1.0)
    return 0


class Provider:
    """The two paths of an OpenAI API that the mock speaks."""

    def __init__(self, clock: Clock, delay: float) -> None:
        self._clock = clock
        self._delay = delay

    def accepts(self, path: str) -> bool:
        """Chat completions and the list of models."""
        return path in (CHAT, MODELS)

    def accept(self, downstream: Downstream) -> None:
        """Answer one request."""
        _Playing(self._clock, self._delay, downstream).start()


class _Playing:
    """One answer, piece by piece; waits for a client that is behind."""

    def __init__(self, clock: Clock, delay: float, downstream: Downstream) -> None:
        downstream.listener = self
        self._clock = clock
        self._delay = delay
        self._downstream = downstream
        self._pieces: list[bytes] = []
        self._over = False

    def start(self) -> None:
        """Refuse, list models, or ask for the body."""
        head = self._downstream.head
        if head.path == CHAT and head.method == "POST":
            self._downstream.read_body(BODY_LIMIT)
        elif head.path == MODELS and head.method == "GET":
            entry = {"id": "mock", "object": "model", "created": CREATED, "owned_by": "headgate"}
            reply = json_reply({"object": "list", "data": [entry]})
            self._downstream.reply(reply.status, reply.headers, reply.body)
        else:
            self.on_body_error(MethodNotAllowedError(f"'{head.path}' takes another method."))

    def on_body(self, body: bytes) -> None:
        """Begin to answer."""
        made = answer(body)
        if len(made.pieces) == 1:
            self._downstream.reply(made.status, made.headers, made.pieces[0])
            return
        self._pieces = made.pieces[::-1]
        self._downstream.start(made.status, made.headers, None)
        self._next()

    def _next(self) -> None:
        while self._pieces and not self._over:
            flowing = self._downstream.write(self._pieces.pop())
            if not flowing:
                return
            if self._delay and self._pieces:
                self._clock.call_at(self._clock.monotonic() + self._delay, self._next)
                return
        if not self._over:
            self._over = True
            self._downstream.end()

    def on_body_error(self, error: GatewayError) -> None:
        """Say so."""
        reply = error_reply(error)
        self._downstream.reply(reply.status, reply.headers, reply.body)

    def on_resume(self) -> None:
        """The client reads again."""
        self._next()

    def on_gone(self) -> None:
        """Nobody listens."""
        self._over = True
