"""What the operating system may ask of a gateway: to end, to end at once, to read its config again, to replace its
workers.

SIGHUP and SIGUSR2 are held back from the moment the config is read until somebody listens for them: otherwise they
would end a process that has just started, or be lost together with the change they announce.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

INTERRUPTED = 130
"""Exit code of a drain that somebody cut short: 128 + SIGINT, as shells have it."""
_HELD = {signal.SIGHUP, signal.SIGUSR2}


def hold_signals() -> None:
    """Keep SIGHUP and SIGUSR2 pending until `Signals` is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


class Signals:
    """SIGTERM and SIGINT set `stop`; a SIGINT after one of them sets `hurry`; SIGHUP sets `hangup`, SIGUSR2 `replace`.

    A second SIGTERM means nothing new: tools like `timeout` send it to a process and then to its whole group.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.hangup = asyncio.Event()
        self.replace = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)
        loop.add_signal_handler(signal.SIGUSR2, self.replace.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)

    def _interrupt(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    @property
    def exit_code(self) -> int:
        """Of a gateway that ended because it was asked to."""
        return INTERRUPTED if self.hurry.is_set() else 0


async def unless(hurry: asyncio.Event, work: Coroutine[object, object, object]) -> None:
    """Do `work` to its end, or cancel it once `hurry` is set."""
    loop = asyncio.get_running_loop()
    working, hurrying = loop.create_task(work), loop.create_task(hurry.wait())
    try:
        await asyncio.wait([working, hurrying], return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurrying.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
