"""Every store: all rules of a call or none, exactly the limit, and what was used is settled once. Whatever counts."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.filters.stores import redis_limits
from headgate.filters.stores.memory import MemoryStore
from headgate.filters.stores.redis_client import RedisClient
from headgate.filters.stores.redis_driver import connect
from headgate.filters.stores.redis_limits import RedisLimits, RedisStore
from headgate.filters.stores.redis_link import Script
from headgate.filters.stores.rules import Granted, Kind, Limits, Refused, Report, Rule
from headgate.filters.stores.shared import SharedStore
from headgate.filters.stores.shared_memory import SharedMemory
from headgate.proxy.clock import LoopClock
from tests_support.clock import FakeClock
from tests_support.limits import ShortWay
from tests_support.redis import RedisServer, redis_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

S = 1_000_000
EPOCH = 1_700_000_000
PER_SECOND = Kind("requests", ("user",), "second")
PER_MINUTE = Kind("requests", ("address",), "minute")
EVENLY = Kind("requests", ("user",), "second", continuous=True)
TOKENS = Kind("tokens", ("user",), "minute")
TOKENS_EVENLY = Kind("tokens", ("user",), "day", continuous=True)
AT_ONCE = Kind("concurrent", ("user",), "")
MONEY = Kind("money", ("user",), "month")
EVERY = (PER_SECOND, TOKENS, TOKENS_EVENLY, AT_ONCE)
USUAL = ((PER_SECOND, TOKENS, AT_ONCE), (PER_SECOND, TOKENS), (PER_SECOND,), (TOKENS,), (AT_ONCE,))
STORES = ("memory", "memory, the short way", "shared", "shared, the short way", "redis")


@dataclass
class Counting:
    """A store under a clock that only moves when told: `now` in microseconds."""

    kind: str
    clock: FakeClock
    opened: Callable[[str, Sequence[Rule]], Limits | RedisLimits]
    wind: Callable[[int], None]
    runner: asyncio.Runner
    now: int = 0
    limits: dict[str, Limits | RedisLimits] = field(default_factory=dict)

    def open(self, *rules: tuple[Kind, int], name: str = "it") -> Limits | RedisLimits:
        return self.opened(name, [Rule(kind, limit) for kind, limit in rules])

    def take(self, limits: Limits | RedisLimits, keys: Sequence[str], tokens: int = 0) -> Granted[Any] | Refused:
        if isinstance(limits, RedisLimits):
            return self.runner.run(limits.take(keys, tokens))[0]
        return limits.take(keys, tokens, self.now)

    def settle(self, limits: Limits | RedisLimits, granted: Granted[Any], tokens: int) -> None:
        if isinstance(limits, RedisLimits):

            async def tell() -> None:
                limits.settle(granted, tokens)

            self.runner.run(tell())
        else:
            limits.settle(granted, tokens, self.now)

    def advance(self, microseconds: int) -> None:
        self.now += microseconds
        self.wind(self.now)

    def seen(self, report: Report | None) -> tuple[int, int, int] | None:
        """Limit, left, and microseconds until it is whole."""
        return (report.limit, report.left, report.resets_at - self.base) if report is not None else None

    @property
    def base(self) -> int:
        return int(self.clock.monotonic() * 1e6) if self.kind == "redis" else self.now


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def server(runner: asyncio.Runner) -> Iterator[RedisServer]:
    made = RedisServer()
    runner.run(made.start())
    yield made
    made.kill()


@pytest.fixture(params=STORES)
def counting(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Counting]:
    with ExitStack() as stack:
        yield started(request.param, request, runner, stack)


def started(kind: str, request: pytest.FixtureRequest, runner: asyncio.Runner, stack: ExitStack) -> Counting:
    clock = FakeClock()
    long, _, short = kind.partition(", ")
    if short:
        counting = started(long, request, runner, stack)
        opened = counting.opened
        counting.opened = lambda name, rules: ShortWay(cast("Limits", opened(name, rules)), rules)
        return counting
    if kind == "memory":
        return Counting(kind, clock, MemoryStore().open, lambda now: None, runner)
    if kind == "shared":
        memory = SharedMemory.create(1)
        stack.callback(memory.close)
        return Counting(kind, clock, SharedStore(memory).open, lambda now: None, runner)
    server: RedisServer = request.getfixturevalue("server")
    server.ask("FLUSHALL")

    def wind(now: int) -> None:
        server.ask("MSET", "clock:s", str(EPOCH + now // S), "clock:us", str(now % S))

    wind(0)
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name in ("TAKE", "SETTLE"):
        script: Script = getattr(redis_limits, name)
        patch.setattr(redis_limits, name, Script(name, under_our_clock(script)))

    async def begin() -> RedisStore:
        client = RedisClient(redis_settings(server.url, timeout="1s"), connect, LoopClock())
        store = RedisStore(client, clock, Random(1))
        await client.start()
        return store

    store = runner.run(begin())
    stack.callback(lambda: runner.run(store.aclose()))
    return Counting(kind, clock, store.open, wind, runner)


def under_our_clock(script: Script) -> str:
    text = script.text.decode()
    assert text.count("redis.call('TIME')") == 1
    return text.replace("redis.call('TIME')", "{redis.call('GET', 'clock:s'), redis.call('GET', 'clock:us')}")


def granted(result: Granted[Any] | Refused) -> Granted[Any]:
    assert isinstance(result, Granted)
    return result


def refused(result: Granted[Any] | Refused) -> Refused:
    assert isinstance(result, Refused)
    return result


def test_a_window_admits_exactly_its_number_and_is_opened_by_its_first_call(counting: Counting) -> None:
    limits = counting.open((PER_SECOND, 3))
    counting.advance(S // 3)
    reports = []
    for _ in range(3):
        reports.append(counting.seen(granted(counting.take(limits, ["ann"])).requests))
        counting.advance(10)
    assert reports == [(3, 2, S), (3, 1, S - 10), (3, 0, S - 20)]
    told = refused(counting.take(limits, ["ann"]))
    assert (told.wait, counting.seen(told.report)) == (S - 30, (3, 0, S - 30))
    counting.advance(S - 31)
    assert refused(counting.take(limits, ["ann"])).wait == 1
    counting.advance(1)
    assert counting.seen(granted(counting.take(limits, ["ann"])).requests) == (3, 2, S)


def test_an_even_refill_gives_back_one_after_the_other(counting: Counting) -> None:
    limits = counting.open((EVENLY, 3))
    for _ in range(3):
        granted(counting.take(limits, ["ann"]))
    assert refused(counting.take(limits, ["ann"])).wait == 333_334
    counting.advance(333_333)
    assert refused(counting.take(limits, ["ann"])).wait == 1
    counting.advance(1)
    assert counting.seen(granted(counting.take(limits, ["ann"])).requests) == (3, 0, S)
    counting.advance(10 * S)
    assert counting.seen(granted(counting.take(limits, ["ann"])).requests) == (3, 2, 333_334)


def test_an_even_refill_of_any_size_is_exact(counting: Counting) -> None:
    limits = counting.open((TOKENS_EVENLY, 10**12))
    call = granted(counting.take(limits, ["ann"], 10**12))
    assert refused(counting.take(limits, ["ann"], 1)).wait == 1
    counting.settle(limits, call, 10**12 - 1)
    granted(counting.take(limits, ["ann"], 1))
    told = refused(counting.take(limits, ["ann"], 10**12))
    assert told.wait == 86_400 * S
    counting.advance(86_400 * S - 1)
    assert refused(counting.take(limits, ["ann"], 10**12)).wait == 1


def test_callers_and_filters_do_not_affect_each_other(counting: Counting) -> None:
    for name in ("one", "two"):
        limits = counting.open((PER_SECOND, 1), name=name)
        for caller in ("ann", "bob", "ann\0bob", "änn"):
            granted(counting.take(limits, [caller]))
            refused(counting.take(limits, [caller]))


def test_what_one_rule_refuses_is_counted_under_none(counting: Counting) -> None:
    limits = counting.open((PER_SECOND, 5), (PER_MINUTE, 1), (TOKENS, 100), (AT_ONCE, 3))
    granted(counting.take(limits, ["ann", "here", "ann", "ann"], 10))
    for _ in range(9):
        assert refused(counting.take(limits, ["ann", "here", "ann", "ann"], 10)).rule.kind == PER_MINUTE
    call = granted(counting.take(limits, ["ann", "there", "ann", "ann"], 10))
    assert call.tokens is not None
    assert call.tokens.left == 80
    others = [counting.take(limits, ["ann", str(n), "ann", "ann"], 10) for n in range(3)]
    assert [isinstance(one, Granted) for one in others] == [True, False, False]


def test_of_several_that_refuse_the_longest_wait_is_told(counting: Counting) -> None:
    limits = counting.open((PER_SECOND, 1), (PER_MINUTE, 1), (AT_ONCE, 1))
    granted(counting.take(limits, ["ann", "here", "ann"]))
    told = refused(counting.take(limits, ["ann", "here", "ann"]))
    assert (told.rule.kind, told.wait, told.report.left) == (PER_MINUTE, 60 * S, 0)


def test_the_report_is_of_the_rule_with_the_least_left(counting: Counting) -> None:
    limits = counting.open((PER_SECOND, 9), (PER_MINUTE, 3), (Kind("requests", ("team",), "hour"), 9))
    assert counting.seen(granted(counting.take(limits, ["ann", "here", "web"])).requests) == (3, 2, 60 * S)
    same = counting.open((PER_SECOND, 3), (PER_MINUTE, 3), name="same")
    assert counting.seen(granted(counting.take(same, ["ann", "here"])).requests) == (3, 2, 60 * S)


def test_tokens_and_slots_are_settled_once_the_call_is_over(counting: Counting) -> None:
    limits = counting.open((TOKENS, 100), (AT_ONCE, 1))
    call = granted(counting.take(limits, ["ann", "ann"], 90))
    assert (counting.seen(call.tokens), call.requests) == ((100, 10, 60 * S), None)
    assert refused(counting.take(limits, ["ann", "ann"], 5)).rule.kind == AT_ONCE
    counting.advance(S)
    counting.settle(limits, call, 30)
    assert counting.seen(granted(counting.take(limits, ["ann", "ann"], 70)).tokens) == (100, 0, 59 * S)


def test_what_overshoots_is_made_up_for_and_a_closed_window_takes_no_correction(counting: Counting) -> None:
    limits = counting.open((TOKENS, 100))
    call = granted(counting.take(limits, ["ann"], 10))
    late = granted(counting.take(limits, ["ann"], 10))
    counting.settle(limits, call, 500)
    told = refused(counting.take(limits, ["ann"], 1))
    assert counting.seen(told.report) == (100, 0, 60 * S)
    counting.advance(60 * S)
    assert counting.seen(granted(counting.take(limits, ["ann"], 1)).tokens) == (100, 99, 60 * S)
    counting.settle(limits, late, 100)
    assert counting.seen(granted(counting.take(limits, ["ann"], 1)).tokens) == (100, 98, 60 * S)


def test_a_debt_that_was_overshot_is_paid_back(counting: Counting) -> None:
    limits = counting.open((Kind("tokens", ("user",), "second", continuous=True), 10))
    call = granted(counting.take(limits, ["ann"], 5))
    counting.settle(limits, call, 25)
    assert refused(counting.take(limits, ["ann"], 5)).wait == 2 * S
    counting.advance(2 * S)
    granted(counting.take(limits, ["ann"], 5))


def test_a_reload_finds_what_was_counted(counting: Counting) -> None:
    before = counting.open((PER_MINUTE, 2), (PER_SECOND, 9))
    granted(counting.take(before, ["here", "ann"]))
    after = counting.open((PER_MINUTE, 5))
    del before
    assert counting.seen(granted(counting.take(after, ["here"])).requests) == (5, 3, 60 * S)


def test_money_is_counted_for_longer_than_its_period(counting: Counting) -> None:
    limits = counting.open((MONEY, 10**12))
    call = granted(counting.take(limits, ["ann\02026-11"], 9 * 10**11))
    assert (call.requests, call.tokens) == (None, None)
    counting.settle(limits, call, 10**9)
    counting.advance(31 * 86_400 * S)
    granted(counting.take(limits, ["ann\02026-11"], 999 * 10**9))
    refused(counting.take(limits, ["ann\02026-11"], 1))
    granted(counting.take(limits, ["ann\02026-12"], 1))


@pytest.mark.parametrize("kind", STORES[1:])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4 * S), st.integers(1, 40), st.integers(0, 60), st.booleans()),
        max_size=40,
    ),
    numbers=st.tuples(st.integers(1, 4), st.integers(40, 200), st.integers(40, 10**12), st.integers(1, 3)),
    kinds=st.sampled_from((EVERY, *USUAL)),
)
def test_it_decides_as_memory_does(
    kind: str,
    request: pytest.FixtureRequest,
    runner: asyncio.Runner,
    calls: list[tuple[str, int, int, int, bool]],
    numbers: tuple[int, int, int, int],
    kinds: tuple[Kind, ...],
) -> None:
    every = zip(EVERY, numbers, strict=True)
    rules = tuple((kind, number) for kind, number in every if kind in kinds)
    with ExitStack() as stack:
        both = [started(one, request, runner, stack) for one in ("memory", kind)]
        opened = [one.open(*rules) for one in both]
        running: list[list[Granted[Any]]] = []
        for name, pause, guess, used, ends in calls:
            results = []
            for counting, limits in zip(both, opened, strict=True):
                counting.advance(pause)
                results.append(counting.take(limits, [name] * len(rules), guess))
            if isinstance(results[0], Refused):
                told = [refused(one) for one in results]
                assert told[0].rule == told[1].rule
                assert told[0].wait == told[1].wait
                assert both[0].seen(told[0].report) == both[1].seen(told[1].report)
            else:
                admitted = [granted(one) for one in results]
                for what in ("requests", "tokens"):
                    first, second = (
                        counting.seen(getattr(one, what)) for counting, one in zip(both, admitted, strict=True)
                    )
                    assert first == second
                running.append(admitted)
            if ends and running:
                for counting, limits, call in zip(both, opened, running.pop(0), strict=True):
                    counting.settle(limits, call, used)
