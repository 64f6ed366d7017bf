"""/admin/budgets: who has spent how much of which limit, the most first."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from headgate.control.admin import budgets as module
from headgate.control.budgets import limits_of
from headgate.proxy.accounting.money import NANOS
from headgate.proxy.accounting.record import Reserved, Share, Spent, encode
from headgate.proxy.accounting.spool import Spool
from tests_support.admin import config_with, running_admin

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests_support.admin import RunningAdmin


def budgeted(**budget: Any) -> dict[str, Any]:
    config = config_with()
    return {**config, "filters": [*config.get("filters", []), {"budget": budget}]}


async def told(admin: RunningAdmin, *spent: tuple[str, float], period: str, unit: str = "month") -> None:
    """As a worker would; a second one has as much set aside."""
    clock = admin.gateway.half.clock
    folder = admin.control.config.events.spool.path
    with closing(Spool(folder, "w9", max_size=1 << 20, monotonic=clock.monotonic)) as spool:
        for n, (caller, usd) in enumerate(spent):
            shares = (Share("team", unit, caller, period, int(clock.wall()) + 1000),)
            spool.append(encode(Spent(f"a{n} {period}", clock.wall(), "budget", int(usd * NANOS), shares)))
            spool.append(encode(Reserved(f"b{n} {period}", clock.wall(), "budget", int(usd * NANOS), shares)))
        await admin.control.tailer.flush()


def move_ledger(admin: RunningAdmin, path: Path) -> None:
    """From now on the view's ledger is said to be there."""
    config = admin.control.config
    admin.control.config = config.model_copy(update={"events": config.events.model_copy(update={"path": path})})


def row(caller: str, spent: float, left: float, period: str) -> dict[str, Any]:
    return {
        "budget": "budget",
        "per": ["team"],
        "unit": "month",
        "period": period,
        "caller": caller,
        "limit_usd": 10.0,
        "spent_usd": spent,
        "left_usd": left,
    }


async def test_the_most_comes_first_and_what_is_set_aside_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_admin(budgeted(per="team", usd_per_month=10)) as admin:
        [period] = {limit.period for limit in limits_of(admin.control.config, admin.gateway.half.clock.wall())}
        await told(admin, ("tlab", 1.25), ("tweb", 5.5), period=period)
        await told(admin, ("told", 3.0), period="2001-01")
        found = (await admin.get("/admin/budgets")).json()
        monkeypatch.setattr(module, "MOST_CALLERS", 1)
        most = (await admin.get("/admin/budgets")).json()
    assert found == {"object": "list", "data": [row("tweb", 11.0, 0.0, period), row("tlab", 2.5, 7.5, period)]}
    assert most["data"] == found["data"][:1]


async def test_a_ledger_of_a_version_without_budgets_has_nothing_to_tell(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as db:
        db.execute("CREATE TABLE usage (id TEXT)")
    async with running_admin(budgeted(per="team", usd_per_month=10)) as admin:
        move_ledger(admin, old)
        assert (await admin.get("/admin/budgets")).json()["data"] == []
        old.write_bytes(b"this is no database" * 100)
        assert (await admin.get("/admin/budgets")).status == 503


async def test_without_a_budget_or_a_ledger_there_is_nothing_to_tell(tmp_path: Path) -> None:
    async with running_admin() as admin:
        assert (await admin.get("/admin/budgets")).json() == {"object": "list", "data": []}
    async with running_admin(budgeted(per="team", usd_per_month=10)) as admin:
        move_ledger(admin, tmp_path / "not-yet.db")
        assert (await admin.get("/admin/budgets")).json()["data"] == []
