"""/admin/usage: sums of the ledger by one label, from a moment on; a question it cannot understand is 400."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.control.admin import usage as module
from headgate.control.admin.usage import read_query, read_since
from headgate.control.events.report import GROUPINGS
from headgate.proxy.errors import InvalidRequestError
from tests_support.admin import config_with, running_admin
from tests_support.gateway import CHAT_BODY

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.admin import RunningAdmin

NOW = 1_800_000_000.0


async def test_sums_by_a_label() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        for model in (b"one", b"one", b"two"):
            await admin.gateway.post(CHAT_BODY.replace(b"gpt-4o-mini", model))
        await admin.control.tailer.flush()
        by_key = (await admin.get("/admin/usage", key="viewer")).json()
        by_model = (await admin.get("/admin/usage?by=model&since=1h", key="viewer")).json()
        by_endpoint = (await admin.get("/admin/usage?by=endpoint", key="viewer")).json()
        long_ago = (await admin.get("/admin/usage?by=model&since=2100-01-01", key="viewer")).json()
    assert (by_key["by"], [(row["key"], row["requests"]) for row in by_key["data"]]) == ("key", [("app", 3)])
    assert sorted((row["model"], row["requests"]) for row in by_model["data"]) == [("one", 2), ("two", 1)]
    assert [(row["endpoint"], row["requests"]) for row in by_endpoint["data"]] == [("chat", 3)]
    assert long_ago["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("by=colour", "by"), ("by=", "by"), ("since=soon", "since"), ("since=", "since"), ("group=key", "group")],
)
async def test_a_question_that_cannot_be_understood_is_400_and_names_the_parameter(query: str, param: str) -> None:
    async with running_admin() as admin:
        answer = await admin.get(f"/admin/usage?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_sql_in_a_parameter_is_only_text() -> None:
    async with running_admin() as admin:
        answer = await admin.get("/admin/usage?by=" + quote("key; DROP TABLE usage --"))
        assert answer.status == 400
        assert (await admin.get("/admin/usage")).status == 200


def move_ledger(admin: RunningAdmin, path: Path) -> None:
    """From now on the view's ledger is said to be there."""
    config = admin.control.config
    admin.control.config = config.model_copy(update={"events": config.events.model_copy(update={"path": path})})


async def test_before_there_is_a_ledger_there_is_nothing_to_sum(tmp_path: Path) -> None:
    async with running_admin() as admin:
        move_ledger(admin, tmp_path / "not-yet.db")
        answer = await admin.get("/admin/usage")
    assert (answer.status, answer.json()["data"]) == (200, [])


async def test_a_ledger_that_cannot_be_read_is_503_without_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "events.db"
    async with running_admin() as admin:
        broken.write_bytes(b"this is no database" * 100)
        move_ledger(admin, broken)
        answer = await admin.get("/admin/usage")
    assert (answer.status, answer.error["code"], answer.header("retry-after")) == (503, "overloaded", "5")
    assert str(tmp_path).encode() not in answer.raw
    assert "file is not a database" in capsys.readouterr().out


async def test_a_slow_ledger_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.0)
    async with running_admin() as admin:
        assert (await admin.get("/admin/usage")).status == 503


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", NOW - 5400),
        ("7d", NOW - 604_800),
        ("0s", NOW),
        ("2026-01-31", 1_769_817_600.0),
        ("2026-01-31T12:00:00Z", 1_769_860_800.0),
        ("2026-01-31T12:00:00+02:00", 1_769_853_600.0),
        ("1769817600", 1_769_817_600.0),
    ],
)
def test_since_is_an_age_a_day_a_time_or_unix_seconds(text: str, seconds: float) -> None:
    assert read_since(text, NOW) == seconds


@pytest.mark.parametrize("by", GROUPINGS)
def test_every_grouping_of_the_report_is_known(by: str) -> None:
    assert read_query({"by": by}, NOW) == (by, None)


@given(st.text(max_size=80))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with suppress(InvalidRequestError):
        assert math.isfinite(read_since(text, NOW))
