"""One HTTP endpoint and its calls, for tests of the upstream engine.

async with FakeUpstream(...) as upstream, Caller(upstream.base_url) as caller:
    heard = caller.ask()                # a Recorder; heard.call is the handle
    assert await heard.over() == "clean"

At the end nothing may be in use, waiting, or watched by a deadline.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.upstream.call import CallReceiver, UpstreamRequest
from headgate.proxy.upstream.http_endpoint import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headgate.proxy.clock import Clock
    from headgate.proxy.edge.downstream import Headers
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.upstream.call import Call, ResponseHead

Event = Literal["sent", "head", "data", "end", "error"]
WITHIN = 5.0
_RANK = {"sent": 0, "head": 1, "data": 2, "end": 3, "error": 3}


class Recorder(CallReceiver):
    """A `CallReceiver` that writes down what it hears, and that it hears it in the order of the seam.

    `on` runs code of the test from inside a callback: `Recorder({"data": lambda call: call.cancel()})`.
    """

    call: Call

    def __init__(self, on: Mapping[Event, Callable[[Call], object]] | None = None) -> None:
        self.events: list[Event] = []
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.clean: bool | None = None
        self.error: GatewayError | None = None
        self.cancelled = False
        self.wrong: list[str] = []
        """What came out of order. `outcome` refuses to answer when there is any."""
        self._on = dict(on or {})
        self._changed = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def status(self) -> int | None:
        return self.head.status if self.head else None

    @property
    def outcome(self) -> str | None:
        """`clean`, `closed`, the error's class name, or None while it goes on."""
        assert not self.wrong, self.wrong
        if self.error is not None:
            return type(self.error).__name__
        return None if self.clean is None else "clean" if self.clean else "closed"

    def cancel(self) -> None:
        """Cancel, and take whatever is heard afterwards as a fault."""
        self.cancelled = True
        self.call.cancel()

    async def over(self, within: float = WITHIN) -> str:
        """Wait for the one end and say which it was."""
        await self.until(lambda: self.outcome is not None, within)
        assert self.outcome is not None
        return self.outcome

    async def heard(self, event: Event, within: float = WITHIN) -> None:
        """Wait for the first callback of this kind."""
        await self.until(lambda: event in self.events, within)

    async def until(self, ready: Callable[[], bool], within: float = WITHIN) -> None:
        """Wait until `ready()`, looked at after each callback."""
        async with asyncio.timeout(within):
            while not ready():
                self._changed.clear()
                await self._changed.wait()

    def on_sent(self, call: Call) -> None:
        self.call = call  # it may be told from inside `start`
        self._note("sent", call)

    def on_head(self, call: Call, head: ResponseHead) -> None:
        self.head = head
        self._note("head", call)

    def on_data(self, call: Call, data: bytes) -> None:
        self.pieces.append(data)
        self._note("data", call)

    def on_end(self, call: Call, clean: bool) -> None:
        self.clean = clean
        self._note("end", call)

    def on_error(self, call: Call, error: GatewayError) -> None:
        self.error = error
        self._note("error", call)

    def _note(self, event: Event, call: Call) -> None:
        last = self.events[-1] if self.events else None
        if self.cancelled:
            self.wrong.append(f"{event} after cancel")
        if last is not None and (_RANK[event] < _RANK[last] or last in ("end", "error") or event == last != "data"):
            self.wrong.append(f"{event} after {last}")
        if event in ("data", "end") and "head" not in self.events:
            self.wrong.append(f"{event} without a head")
        self.events.append(event)
        self._changed.set()
        if event in self._on:
            self._on[event](call)


async def eventually(ready: Callable[[], object], within: float = WITHIN) -> None:
    """Wait for what no callback tells, such as a gauge."""
    async with asyncio.timeout(within):
        while not ready():  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0.002)


class Caller:
    """See the top. `options` are those of HttpEndpoint."""

    def __init__(self, base_url: str, *, clock: Clock | None = None, **options: Any) -> None:
        self._base_url = base_url
        self._options = options
        self._clock = clock

    async def __aenter__(self) -> Caller:
        clock = self._clock or LoopClock()
        self.deadlines = Deadlines(clock)
        self.endpoint = HttpEndpoint(self._base_url, clock=clock, deadlines=self.deadlines, **self._options)
        self.stats = self.endpoint.stats
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.endpoint.aclose()
        if kind is None:
            assert self.stats.rq_active == self.stats.rq_pending_active == self.stats.cx_active == 0, self.stats
            assert len(self.deadlines) == 0

    def ask(
        self,
        receiver: Recorder | None = None,
        *,
        method: bytes = b"POST",
        target: bytes = b"/chat/completions",
        headers: Headers | None = None,
        body: bytes = b"{}",
    ) -> Recorder:
        """Start a call."""
        receiver = receiver or Recorder()
        receiver.call = self.endpoint.start(UpstreamRequest(method, target, headers or [], body), receiver)
        return receiver
