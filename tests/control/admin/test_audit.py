"""audit: each change over the admin listener is on record before its answer; nobody else can fill the record."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from headgate.control.events.audit import MOST_READ, Change, append, latest
from headgate.control.events.store import Store
from tests_support.admin import AUTH, config_with, running_admin

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.admin import RunningAdmin


async def changes(admin: RunningAdmin, query: str = "") -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await admin.get(f"/admin/audit{query}", key="viewer")).json()["data"]
    return data


async def test_who_did_what_when_from_where_and_what_came_of_it(tmp_path: Path) -> None:
    auth = {"auth": {**AUTH["auth"], "keys_file": str(tmp_path / "keys.db")}}
    async with running_admin(config_with(filters=[auth])) as admin:
        await admin.ask("POST", "/admin/keys", key="admin", body={"name": "made"})
        refused = await admin.ask("POST", "/admin/keys", key="admin", body={"name": "made"})
        await admin.ask("POST", "/admin/keys/made/rotate", key="admin")
        await admin.ask("DELETE", "/admin/keys/made", key="admin")
        await admin.ask("POST", "/drain", key="admin")
        found = await changes(admin)
        assert await changes(admin, "?limit=2") == found[:2]
        now = admin.view.clock.wall()
    assert [(one["what"], one["status"]) for one in found] == [
        ("POST /drain", 200),
        ("revoke the key 'made'", 200),
        ("rotate the key 'made'", 200),
        ("create the key 'made'", 409),
        ("create the key 'made'", 201),
    ]
    assert {(one["key"], one["client"]) for one in found} == {("admin", "127.0.0.1")}
    assert all(now - 60 < one["at"] <= now for one in found)
    assert found[3]["request_id"] == refused.error["request_id"]


async def test_who_may_not_change_anything_leaves_nothing_there() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        for key in (None, "nobody", "app", "viewer"):
            assert (await admin.ask("POST", "/drain", key=key)).status in (401, 403)
        assert await changes(admin) == []
        await admin.get("/config_dump", key="admin")
        assert await changes(admin) == []


async def test_a_change_is_made_and_logged_while_the_store_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    async with running_admin(config_with(auth=True)) as admin:
        with closing(sqlite3.connect(admin.view.config.events.path)) as db:
            db.execute("DROP TABLE audit")
        assert (await admin.ask("POST", "/drain", key="admin")).status == 200
        assert admin.view.readiness() == ["draining"]
        unread = await admin.get("/admin/audit", key="viewer")
    assert (unread.status, unread.error["code"]) == (503, "overloaded")
    logged = capsys.readouterr().out
    assert "admin_change" in logged
    assert "audit_not_written" in logged


@pytest.mark.parametrize(("query", "param"), [("?limit=0", "limit"), ("?limit=x", "limit"), ("?since=1d", "since")])
async def test_another_question_is_400(query: str, param: str) -> None:
    async with running_admin() as admin:
        answer = await admin.get(f"/admin/audit{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def change(n: int) -> Change:
    return Change(float(n), "k", "c", f"change {n}", 200, "r")


def test_the_oldest_go_above_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.control.events.audit.MOST_KEPT", 3)
    Store(tmp_path / "e.db", wall=lambda: 0.0).close()
    for n in range(5):
        append(tmp_path / "e.db", change(n))
    assert latest(tmp_path / "e.db", MOST_READ) == [change(4), change(3), change(2)]


def test_before_there_is_a_store_there_is_no_change(tmp_path: Path) -> None:
    assert latest(tmp_path / "none.db", 1) == []
    with pytest.raises(sqlite3.Error):
        append(tmp_path / "none.db", change(1))
    assert not (tmp_path / "none.db").exists()
