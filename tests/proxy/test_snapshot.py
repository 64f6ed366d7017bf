"""snapshot: what workers tell adds up, and no total ever goes back, whoever dies or begins again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.proxy.snapshot import Counters, ModelCounters, Resting, Snapshot, Totals, decode, encode, merge
from headgate.proxy.stats import MAX_SERIES, OTHER

NAMES = st.sampled_from(["a", "b", "c"])
COUNTS = st.dictionaries(NAMES, st.integers(0, 5), max_size=3)
AMOUNTS = st.integers(0, 1000)


def model(answers: int = 1, cost: float = 0.0) -> ModelCounters:
    counters = ModelCounters(answers=answers, tokens_in=3 * answers, tokens_out=answers, cost_usd=cost)
    counters.duration.counts[2] = answers
    counters.duration.total = answers / 8
    return counters


def worker(name: str = "0", pid: int = 1, started: float = 0.0, **changes: Any) -> Snapshot:
    return Snapshot(name, pid, started, "v1", **changes)


@st.composite
def growths(draw: st.DrawFn) -> Counters:
    """What a worker may count between two snapshots."""
    return Counters(
        exchanges={("chat", name, 200): count for name, count in draw(COUNTS).items()},
        models={("chat", "p", name): model(count, count / 4) for name, count in draw(COUNTS).items()},
        clusters={"p": draw(COUNTS)},
        endpoints={("p", "http://h:1"): draw(COUNTS)},
        filters={"auth": draw(COUNTS)},
        edge=draw(COUNTS),
        engine=draw(COUNTS),
        spool=draw(COUNTS),
    )


def plain(value: Any) -> dict[tuple[Any, ...], float]:
    """Every number in it, under the path that leads there."""
    found: dict[tuple[Any, ...], float] = {}

    def walk(path: tuple[Any, ...], at: Any) -> None:
        if isinstance(at, msgspec.Struct):
            at = msgspec.structs.asdict(at)
        if isinstance(at, dict):
            for key, one in at.items():
                walk((*path, key), one)
        elif isinstance(at, list):
            for place, one in enumerate(at):
                walk((*path, place), one)
        else:
            found[path] = at

    walk((), value)
    return found


def test_a_snapshot_survives_the_way_over_a_socket() -> None:
    told = worker(
        ready=True,
        loop_lag=0.25,
        upstreams={("p", "http://h:1"): {"cx_active": 2}},
        counters=Counters(exchanges={("chat", "ok", 200): 3}, models={("chat", "p", 'm"\n'): model(cost=0.5)}),
    )
    assert decode(encode(told)) == told


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(b"\xc1")


def test_counters_and_gauges_of_workers_add_up() -> None:
    first = worker(
        "0",
        1,
        10.0,
        ready=True,
        live=2,
        websockets=1,
        connections=5,
        rss_bytes=100,
        loop_lag=0.5,
        upstreams={("p", "h"): {"cx_active": 1}},
        counters=Counters(exchanges={("chat", "ok", 200): 3}, edge={"requests": 3}, models={("c", "p", "m"): model(2)}),
    )
    second = worker(
        "1",
        2,
        20.0,
        draining=True,
        live=1,
        websockets=1,
        connections=1,
        rss_bytes=50,
        loop_lag=0.25,
        spool_full=True,
        upstreams={("p", "h"): {"cx_active": 4}},
        counters=Counters(exchanges={("chat", "ok", 200): 1, ("chat", "failed", 502): 1}, edge={"requests": 4}),
    )
    second.config = "v2"
    both = merge([second, first])
    assert (both.started, both.config) == (10.0, "v2")
    assert (both.ready, both.draining, both.spool_full) == (True, False, True)
    assert (both.live, both.websockets, both.connections, both.rss_bytes, both.loop_lag) == (3, 2, 6, 150, 0.5)
    assert both.upstreams == {("p", "h"): {"cx_active": 5}}
    assert both.counters.exchanges == {("chat", "ok", 200): 4, ("chat", "failed", 502): 1}
    assert both.counters.edge == {"requests": 7}
    assert both.counters.models[("c", "p", "m")] == model(2)


def test_what_rests_in_several_workers_rests_for_the_longest() -> None:
    first = worker(
        "0", 1, keys={("p", "a", "m"): Resting("limited", 3.0)}, targets={("cb", "p", "m"): Resting("open", 9.0)}
    )
    second = worker("1", 2, keys={("p", "a", "m"): Resting("limited", 8.0), ("p", "b", ""): Resting("refused", 60.0)})
    third = worker("2", 3, targets={("cb", "p", "m"): Resting("half_open", 0.0)})
    both = merge([first, second, decode(encode(third))])
    assert both.keys == {("p", "a", "m"): Resting("limited", 8.0, 2), ("p", "b", ""): Resting("refused", 60.0)}
    assert both.targets == {("cb", "p", "m"): Resting("open", 9.0, 2)}
    assert first.keys == {("p", "a", "m"): Resting("limited", 3.0)}


def test_nobody_is_not_ready_and_does_not_drain() -> None:
    nobody = merge([])
    assert (nobody.ready, nobody.draining, nobody.loop_lag, nobody.counters) == (False, False, None, Counters())


def test_the_gateway_drains_when_all_its_workers_do() -> None:
    assert merge([worker("0", draining=True), worker("1", 2, draining=True)]).draining


def test_a_dead_worker_leaves_its_counters_and_takes_its_gauges() -> None:
    totals = Totals()
    totals.tell(worker(live=7, counters=Counters(edge={"requests": 5})))
    totals.gone(worker().life)
    totals.gone(worker().life)
    assert totals.workers() == []
    assert totals.merged().live == 0
    assert totals.merged().counters.edge == {"requests": 5}


def test_the_next_life_of_a_worker_counts_on_from_its_last() -> None:
    totals = Totals()
    totals.tell(worker(counters=Counters(edge={"requests": 5})))
    totals.gone(worker().life)
    totals.tell(worker(pid=2, started=9.0, counters=Counters(edge={"requests": 2})))
    totals.tell(worker(pid=2, started=9.0, counters=Counters(edge={"requests": 3})))
    assert totals.merged().counters.edge == {"requests": 8}


def test_two_lives_of_a_worker_stand_side_by_side_while_one_replaces_the_other() -> None:
    totals = Totals()
    totals.tell(worker(pid=1, started=1.0, live=1))
    totals.tell(worker(pid=2, started=2.0, live=1))
    assert [one.pid for one in totals.workers()] == [1, 2]
    assert totals.merged().live == 2


def test_models_above_the_bound_are_other_and_nothing_is_lost() -> None:
    totals = Totals()
    for name in ("0", "1"):
        models = {("chat", "p", f"{name}-{number}"): model() for number in range(MAX_SERIES - 1)}
        totals.tell(worker(name, counters=Counters(models=models)))
    found = totals.merged().counters.models
    assert len(found) == MAX_SERIES + 1
    assert sum(one.answers for one in found.values()) == 2 * (MAX_SERIES - 1)
    assert found[("chat", "p", OTHER)].answers == MAX_SERIES - 2


def test_what_was_merged_does_not_change_afterwards() -> None:
    totals = Totals()
    totals.tell(worker(counters=Counters(edge={"requests": 5})))
    before = totals.merged()
    totals.tell(worker(counters=Counters(edge={"requests": 6})))
    assert before.counters.edge == {"requests": 5}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["tell", "tell", "die"]), st.integers(0, 2), growths()), min_size=1, max_size=20)
)
def test_no_total_ever_goes_back_and_none_counts_twice(story: list[tuple[str, int, Counters]]) -> None:
    totals, everything = Totals(), Counters()
    lives = [0, 0, 0]
    now: dict[int, Counters] = {}
    before: dict[tuple[Any, ...], float] = {}
    for event, who, growth in story:
        life = worker(str(who), pid=10 * who + lives[who], started=float(lives[who]))
        if event == "die":
            totals.gone(life.life)
            lives[who] += 1
            now.pop(who, None)
        else:
            mine = now.setdefault(who, Counters())
            mine.grow(growth, Counters())
            everything.grow(growth, Counters())
            life.counters = msgspec.msgpack.decode(msgspec.msgpack.encode(mine), type=Counters)
            totals.tell(life)
        after = plain(totals.merged().counters)
        assert all(after[path] >= value for path, value in before.items())
        before = after
    assert plain(totals.merged().counters) == pytest.approx(plain(everything))


@settings(deadline=None)
@given(AMOUNTS, AMOUNTS)
def test_a_counter_that_goes_back_in_one_life_adds_nothing(first: int, second: int) -> None:
    totals = Totals()
    totals.tell(worker(counters=Counters(edge={"requests": first})))
    totals.tell(worker(counters=Counters(edge={"requests": second})))
    assert totals.merged().counters.edge["requests"] == max(first, second)


def test_statuses_of_many_workers_stay_within_the_bound_and_none_is_lost() -> None:
    totals = Totals()
    for worker in range(4):
        exchanges = {("chat", f"o{worker}", 100 + number): 2 for number in range(MAX_SERIES - 1)}
        totals.tell(Snapshot(str(worker), worker, 1.0, "v", counters=Counters(exchanges=exchanges)))
        totals.tell(Snapshot(str(worker), worker, 1.0, "v", counters=Counters(exchanges=exchanges)))
    found = totals.merged().counters.exchanges
    assert len(found) <= MAX_SERIES + 4
    assert sum(found.values()) == 4 * 2 * (MAX_SERIES - 1)
    assert found["chat", "o3", 0] == 2 * (MAX_SERIES - 1)
