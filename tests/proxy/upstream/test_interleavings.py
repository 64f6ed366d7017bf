"""Random interleavings of all that can happen to calls and connections, with a provider that answers at random.

Every call carries a canary, and the provider answers with it: whatever else happens, a receiver hears its own canary,
in order, exactly one end, and nothing after it cancelled. At the end nothing is in use, waiting or open.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream import dial
from headgate.proxy.upstream.pool import IdleQuota, PoolLimits
from tests_support.answers import LAST_CHUNK, chunk, response
from tests_support.caller import Caller, Event, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.interleaving import check_calls, unsteady
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headgate.proxy.upstream.call import Call
    from tests_support.upstream import Request, Step

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ENDS = {
    "clean",
    "closed",
    "ConnectError",
    "ConnectTimeoutError",
    "PoolOverflowError",
    "ResetError",
    "BrokenAnswerError",
    "ProtocolError",
}


def answers(canary: bytes) -> list[Sequence[Step]]:
    """Good ones first."""
    half = len(canary) // 2
    good = response(200, canary)
    return [
        [good],
        [good[:20], Sleep(0), good[20:]],
        [CHUNKED + chunk(canary[:half]), Sleep(0), chunk(canary[half:]) + LAST_CHUNK],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n" + good],
        [HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(canary) + canary],
        [good + response(200, b"FOREIGN")],
        [good, FIN],
        [good, RST],
        [HEAD + b"\r\n" + canary, FIN],
        [CHUNKED + chunk(canary[:half]), FIN],
        [CHUNKED + chunk(canary[:half]), RST],
        [CHUNKED + chunk(canary[:half]) + b"zz\r\n"],
        [CHUNKED + chunk(canary[:half]), STALL],
        [b"garbage"],
        [FIN],
        [RST],
        [STALL],
    ]


class Play:
    """One random sequence."""

    def __init__(self, seed: int, caller: Caller, clock: FakeClock) -> None:
        self.rng = random.Random(seed)
        self.caller = caller
        self.clock = clock
        self.calls: list[tuple[bytes, Recorder]] = []

    def script(self, request: Request) -> Sequence[Step]:
        choices = answers(request.body)
        return self.rng.choice(choices[:6] if self.rng.random() < 0.6 else choices)

    def start(self) -> None:
        canary = b"canary-%d-" % len(self.calls) * self.rng.choice([1, 1, 50, 5_000])
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
            return {event: lambda _: self.cancel_newest()}
        if done < 0.2:
            return {event: lambda call: call.cancel()} if event in ("end", "error") else {}
        if done < 0.3 and len(self.calls) < 300:
            return {event: lambda _: self.start()}
        return {event: lambda call: call.pause()} if done < 0.35 else {}

    def cancel_newest(self) -> None:
        self.calls[-1][1].cancel()

    async def step(self) -> None:
        chance = self.rng.random()
        if chance < 0.35:
            self.start()
        elif chance < 0.6:
            for _ in range(self.rng.randrange(1, 6)):
                await asyncio.sleep(0)
        elif chance < 0.75:
            self.rng.choice(self.calls)[1].cancel() if self.calls else None
        elif chance < 0.85 and self.calls:
            call = self.rng.choice(self.calls)[1].call
            call.pause() if self.rng.random() < 0.4 else call.resume()
        elif chance < 0.95:
            self.clock.advance(self.rng.choice([0.05, 0.5, 3.0]))
        else:
            self.caller.endpoint.update(PoolLimits(self.rng.randrange(1, 5), self.rng.randrange(8), max_idle=2))

    async def finish(self) -> None:
        """Let go of what may be stuck, and wait for the rest."""
        for _, heard in self.calls:
            heard.call.resume()
        await asyncio.sleep(0.05)
        for _, heard in self.calls:
            if heard.outcome is None and not heard.cancelled:
                heard.cancel()


async def play(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> Play:
    clock, quota = FakeClock(), IdleQuota(3)
    async with FakeUpstream() as upstream:
        with monkeypatch.context() as patch:
            patch.setattr(dial, "sock_connect", unsteady(dial.sock_connect, random.Random(seed)))
            limits = PoolLimits(max_connections=3, max_pending=4, max_idle=2)
            async with Caller(upstream.base_url, clock=clock, limits=limits, quota=quota) as caller:
                game = Play(seed, caller, clock)
                upstream.script = game.script
                for _ in range(steps):
                    await game.step()
                await game.finish()
        check_calls(game.calls, ENDS)
        assert quota.idle == 0
        await eventually(lambda: not upstream.open_connections)
    return game


@pytest.mark.usefixtures("no_leaks")
async def test_random_interleavings_leak_nothing_and_mix_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = set()
    for seed in range(25):
        game = await play(seed, 150, monkeypatch)
        outcomes |= {heard.outcome for _, heard in game.calls}
    assert outcomes == ENDS | {None}


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaks")
async def test_two_thousand_random_interleavings(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 3000):
        await play(seed, 100, monkeypatch)
