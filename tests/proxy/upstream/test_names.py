"""names: the last good answer is at hand, kept up to date while it is used, and left when the provider has moved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from headgate.proxy.clock import Deadlines
from headgate.proxy.upstream import names as names_module
from headgate.proxy.upstream.names import (
    GOOD_SECONDS,
    LINGER_SECONDS,
    LOOKUP_SECONDS,
    NEW_SECONDS,
    REFRESH_SECONDS,
    Name,
)
from tests_support.clock import FakeClock
from tests_support.names import DOWN, FakeResolver, address

if TYPE_CHECKING:
    from collections.abc import Collection

    from headgate.proxy.upstream.resolver import Address

A, B, C = (("127.0.0.1", 1), ("127.0.0.2", 1), ("127.0.0.3", 1))


class User:
    """Remembers where it may stay."""

    def __init__(self) -> None:
        self.good: list[set[Address]] = []

    def leave_all_but(self, good: Collection[Address]) -> None:
        self.good.append(set(good))


class Bench:
    """A name over a resolver and a clock that the test holds."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.deadlines = Deadlines(self.clock)
        self.resolver = FakeResolver(A)
        self.name = Name("a.example", 1, self.resolver, self.clock, self.deadlines)
        self.user = User()

    async def leads_to(self) -> list[Any]:
        async with asyncio.timeout(5):
            return [one.sockaddr for one in await self.name.addresses()]

    async def run(self, seconds: float) -> None:
        await self.clock.run(seconds)

    @property
    def asked(self) -> int:
        return len(self.resolver.asked)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(names_module, "log", structlog.get_logger("headgate"))
    with capture_logs() as events:
        yield events


async def test_many_who_ask_at_once_are_one_lookup(bench: Bench) -> None:
    assert await asyncio.gather(*(bench.leads_to() for _ in range(50))) == [[A]] * 50
    assert bench.resolver.asked == [("a.example", 1)]


async def test_an_answer_is_good_for_a_moment_and_asked_for_again_when_it_is_old(bench: Bench) -> None:
    assert await bench.leads_to() == [A]
    bench.resolver.leads_to(B)
    assert await bench.leads_to() == [A]
    bench.clock.advance(GOOD_SECONDS)
    assert await bench.leads_to() == [B]
    assert bench.asked == 2


async def test_an_answer_that_led_to_nobody_is_asked_for_again_but_not_for_each_call(bench: Bench) -> None:
    await bench.leads_to()
    bench.resolver.leads_to(B)
    bench.name.doubt()
    assert await bench.leads_to() == [A], "it is brand new"
    bench.clock.advance(NEW_SECONDS)
    assert await bench.leads_to() == [B]
    bench.clock.advance(NEW_SECONDS)
    bench.resolver.found = DOWN
    bench.name.doubt()
    assert await bench.leads_to() == [B]


async def test_a_name_that_nobody_uses_is_not_looked_up(bench: Bench) -> None:
    await bench.leads_to()
    await bench.run(60)
    assert (bench.asked, len(bench.deadlines)) == (1, 0)


async def test_a_name_in_use_is_looked_up_again_and_again_and_nobody_waits_for_it(bench: Bench) -> None:
    await bench.leads_to()
    bench.name.join(bench.user)
    bench.name.join(bench.user)
    bench.resolver.leads_to(B)
    await bench.run(REFRESH_SECONDS + 1)
    assert bench.asked == 2
    assert await bench.leads_to() == [B]
    await bench.run(60)
    assert 12 <= bench.asked <= 14
    bench.name.part(bench.user)
    bench.name.part(bench.user)
    assert len(bench.deadlines) == 0
    asked = bench.asked
    await bench.run(60)
    assert bench.asked == asked


async def test_an_address_that_is_gone_from_the_answers_is_left_after_a_while(bench: Bench) -> None:
    await bench.leads_to()
    bench.name.join(bench.user)
    bench.resolver.leads_to(B)
    await bench.run(REFRESH_SECONDS + 1)
    assert bench.user.good[-1] == {address(A), address(B)}
    await bench.run(LINGER_SECONDS + REFRESH_SECONDS - 1)
    assert bench.user.good[-1] == {address(B)}
    assert LINGER_SECONDS + 2 * REFRESH_SECONDS < 30


async def test_a_name_that_gives_others_of_many_addresses_each_time_keeps_them(bench: Bench) -> None:
    await bench.leads_to()
    bench.name.join(bench.user)
    for turn in range(20):
        bench.resolver.leads_to((A, B, C)[turn % 3])
        await bench.run(REFRESH_SECONDS)
    assert bench.user.good[-1] == {address(A), address(B), address(C)}


async def test_while_the_resolver_fails_the_last_good_answer_is_kept(bench: Bench, logged: list[Any]) -> None:
    assert await bench.leads_to() == [A]
    bench.name.join(bench.user)
    bench.resolver.found = DOWN
    await bench.run(600)
    assert await bench.leads_to() == [A]
    assert bench.user.good == []
    assert logged == [
        {
            "event": "name_not_resolved",
            "log_level": "warning",
            "host": "a.example",
            "reason": "resolver down",
            "known": 1,
        }
    ], "once, not every few seconds"
    bench.resolver.leads_to(B)
    await bench.run(REFRESH_SECONDS + 1)
    assert await bench.leads_to() == [B]
    assert bench.user.good[-1] == {address(B)}


async def test_without_a_good_answer_the_failure_is_told_and_the_next_one_asks_again(bench: Bench) -> None:
    bench.resolver.found = DOWN
    for asked in (1, 2):
        with pytest.raises(OSError, match="resolver down"):
            await bench.leads_to()
        assert bench.asked == asked
    bench.resolver.leads_to(A)
    assert await bench.leads_to() == [A]


async def test_a_silent_resolver_is_waited_for_once_and_asked_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.leads_to()
    bench.resolver.found = None
    bench.clock.advance(60)
    monkeypatch.setattr(names_module, "LOOKUP_SECONDS", 0.02)
    assert await bench.leads_to() == [A]
    bench.clock.advance(LOOKUP_SECONDS)
    monkeypatch.setattr(names_module, "LOOKUP_SECONDS", 0.5)
    async with asyncio.timeout(0.2):
        assert await bench.name.addresses() == [address(A)]
    assert bench.asked == 2
    bench.resolver.leads_to(B)
    bench.resolver.answer()
    assert await bench.leads_to() == [B], "late is better than never"


async def test_a_silent_resolver_that_never_answered_is_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.resolver.found = None
    monkeypatch.setattr(names_module, "LOOKUP_SECONDS", 0.02)
    with pytest.raises(OSError, match="the resolver did not answer within"):
        await bench.leads_to()
    bench.resolver.leads_to(A)
    bench.resolver.answer()
    assert await bench.leads_to() == [A]
    assert bench.asked == 1


async def test_who_gives_up_leaves_the_lookup_to_the_others(bench: Bench) -> None:
    bench.resolver.found = None
    asking = [asyncio.ensure_future(bench.leads_to()) for _ in range(2)]
    await bench.run(0)
    asking[0].cancel()
    await asyncio.wait(asking[:1])
    bench.resolver.leads_to(A)
    bench.resolver.answer()
    assert await asking[1] == [A]
    assert bench.asked == 1


async def test_repr_says_where_it_leads(bench: Bench) -> None:
    await bench.leads_to()
    assert repr(bench.name) == "<Name a.example:1 ['127.0.0.1']>"
