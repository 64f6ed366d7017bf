"""key_watch: each change is told until it is taken over, and one that is refused is logged once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from headgate.config import ConfigError, GatewayConfig, Problem, parse_config
from headgate.control.process import key_watch
from headgate.control.process.key_watch import KeyWatch
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Told:
    """Counts, and refuses while it is told to."""

    def __init__(self) -> None:
        self.times = 0
        self.refuses: str | None = None

    async def __call__(self) -> None:
        self.times += 1
        if self.refuses is not None:
            raise ConfigError([Problem("keys", 0, 0, "", self.refuses)])


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def watch(told: Told) -> KeyWatch:
    return KeyWatch(FakeClock(), told)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr(key_watch, "log", structlog.get_logger("headgate"))
    with capture_logs() as events:
        yield events


def config(file: Path) -> GatewayConfig:
    return parse_config(f"filters: [auth: {{keys_file: {file}}}]", env={})


async def test_the_first_look_and_each_change_are_told_once(watch: KeyWatch, told: Told, tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    watch.follow(config(file))
    for change in (lambda: None, lambda: file.write_text("a"), lambda: file.write_text("ab"), file.unlink):
        before = told.times
        change()
        await watch.look()
        await watch.look()
        assert told.times == before + 1


async def test_the_pepper_counts_too(watch: KeyWatch, told: Told, tmp_path: Path) -> None:
    watch.follow(config(tmp_path / "keys.db"))
    await watch.look()
    (tmp_path / "headgate-pepper").write_text("x")
    await watch.look()
    assert told.times == 2


async def test_what_is_refused_is_tried_again_and_logged_once(
    watch: KeyWatch, told: Told, tmp_path: Path, logged: list[Any]
) -> None:
    watch.follow(config(tmp_path / "keys.db"))
    told.refuses = "line 3"
    for _ in range(3):
        await watch.look()
    told.refuses = None
    for _ in range(3):
        await watch.look()
    assert told.times == 4
    assert [(event["event"], event["problem"]) for event in logged] == [("keys_refused", "keys: line 3")]
    told.refuses = "line 3"
    (tmp_path / "keys.db").write_text("a")
    await watch.look()
    assert len(logged) == 2


async def test_another_config_is_another_file(watch: KeyWatch, told: Told, tmp_path: Path) -> None:
    watch.follow(config(tmp_path / "a.db"))
    await watch.look()
    watch.follow(config(tmp_path / "b.db"))
    await watch.look()
    assert told.times == 2


async def test_it_looks_each_second_for_ever_bugs_notwithstanding(
    told: Told, tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    watch = KeyWatch(clock, told)
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(watch, "look", look)
    running = asyncio.ensure_future(watch.run())
    await clock.run(5)
    assert looks == 0, "it looks without a file"
    watch.follow(config(tmp_path / "keys.db"))
    await clock.run(5)
    assert looks == 5
    assert {event["event"] for event in logged} == {"keys_not_read"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
