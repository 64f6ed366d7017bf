"""usage: sums of a ledger that a gateway has written, for eyes and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.control.events.store import Batch, Store
from headgate.proxy.accounting.record import Done

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.command import InProcess

DAY = 86400.0
NOW = 20_000 * DAY + 3600.0
"""2024-10-04, at one o'clock."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config beside a ledger with three exchanges, and a clock that stands."""
    monkeypatch.setattr("headgate.proxy.clock.wall_time", lambda: NOW)
    rows = [
        row("a", NOW - 60, "app", "fast", 0.25),
        row("b", NOW - 7200, "app", "slow", 0.5),
        row("c", NOW - 3 * DAY, "nightly", "fast", None),
    ]
    store = Store(tmp_path / "events.db", wall=lambda: NOW)
    store.apply(Batch("s", "s.1.seg", 1, done=rows))
    store.close()
    return written(tmp_path / "gateway.yaml", tmp_path / "events.db")


def row(id_: str, at: float, key: str, model: str, cost: float | None) -> Done:
    """One exchange."""
    return Done(
        id=id_, at=at, outcome="ok", status=200, key=key, model=model, prompt_tokens=10, completion_tokens=5,
        usage_source="reported", cost_usd=cost, endpoint="chat",
    )  # fmt: skip


def written(file: Path, ledger: Path) -> Path:
    """A config that names a ledger."""
    file.write_text(json.dumps({"events": {"path": str(ledger)}}))
    return file


def test_by_key_is_the_default_and_a_table(config: Path, headgate: InProcess) -> None:
    said = headgate("usage", "--config", str(config))
    assert (said.code, said.err) == (0, "")
    head, app, nightly, total = said.out.splitlines()
    assert head.split()[:2] == ["key", "requests"]
    assert (app.split()[:2], nightly.split()[:2], total.split()[:2]) == (["app", "2"], ["nightly", "1"], ["total", "3"])


def groups(said: Any, by: str) -> dict[str, int]:
    """Requests by group."""
    answer = json.loads(said.out)
    assert (answer["object"], answer["by"]) == ("list", by)
    return {one[by]: one["requests"] for one in answer["data"]}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("key", {"app": 2, "nightly": 1}),
        ("model", {"fast": 2, "slow": 1}),
        ("day", {"2024-10-01": 1, "2024-10-03": 1, "2024-10-04": 1}),
        ("endpoint", {"chat": 3}),
        ("team", {"": 3}),
        ("provider", {"": 3}),
    ],
)
def test_every_grouping_as_json(by: str, expected: dict[str, int], config: Path, headgate: InProcess) -> None:
    assert groups(headgate("usage", "--by", by, "--json", "--config", str(config)), by) == expected


@pytest.mark.parametrize(("since", "expected"), [("30m", 1), ("3h", 2), ("2d", 2), ("7d", 3)])
def test_since_leaves_out_what_is_older(since: str, expected: int, config: Path, headgate: InProcess) -> None:
    found = groups(headgate("usage", "--since", since, "--json", "--config", str(config)), "key")
    assert sum(found.values()) == expected


def test_a_ledger_that_is_not_there_yet_is_explained(tmp_path: Path, headgate: InProcess) -> None:
    said = headgate("usage", "--config", str(written(tmp_path / "gateway.yaml", tmp_path / "none.db")))
    assert said.code == 1
    assert said.err == (f"headgate: no ledger at {tmp_path}/none.db yet: it is made when a gateway first runs there\n")


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, headgate: InProcess) -> None:
    (tmp_path / "text.db").write_text("not a database, and longer than a header of one would be" * 10)
    said = headgate("usage", "--config", str(written(tmp_path / "gateway.yaml", tmp_path / "text.db")))
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"headgate: the ledger at {tmp_path}/text.db cannot be read: ")
    assert "Traceback" not in said.err


def test_a_bad_config_is_refused_as_everywhere(tmp_path: Path, headgate: InProcess) -> None:
    (tmp_path / "gateway.yaml").write_text("evnts: {}")
    said = headgate("usage", "--config", str(tmp_path / "gateway.yaml"))
    assert (said.code, "did you mean 'events'?" in said.err) == (2, True)
