"""supervisor: what it makes of workers that do not start, do not answer, talk nonsense, or will not go back.

Its workers are scripts that speak the channel and do nothing else; the real ones are in test_workers.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.config import ConfigError
from headgate.control.process import crew, worker_process
from headgate.control.process import supervisor as module
from headgate.control.process.errors import BootError
from headgate.control.process.source import ConfigSource
from headgate.control.process.worker_process import WorkerProcess
from headgate.proxy.upstream.health import Verdict
from tests_support.caller import eventually
from tests_support.crew import TEXTS, ready, supervising

if TYPE_CHECKING:
    from headgate.control.process.supervisor import Supervisor


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELOAD_SECONDS", 1.0)
    monkeypatch.setattr(module, "SLACK_SECONDS", 0.3)
    monkeypatch.setattr(worker_process, "LAST_WORDS_SECONDS", 0.3)


async def push(made: Supervisor, text: str) -> None:
    """As a reload does."""
    await made._push(ConfigSource(None).loaded(text))


def digests(made: Supervisor) -> set[str]:
    """What the serving workers have taken over."""
    return {worker._digest for worker in made.crew.serving()}


async def test_a_config_is_taken_over_by_all() -> None:
    async with supervising("obeys", "obeys") as (made, _):
        await ready(made, 2)
        assert made.not_ready() == []
        assert made.crew.chains == [{"route": "default"}]
        before = digests(made)
        await push(made, TEXTS[1])
        assert len(digests(made)) == 1
        assert digests(made) != before


async def test_the_first_worker_that_refuses_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervising("refuses", "obeys") as (made, _):
        [refuser, other] = await ready(made, 2)
        told: list[Verdict] = []
        monkeypatch.setattr(type(made._health), "verdicts", [Verdict("p", "http://a:80", False)])
        monkeypatch.setattr(made._health, "_publish", told.append)
        made.crew.workers = {"0": refuser, "1": other}
        before = digests(made)
        with pytest.raises(ConfigError, match=r"gateway\.yaml:3:1: x: not me"):
            await push(made, TEXTS[1])
        assert digests(made) == before
        assert told == [Verdict("p", "http://a:80", False)], "who went back has new hosts"
        assert {worker.process.pid for worker in made.crew.serving()} == {refuser.process.pid, other.process.pid}


async def test_a_worker_that_does_not_answer_refuses_in_time_and_is_replaced() -> None:
    async with supervising("obeys", "deaf") as (made, _):
        [_, deaf] = await ready(made, 2)
        before = digests(made)
        with pytest.raises(ConfigError, match="worker 1: did not take the config over within 1 s"):
            await push(made, TEXTS[1])
        assert made._served.text == TEXTS[0]
        await eventually(lambda: made._control.stats.worker_restarts == 1, 20)  # nobody knows what the deaf one serves
        assert deaf not in await ready(made, 2)
        assert digests(made) == before


async def test_a_worker_that_will_not_go_back_is_killed_and_its_successor_starts_under_what_is_served() -> None:
    async with supervising("only_once", "refuses") as (made, _):
        [stubborn, refuser] = await ready(made, 2)
        made.crew.workers = {"0": stubborn, "1": refuser}
        before = digests(made)
        with capture_logs() as logged, pytest.raises(ConfigError, match="not me"):
            await push(made, TEXTS[1])
        assert [event["worker"] for event in logged if event["event"] == "worker_killed"] == ["0"]
        await eventually(lambda: made._control.stats.worker_restarts == 1, 20)
        await ready(made, 2)
        assert digests(made) == before


async def test_a_worker_that_talks_nonsense_is_killed_and_replaced() -> None:
    async with supervising("babbles") as (made, _):
        await eventually(lambda: made._control.stats.worker_restarts >= 2, 20)


async def test_a_worker_that_is_not_ready_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "START_SECONDS", 0.5)
    with capture_logs() as logged:
        async with supervising("sits") as (made, _):
            assert made.not_ready() == ["no worker is ready"]
            await eventually(lambda: made._control.stats.worker_restarts >= 1, 20)
    assert "worker_overdue" in [event["event"] for event in logged]


async def test_workers_that_cannot_even_be_started_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> WorkerProcess:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(WorkerProcess, "spawn", fails)
    with capture_logs() as logged:
        async with supervising("obeys", "obeys") as (_, keepers):
            done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            errors = [keeper.exception() for keeper in done]
    assert {type(error) for error in errors} == {BootError}
    assert [event["event"] for event in logged].count("worker_not_started") >= 5


@pytest.mark.usefixtures("no_leaks")
async def test_a_command_that_does_not_exist_leaves_no_socket() -> None:
    def command(name: str, control: int, data: int) -> list[str]:
        return ["/nowhere/at/all"]

    with pytest.raises(FileNotFoundError):
        await WorkerProcess.spawn("0", command, 0)


async def test_a_worker_that_is_still_starting_is_told_of_a_drain_and_of_a_refusal() -> None:
    async with supervising("obeys") as (made, keepers):
        made.crew.refuse_new_work()
        assert made.not_ready() == ["draining"]
        hurry = asyncio.Event()
        await made._drain(keepers, hurry)
        assert made.not_ready() == ["draining"]
        assert all(keeper.done() for keeper in keepers)


async def test_a_bug_in_a_replacement_is_logged_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervising("obeys") as (made, _):
        asked, tries = asyncio.Event(), 0

        async def replace_all() -> bool:
            nonlocal tries
            tries += 1
            raise ZeroDivisionError

        monkeypatch.setattr(made.crew, "replace_all", replace_all)
        replacing = asyncio.ensure_future(made._replace_on(asked))
        with capture_logs() as logged:
            asked.set()
            await eventually(lambda: tries == 1)
            asked.set()
            await eventually(lambda: tries == 2)
        replacing.cancel()
        await asyncio.wait([replacing])
    assert [event["event"] for event in logged] == ["replacement_failed"] * 2
