"""gate: what one exchange takes, without the background, refused where it is above its ceiling."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from perf import gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = {"/x/a.py:1 f": 3.0, "<built-in method builtins.len>": 5.01, "timer": 1.0}
EVENT = {"/x/a.py:9 g": 2.0}


class Measured:
    def per_request(self) -> gate.Counts:
        return REQUEST

    def per_event(self) -> gate.Counts:
        return EVENT


@pytest.fixture
def ceilings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    @contextlib.contextmanager
    def measured(*, every_filter: bool = False) -> Iterator[Measured]:
        del every_filter
        yield Measured()

    monkeypatch.setattr(gate, "counted_gateway", measured)
    monkeypatch.setattr(gate, "CEILINGS", tmp_path / "ceilings.json")
    return tmp_path / "ceilings.json"


def test_updating_writes_what_was_measured_and_then_passes(ceilings: Path) -> None:
    assert gate.main(["--update"]) == 0
    assert json.loads(ceilings.read_text()) == {
        "request": {"python": 5, "builtin": 7, "task": 0, "timer": 1},
        "event": {"python": 4, "builtin": 0, "task": 0, "timer": 0},
        "chain": {"python": 5, "builtin": 7, "task": 0, "timer": 1},
    }
    assert gate.main([]) == 0


def test_what_is_above_its_ceiling_is_refused_by_name(ceilings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate.main(["--update"])
    written = json.loads(ceilings.read_text())
    written["request"]["builtin"] = 3
    ceilings.write_text(json.dumps(written))
    assert gate.main([]) == 1
    assert capsys.readouterr().err == "gate: request: 5.01 builtin calls, ceiling 3\n"


def test_without_ceilings_nothing_passes(ceilings: Path) -> None:
    assert not ceilings.exists()
    assert gate.main([]) == 1


def test_the_functions_behind_a_count_are_listed_dearest_first(
    ceilings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate.main(["--list", "request"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["5.01", "3.00", "1.00"]


def test_what_happens_in_less_than_one_exchange_of_ten_is_background() -> None:
    before = {"f": 10, "tick": 5}
    after = {"f": 210, "tick": 9, "new": 100}
    assert gate.per_exchange(before, after, 100) == {"f": 2.0, "new": 1.0}


def test_a_read_split_once_is_no_regression() -> None:
    assert gate.above({"event": {"python": 11.4}}, {"event": {"python": 11}}) == []
    assert gate.above({"event": {"python": 13.0}}, {"event": {"python": 11}}) == [
        "event: 13.00 python calls, ceiling 11"
    ]
