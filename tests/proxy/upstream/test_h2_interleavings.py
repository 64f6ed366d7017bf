"""Random interleavings of all that can happen to calls and connections of HTTP/2, with a provider of many moods.

Every call carries a canary, and the provider answers with it: whatever else happens, a receiver hears its own canary,
in order, exactly one end, and nothing after it cancelled; no stream is reset twice. At the end nothing is in use,
waiting or open.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, PingFrame, SettingsFrame

from headgate.proxy.upstream import dial
from headgate.proxy.upstream.pool import IdleQuota, PoolLimits
from tests_support.caller import Caller, Event, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.h2_upstream import H2Upstream
from tests_support.interleaving import check_calls, unsteady

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.upstream.call import Call
    from tests_support.h2_upstream import PeerStream

ENDS = {
    "clean",
    "ConnectError",
    "ConnectTimeoutError",
    "PoolOverflowError",
    "ResetError",
    "BrokenAnswerError",
    "ProtocolError",
    "UpstreamTimeoutError",
}
LAST = 2**31 - 1


class Moody:
    """A provider that does well in two thirds of all cases."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def __call__(self, stream: PeerStream) -> None:
        rng, peer = self.rng, stream.peer
        bad = rng.random() < 0.35
        early = rng.random()
        if bad and early < 0.1:
            stream.reset(ErrorCodes.REFUSED_STREAM)
            return
        if bad and early < 0.2:
            peer.raw(GoAwayFrame(0, last_stream_id=rng.choice([stream.id - 2, stream.id, LAST])))
        canary = await stream.body()
        if rng.random() < 0.1:
            peer.raw(PingFrame(0, b"12345678"), SettingsFrame(0, {3: rng.choice([0, 1, 2, 100])}))
        if bad and early < 0.3:
            stream.reset(rng.choice([ErrorCodes.INTERNAL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM]))
            return
        if bad and early < 0.4:
            peer.abort() if rng.random() < 0.5 else peer.close()
            return
        if rng.random() < 0.1:
            stream.head(103)
        length = len(canary) + (1 if bad and early < 0.5 else 0)
        stream.head(200, [("content-length", str(length))] if rng.random() < 0.6 else [])
        half = len(canary) // 2
        await stream.data(canary[:half])
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        if bad and early < 0.6:
            stream.reset(ErrorCodes.NO_ERROR)
            return
        if bad and early < 0.65:
            peer.raw(b"\0\0\x01\x06\0\0\0\0\0x")
            return
        if bad and early < 0.7:
            peer.abort()
            return
        if bad and early < 0.75:
            await asyncio.get_running_loop().create_future()
        await stream.data(canary[half:], end=True)


class Play:
    """One random sequence."""

    def __init__(self, rng: random.Random, caller: Caller, clock: FakeClock) -> None:
        self.rng = rng
        self.caller = caller
        self.clock = clock
        self.calls: list[tuple[bytes, Recorder]] = []

    def start(self) -> None:
        canary = b"canary-%d-" % len(self.calls) * self.rng.choice([1, 1, 50, 5_000, 40_000])
        recorder = Recorder(self.habit())
        self.calls.append((canary, recorder))
        self.caller.ask(recorder, body=canary)
        if self.rng.random() < 0.1:
            recorder.cancel()

    def habit(self) -> dict[Event, Callable[[Call], object]]:
        """What the receiver does from inside its callbacks."""
        event: Event = self.rng.choice(["sent", "head", "data", "end", "error"])
        done = self.rng.random()
        if done < 0.1:
            return {event: lambda _: self.calls[-1][1].cancel()}
        if done < 0.2:
            return {event: lambda call: call.cancel()} if event in ("end", "error") else {}
        if done < 0.3 and len(self.calls) < 300:
            return {event: lambda _: self.start()}
        return {event: lambda call: call.pause()} if done < 0.35 else {}

    async def step(self) -> None:
        chance = self.rng.random()
        if chance < 0.35:
            self.start()
        elif chance < 0.65:
            for _ in range(self.rng.randrange(1, 8)):
                await asyncio.sleep(0)
        elif chance < 0.75:
            self.rng.choice(self.calls)[1].cancel() if self.calls else None
        elif chance < 0.88 and self.calls:
            call = self.rng.choice(self.calls)[1].call
            call.pause() if self.rng.random() < 0.4 else call.resume()
        elif chance < 0.95:
            self.clock.advance(self.rng.choice([0.05, 0.5, 3.0, 40.0]))
        else:
            self.caller.endpoint.update(PoolLimits(self.rng.randrange(1, 5), self.rng.randrange(8), max_idle=2))

    async def finish(self) -> None:
        """Let go of what may be stuck, and wait for the rest."""
        for _ in range(5):
            for _, heard in self.calls:
                heard.call.resume()
            await asyncio.sleep(0.01)
        for _, heard in self.calls:
            if heard.outcome is None and not heard.cancelled:
                heard.cancel()


async def play(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> Play:
    clock, quota, rng = FakeClock(), IdleQuota(3), random.Random(seed)
    window = {SettingCodes.INITIAL_WINDOW_SIZE: rng.choice([10, 1_000, 65_535, 1_000_000])}
    async with H2Upstream(Moody(random.Random(seed + 1)), settings=window, lenient=True) as upstream:
        with monkeypatch.context() as patch:
            patch.setattr(dial, "sock_connect", unsteady(dial.sock_connect, random.Random(seed)))
            limits = PoolLimits(max_connections=3, max_pending=4, max_idle=2)
            async with Caller(upstream.base_url, http2=True, clock=clock, limits=limits, quota=quota) as caller:
                game = Play(rng, caller, clock)
                for _ in range(steps):
                    await game.step()
                await game.finish()
                await eventually(lambda: caller.stats.rq_active == caller.stats.rq_pending_active == 0)
        check_calls(game.calls, ENDS)
        assert quota.idle == 0
        await eventually(lambda: all(peer.lost for peer in upstream.peers))
        for peer in upstream.peers:
            numbers = [number for number, _ in peer.resets]
            assert len(numbers) == len(set(numbers))
    return game


@pytest.mark.usefixtures("no_leaks")
async def test_random_interleavings_leak_nothing_and_mix_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = set()
    for seed in range(25):
        game = await play(seed, 150, monkeypatch)
        outcomes |= {heard.outcome for _, heard in game.calls}
    assert outcomes >= {"clean", "ResetError", "BrokenAnswerError", "ProtocolError", "ConnectError", None}


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaks")
async def test_two_thousand_random_interleavings(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 3000):
        await play(seed, 100, monkeypatch)
