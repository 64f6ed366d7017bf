"""budgets: a store that is new goes on from what the ledger knows, whatever still lies in the spools; and where the
ledger cannot say, nobody is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from headgate.config import parse_config
from headgate.control.budgets import limits_of, recall, thresholds_of, where_counted
from headgate.control.events.spending import Threshold
from headgate.control.events.tailer import Tailer
from headgate.control.process.errors import BootError
from headgate.filters.stores.memory import MemoryStore
from headgate.filters.stores.redis_totals import RedisTotals
from headgate.filters.stores.rules import Refused, Rule
from headgate.proxy.accounting.record import Reserved, Share, Spent, encode
from headgate.proxy.accounting.spool import Spool
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

WALL = 1_700_000_000.0
"""2023-11-14."""
SHARES = (Share("team", "month", "tweb", "2023-11", 1_701_388_800),)
CONFIG = """
providers: {mock: {base_url: "mock:"}}
filters:
  - budget: {per: team, usd_per_month: 10, alerts: [90]}
  - retry
routes:
  - {name: night, match: {model: "n-*"}, filters: {budget: {usd_per_month: 20}}}
  - {name: free, match: {model: "f-*"}, filters: {budget: off, retry: {attempts: 2}}}
"""


def tailer(folder: Path, clock: FakeClock) -> Tailer:
    return Tailer(folder / "events.db", folder / "spool", retention=1e6, max_size=1 << 30, clock=clock)


def spool(folder: Path, clock: FakeClock, *records: Reserved | Spent) -> Spool:
    made = Spool(folder / "spool", "w0", max_size=1 << 20, monotonic=clock.monotonic)
    for record in records:
        made.append(encode(record))
    return made


def left(store: MemoryStore, place: str) -> int:
    """Of the money of the team this month."""
    limit = next(one for one in limits_of(parse_config(CONFIG, env={}), WALL) if one.place == place)
    limits = store.open(place, [Rule(limit.kind, limit.threshold.limit)])
    taken = limits.take(["tweb 2023-11"], limit.threshold.limit, 0)
    return taken.report.left if isinstance(taken, Refused) else limit.threshold.limit


def test_every_limit_has_its_place_its_period_and_its_thresholds() -> None:
    config = parse_config(CONFIG, env={})
    assert [(limit.of, limit.period) for limit in limits_of(config, WALL)] == [
        (("budget", "team", "month"), "2023-11"),
        (("night/budget", "team", "month"), "2023-11"),
    ]
    assert thresholds_of(config) == {
        ("budget", "team", "month"): Threshold(10 * 10**9, (90,)),
        ("night/budget", "team", "month"): Threshold(20 * 10**9, (90,)),
    }


async def test_what_lies_in_the_spools_of_the_living_and_the_dead_counts(tmp_path: Path) -> None:
    clock = FakeClock(wall=WALL)
    dead = spool(tmp_path, clock, Reserved("a", WALL, "budget", 3 * 10**9, SHARES))
    dead.append(encode(Reserved("b", WALL, "night/budget", 10**9, SHARES)))
    dead.close()
    living = spool(tmp_path, clock, Reserved("c", WALL, "budget", 2 * 10**9, SHARES))
    living.append(encode(Spent("d", WALL, "budget", 10**9, SHARES)))
    store, taking = MemoryStore(), tailer(tmp_path, clock)
    await recall(parse_config(CONFIG, env={}), store, taking, clock)
    taking.close()
    living.close()
    assert (left(store, "budget"), left(store, "night/budget")) == (4 * 10**9, 19 * 10**9)


async def test_another_gateway_may_be_the_one_that_tails(tmp_path: Path) -> None:
    clock = FakeClock(wall=WALL)
    holder = tailer(tmp_path, clock)
    assert not await holder.turn()
    living = spool(tmp_path, clock, Spent("d", WALL, "budget", 10**9, SHARES))
    while await holder.turn():
        pass
    store, taking = MemoryStore(), tailer(tmp_path, clock)
    await recall(parse_config(CONFIG, env={}), store, taking, clock)
    assert not taking.holder
    assert left(store, "budget") == 9 * 10**9
    for one in (taking, holder, living):
        one.close()


async def test_without_a_budget_the_ledger_is_not_asked(tmp_path: Path) -> None:
    clock = FakeClock(wall=WALL)
    taking = tailer(tmp_path / "nowhere", clock)
    await recall(parse_config('providers: {mock: {base_url: "mock:"}}', env={}), MemoryStore(), taking, clock)
    assert not (tmp_path / "nowhere").exists()


async def test_a_ledger_that_is_away_or_behind_is_no_reason_to_spend_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(CONFIG, env={})
    clock = FakeClock(wall=WALL)
    (tmp_path / "events.db").write_bytes(b"no database" * 1000)
    taking = tailer(tmp_path, clock)
    with pytest.raises(BootError, match="what was spent of the budgets cannot be read"):
        await recall(config, MemoryStore(), taking, clock)
    taking.close()
    (tmp_path / "events.db").unlink()
    holder, taking = tailer(tmp_path, clock), tailer(tmp_path, clock)
    assert not await holder.turn()
    living = spool(tmp_path, clock, Spent("d", WALL, "budget", 10**9, SHARES))

    async def no_time(seconds: float) -> None:
        clock.advance(seconds)

    monkeypatch.setattr(clock, "sleep", no_time)
    with pytest.raises(BootError, match="not all of the spools is in the ledger after 30 s"):
        await recall(config, MemoryStore(), taking, clock)
    for one in (taking, holder, living):
        one.close()


def test_where_redis_counts_it_is_redis_that_is_told() -> None:
    store, clock = MemoryStore(), FakeClock()
    stores: Any = 'stores: {redis: {url: "redis://127.0.0.1:1"}}'
    assert where_counted(parse_config(CONFIG, env={}), store, clock) is store
    assert isinstance(where_counted(parse_config(CONFIG + stores, env={}), store, clock), RedisTotals)
