"""crew: replaced on request the new one serves first; whatever goes wrong, the old ones stay; who is silent is killed.

Its workers are scripts that speak the channel and do nothing else; the real ones are in tests/processes/.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.control.process import crew, supervisor, worker_process
from headgate.control.process.source import ConfigSource
from headgate.control.process.worker_process import WorkerProcess
from tests_support.caller import eventually
from tests_support.crew import TEXTS, ready, supervising

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    Logged = Sequence[MutableMapping[str, Any]]

WITHIN = 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RELOAD_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "SLACK_SECONDS", 0.3)
    monkeypatch.setattr(worker_process, "LAST_WORDS_SECONDS", 0.3)


def told(logged: Logged, name: str) -> list[MutableMapping[str, Any]]:
    """The events of a name."""
    return [event for event in logged if event["event"] == name]


async def test_each_is_replaced_by_one_that_serves_already_and_none_is_restarted() -> None:
    with capture_logs() as logged:
        async with supervising("obeys", "obeys") as (made, _):
            old = await ready(made, 2)
            assert await made.crew.replace_all()
            new = await ready(made, 2)
            assert not {one.process.pid for one in old} & {one.process.pid for one in new}
            await eventually(lambda: len(made.crew.lives) == 2, WITHIN)
            assert (made.crew._stats.replacements, made.crew._stats.worker_restarts) == (1, 0)
    assert [event["worker"] for event in told(logged, "worker_replaced")] == ["0", "1"]
    assert {event["pid"] for event in told(logged, "worker_retired")} == {one.process.pid for one in old}
    assert told(logged, "worker_died") == []


@pytest.mark.parametrize(
    ("play", "reason"),
    [("dies", "the new worker ended before it was ready"), ("sits", "the new worker ended before it was ready")],
)
async def test_the_first_new_one_that_fails_ends_it_and_all_the_old_ones_serve_on(
    play: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logged:
        async with supervising(f"obeys, {play}", "obeys") as (made, _):
            old = await ready(made, 2)
            monkeypatch.setattr(crew, "START_SECONDS", 0.5)
            assert not await made.crew.replace_all()
            assert await ready(made, 2) == old
            assert made.crew._stats.replacements_aborted == 1
    assert [event["reason"] for event in told(logged, "replacement_aborted")] == [reason]


async def test_a_system_that_gives_no_process_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> WorkerProcess:
        raise OSError(11, "Resource temporarily unavailable")

    with capture_logs() as logged:
        async with supervising("obeys") as (made, _):
            old = await ready(made, 1)
            monkeypatch.setattr(WorkerProcess, "spawn", fails)
            assert not await made.crew.replace_all()
            assert await ready(made, 1) == old
    assert told(logged, "replacement_aborted")[0]["reason"] == "the new worker could not be started"


async def test_an_old_one_that_dies_meanwhile_has_its_successor_from_elsewhere() -> None:
    with capture_logs() as logged:
        async with supervising("obeys, takes_its_time") as (made, _):
            [old] = await ready(made, 1)
            replacing = asyncio.ensure_future(made.crew.replace_all())
            await eventually(lambda: len(made.crew.lives) == 2, WITHIN)
            old.kill()
            assert not await replacing
            await eventually(lambda: len(made.crew.lives) == 1, WITHIN)
            assert old not in await ready(made, 1)
            assert made.crew._stats.worker_restarts == 1
    assert "died meanwhile" in told(logged, "replacement_aborted")[0]["reason"]


async def test_while_many_retire_a_further_replacement_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "RETIRING_PER_PLACE", 1)
    with capture_logs() as logged:
        async with supervising("lingers") as (made, _):
            [first] = await ready(made, 1)
            assert await made.crew.replace_all()
            assert made.crew.retiring() == [first]
            replacing = asyncio.ensure_future(made.crew.replace_all())
            await eventually(lambda: bool(told(logged, "replacement_waits")), WITHIN)
            assert not replacing.done()
            assert not made.crew.changing.locked()  # a reload need not wait
            first.kill()
            assert await replacing
            assert len(made.crew.lives) == 2


async def test_who_retires_takes_a_reload_or_no_new_work() -> None:
    with capture_logs() as logged:
        async with supervising("lingers, obeys", "lingers_and_refuses, obeys") as (made, _):
            [willing, stubborn] = await ready(made, 2)
            assert await made.crew.replace_all()
            assert set(made.crew.retiring()) == {willing, stubborn}
            loaded = ConfigSource(None).loaded(TEXTS[1])
            await made._push(loaded)
            assert willing._digest == loaded.config.digest
            assert {worker._digest for worker in made.crew.serving()} == {loaded.config.digest}
            await eventually(lambda: made.crew.retiring() == [willing], WITHIN)
    assert [event["worker"] for event in told(logged, "retiring_worker_refuses")] == ["1"]


async def test_who_says_nothing_for_too_long_is_killed_and_replaced_and_who_talks_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew, "TELL_SECONDS", 0.2)
    with capture_logs() as logged:
        async with supervising("says_nothing_more, keeps_talking", "keeps_talking") as (made, _):
            await ready(made, 2)
            talker = made.crew.workers["1"]
            watching = asyncio.ensure_future(made.crew.watch(lambda: 1.0))
            await eventually(lambda: made.crew._stats.worker_restarts == 1, WITHIN)
            await ready(made, 2)
            await asyncio.sleep(1.5)
            assert made.crew.workers["1"] is talker
            assert made.crew._stats.workers_hung == 1
            watching.cancel()
            await asyncio.wait([watching])
    assert [event["worker"] for event in told(logged, "worker_hung")] == ["0"]
