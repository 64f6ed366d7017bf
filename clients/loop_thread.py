"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
STOP_SECONDS = 60.0


class LoopEndedError(Exception):
    """Nothing runs there any more."""


class LoopThread:
    """A daemon thread, so that a program that forgets `stop` still ends."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="headgate", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and wait for its result; interrupted, it is cancelled. Raises LoopEndedError."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise LoopEndedError from None
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` there some time soon; harmless when the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(fn)

    def stop(self) -> None:
        """Cancel what still runs there; end the loop and the thread."""
        self.post(self._stopped.set)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stopped.wait()
