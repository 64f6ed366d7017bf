"""control_half: a ledger that crashes is started again and told of; what goes wrong in a reload is refused."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from headgate.config import ConfigError, GatewayConfig, Problem
from headgate.control.process import control_half
from headgate.control.process.control_half import MANY_CRASHES, ControlHalf
from headgate.control.process.source import Loaded
from headgate.proxy.clock import Deadlines
from tests_support.clock import FakeClock
from tests_support.gateway import load, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def clock() -> FakeClock:
    """Moved by the test."""
    return FakeClock()


@pytest.fixture
def control(clock: FakeClock, tmp_path: Path) -> ControlHalf:
    """Not running."""
    config = load(written({"providers": {"mock": {"base_url": "mock:"}}}, tmp_path))
    return ControlHalf(clock, Deadlines(clock), config, "test")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    monkeypatch.setattr(control_half, "log", structlog.get_logger("headgate"))
    with capture_logs() as events:
        yield events


async def test_a_crashing_ledger_is_started_again_and_makes_the_gateway_unready_until_it_is_well(
    control: ControlHalf, clock: FakeClock, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs <= MANY_CRASHES:
            raise RuntimeError("a bug")
        await asyncio.Event().wait()

    monkeypatch.setattr(control.tailer, "run", run)
    tailing = asyncio.ensure_future(control._tail())
    unready = []
    for _ in range(8):
        await clock.run(1)
        unready.append(control.not_ready())
    assert runs == MANY_CRASHES + 1
    assert unready[0] == []
    assert unready[-1] == ["the ledger keeps crashing"]
    await clock.run(61)
    assert control.not_ready() == []
    assert [event["event"] for event in logged] == ["tailer_crashed"] * MANY_CRASHES
    tailing.cancel()
    await asyncio.gather(tailing, return_exceptions=True)


async def test_pauses_between_crashes_grow_to_their_bound(
    control: ControlHalf, clock: FakeClock, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    async def run() -> None:
        at.append(clock.monotonic())
        raise RuntimeError("a bug")

    monkeypatch.setattr(control.tailer, "run", run)
    tailing = asyncio.ensure_future(control._tail())
    for _ in range(500):
        await clock.run(0.1)
    tailing.cancel()
    await asyncio.gather(tailing, return_exceptions=True)
    pauses = [round(after - before) for before, after in pairwise(at)]
    assert pauses == [1, 2, 4, 8, 10, 10, 10]


async def reload(control: ControlHalf, loaded: object) -> bool:
    """With what loading gives or raises."""

    def read() -> Loaded:
        if isinstance(loaded, Exception):
            raise loaded
        assert isinstance(loaded, GatewayConfig)
        return Loaded("", loaded, {})

    async def apply(loaded: Loaded) -> None:
        """Refuses nothing."""

    return await control.reload(read, apply)


async def test_a_good_reload_is_counted_and_its_warnings_are_logged(
    control: ControlHalf, logged: list[Any], tmp_path: Path
) -> None:
    config = load(
        written({"providers": {"up": {"base_url": "http://127.0.0.1:9", "api_key": "${NO_KEY:-}"}}}, tmp_path)
    )
    assert await reload(control, config)
    assert control.config is config
    assert (control.stats.reloads, control.stats.reloads_refused) == (1, 0)
    assert [event["event"] for event in logged] == ["config", "config", "reloaded"]


async def test_every_problem_of_a_bad_reload_is_logged_and_the_config_stays(
    control: ControlHalf, logged: list[Any]
) -> None:
    before = control.config
    problems = [Problem("gateway.yaml", 3, 1, "filtres", "unknown key"), Problem("gateway.yaml", 9, 1, "x", "bad")]
    assert not await reload(control, ConfigError(problems))
    assert control.config is before
    assert (control.stats.reloads, control.stats.reloads_refused) == (0, 1)
    assert [event["problem"] for event in logged] == [
        "gateway.yaml:3:1: filtres: unknown key",
        "gateway.yaml:9:1: x: bad",
    ]


async def test_a_reload_that_fails_by_a_bug_is_refused_and_the_next_one_works(
    control: ControlHalf, logged: list[Any]
) -> None:
    assert not await reload(control, ZeroDivisionError())
    assert [event["event"] for event in logged] == ["reload_failed"]
    assert await reload(control, control.config)
    assert (control.stats.reloads, control.stats.reloads_refused) == (1, 1)
