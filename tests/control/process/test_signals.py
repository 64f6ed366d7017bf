"""signals: to end, to end at once, to read the config again; and waiting that a hurry cuts short."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from headgate.control.process.signals import INTERRUPTED, Signals, hold_signals, unless
from tests_support.caller import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HELD = (signal.SIGHUP, signal.SIGUSR2)
LISTENED = (signal.SIGTERM, signal.SIGINT, *HELD)


@pytest.fixture
async def signals() -> AsyncIterator[Signals]:
    """Listening in this process, until the end of the test."""
    loop = asyncio.get_running_loop()
    try:
        yield Signals()
    finally:
        for number in LISTENED:
            loop.remove_signal_handler(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


async def test_a_sigterm_is_the_end_and_so_is_an_interrupt(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await eventually(signals.stop.is_set)
    assert (signals.hurry.is_set(), signals.exit_code) == (False, 0)


async def test_an_interrupt_after_the_first_of_either_is_a_hurry(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await eventually(signals.stop.is_set)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    assert not signals.hurry.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    await eventually(signals.hurry.is_set)
    assert signals.exit_code == INTERRUPTED


async def test_one_interrupt_alone_is_the_end_without_a_hurry(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await eventually(signals.stop.is_set)
    assert (signals.hurry.is_set(), signals.exit_code) == (False, 0)


async def test_a_hangup_is_heard(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(signals.hangup.is_set)
    assert not signals.stop.is_set()


async def test_a_hangup_before_anybody_listens_is_kept_for_who_will() -> None:
    hold_signals()
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)  # this thread: those of the test runner hold nothing back
    signals = Signals()
    try:
        await eventually(signals.hangup.is_set)
    finally:
        for number in LISTENED:
            asyncio.get_running_loop().remove_signal_handler(number)


async def test_work_is_done_to_its_end_while_nobody_is_in_a_hurry() -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    await unless(asyncio.Event(), work())
    assert done.is_set()


async def test_a_hurry_cancels_the_work_and_waits_until_it_has_ended() -> None:
    hurry, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    asyncio.get_running_loop().call_later(0.02, hurry.set)
    await unless(hurry, work())
    assert ended.is_set()


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await unless(asyncio.Event(), work())


@pytest.mark.usefixtures("no_leaks")
async def test_being_cancelled_cancels_the_work() -> None:
    waiting = asyncio.ensure_future(unless(asyncio.Event(), asyncio.sleep(3600)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
