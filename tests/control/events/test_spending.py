"""spending: one total for each caller and period, as it was charged; the dead are charged what they had set aside; an
alert is told once; and neither age nor size of the rows touches any of it."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.control.events.schema import migrate
from headgate.control.events.spending import Spending, Threshold, read_spent
from headgate.control.events.store import Batch, Store
from headgate.proxy.accounting.record import Done, Reserved, Share, Spent
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = 1_700_000_000.0
OF = ("budget", "team", "month")
SPOOL = "w0-000000000000"


def shares(caller: str = "tweb", period: str = "2023-11") -> tuple[Share, ...]:
    return (Share("team", "month", caller, period, int(AT) + 1000),)


def reserved(id: str, nanos: int, caller: str = "tweb") -> Reserved:
    return Reserved(id, AT, "budget", nanos, shares(caller))


def spent(id: str, nanos: int, caller: str = "tweb") -> Spent:
    return Spent(id, AT, "budget", nanos, shares(caller))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "events.db", wall=FakeClock(wall=AT).wall)
    yield store
    store.close()


def take(store: Store, *records: Reserved | Spent, spool: str = SPOOL, rows: int = 0) -> None:
    done = [Done(id=f"r{at}", at=AT) for at in range(rows)]
    store.apply(Batch(spool, "w0.seg", 1, done=done, money=list(records)))


def total(store: Store, caller: str = "tweb", period: str = "2023-11") -> int:
    return store.spent([(OF, period)])[0].get(caller, 0)


def test_what_is_set_aside_counts_until_it_is_known_what_was_spent(store: Store) -> None:
    take(store, reserved("a", 50), reserved("b", 7, "tlab"))
    assert (total(store), total(store, "tlab")) == (50, 7)
    take(store, spent("a", 20), reserved("c", 5), spent("c", 4))
    assert (total(store), total(store, "tlab"), total(store, period="2023-12")) == (24, 7, 0)


def test_what_is_reserved_anew_replaces_what_was_before_also_in_one_batch(store: Store) -> None:
    take(store, reserved("a", 50))
    take(store, spent("a", 0), reserved("a", 70))
    assert total(store) == 70
    take(store, spent("a", 0), reserved("a", 80), spent("a", 9))
    assert total(store) == 9


def test_what_was_set_aside_in_an_earlier_turn_is_found_among_few_and_among_many(store: Store) -> None:
    take(store, *(reserved(name, 1) for name in "abcdef"))
    take(store, spent("a", 10))  # fewer than there are rows
    assert total(store) == 5 + 10
    take(store, *(spent(name, 10) for name in "bcxyzd"), reserved("v", 1))
    assert total(store) == 3 + 50 + 20
    take(store, *(spent(name, 0) for name in "efv"))
    assert total(store) == 70
    assert not store.open_spools()


def test_a_dead_spool_is_charged_what_it_had_set_aside_once(store: Store) -> None:
    take(store, reserved("a", 50), reserved("b", 7), spent("b", 1))
    take(store, reserved("c", 3), spool="w1-000000000000")
    assert store.open_spools() == {SPOOL, "w1-000000000000"}
    for _ in range(2):
        store.lose(SPOOL)
    assert total(store) == 54
    assert store.open_spools() == {"w1-000000000000"}


def test_totals_outlive_the_rows(store: Store) -> None:
    take(store, spent("a", 20), rows=500)
    assert store.trim(0, 1) == 500
    assert total(store) == 20


def test_only_totals_of_periods_that_are_over_ever_go(store: Store) -> None:
    take(store, *(spent("a", 1, f"t{n}") for n in range(10)))
    old = (Share("team", "month", "told", "2020-01", 5),)
    take(store, *(Spent("a", AT, "budget", 1, old[:1]) for _ in range(3)))
    store.spending.trim(AT, most=0)
    assert len(store.spent([(OF, "2023-11")])[0]) == 10
    assert total(store, "told", "2020-01") == 0


def test_what_is_rolled_back_tells_nothing(store: Store) -> None:
    store.spending.thresholds = {OF: Threshold(100, (50,))}
    bad = Batch(SPOOL, "w0.seg", 1, money=[spent("a", 60)])
    bad.segment = object()  # type: ignore[assignment]
    with pytest.raises(sqlite3.Error):
        store.apply(bad)
    assert (store.spending.alerts, total(store)) == ([], 0)
    take(store, spent("a", 60))
    assert [alert.percent for alert in store.spending.alerts] == [50]


def test_an_alert_is_told_once_for_each_percent_caller_and_period(store: Store) -> None:
    store.spending.thresholds = {OF: Threshold(100, (50, 80, 100))}
    told = []
    for nanos in (49, 1, 10, 25, 10, 50):
        take(store, spent("a", nanos))
        told.append([alert.percent for alert in store.spending.alerts])
        store.spending.alerts = []
    assert told == [[], [50], [], [80], [], [100]]
    take(store, spent("b", 100, "tlab"))
    alerts = store.spending.alerts
    assert [(alert.caller, alert.percent, alert.spent, alert.limit) for alert in alerts] == [
        ("tlab", 50, 100, 100),
        ("tlab", 80, 100, 100),
        ("tlab", 100, 100, 100),
    ]


def test_who_was_refused_has_spent_it_all(store: Store) -> None:
    store.spending.thresholds = {OF: Threshold(100, (50, 100))}
    take(store, spent("a", 99))
    refused = Spent("b", AT, "budget", 0, shares(), exhausted=True)
    take(store, refused, refused)
    take(store, refused)
    assert [(alert.percent, alert.spent) for alert in store.spending.alerts] == [(50, 99), (100, 99)]


def test_that_all_is_gone_may_be_known_before_that_half_is(store: Store) -> None:
    store.spending.thresholds = {OF: Threshold(100, (50, 80, 100))}
    told = []
    for record in (Spent("b", AT, "budget", 0, shares(), exhausted=True), spent("a", 60), spent("a", 40)):
        take(store, record)
        told.append([alert.percent for alert in store.spending.alerts])
        store.spending.alerts = []
    assert told == [[100], [50], [80]]


def test_what_is_over_and_what_nobody_limits_tells_nothing(store: Store) -> None:
    store.spending.thresholds = {OF: Threshold(1, (50,)), ("other", "team", "month"): Threshold(1, (50,))}
    over = (Share("team", "month", "tweb", "2023-10", int(AT)),)
    take(store, Spent("a", AT, "budget", 60, over), Spent("b", AT, "gone", 60, shares()))
    assert store.spending.alerts == []


STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(("reserve", "spend", "batch", "die")), st.integers(0, 100)),
    max_size=60,
)


@given(STEPS)
def test_the_total_is_what_was_spent_and_what_is_set_aside_however_it_is_cut(
    steps: list[tuple[int, str, int]],
) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db, AT)
    spending = Spending(db)
    batch: list[Reserved | Spent] = []
    charged, held = 0, dict[str, int]()
    for exchange, what, nanos in steps:
        id = f"x{exchange}"
        if what == "reserve":
            batch.append(reserved(id, nanos))
            held[id] = nanos
        elif what == "spend":
            batch.append(spent(id, nanos))
            held.pop(id, None)
            charged += nanos
        else:
            spending.add(SPOOL, batch, AT)
            batch = []
            if what == "die":
                spending.lose(SPOOL, AT)
                charged += sum(held.values())
                held.clear()
    spending.add(SPOOL, batch, AT)
    assert read_spent(db, [(OF, "2023-11")])[0].get("tweb", 0) == charged + sum(held.values())
    db.close()
