"""issuers: what was made here is written down and known at once; the rest is asked for once, and not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from headgate.proxy import issuers as module
from headgate.proxy.accounting.estimate import Estimator
from headgate.proxy.accounting.ledger import Ledger
from headgate.proxy.accounting.record import Forgotten, Issued
from headgate.proxy.issuers import ASK_SECONDS, Issuers
from tests_support.clock import WALL_START, FakeClock
from tests_support.relay import Lines

if TYPE_CHECKING:
    from headgate.proxy.accounting.spool import Spool

Found = dict[str, tuple[Issued, ...]]


class Worker:
    """One worker's memory, what it wrote and what it asked."""

    def __init__(self, *, asks: bool = True) -> None:
        self.clock = FakeClock()
        self.lines = Lines()
        self.issuers = Issuers(self.clock, Ledger(cast("Spool", self.lines), Estimator()))
        self.asked: list[tuple[int, list[str]]] = []
        self.heard: list[Found | None] = []
        if asks:
            self.issuers.ask = lambda number, ids: self.asked.append((number, ids))

    def find(self, *ids: str) -> None:
        self.issuers.find(ids, self.heard.append)


def row(id: str, provider: str = "up", team: str = "red") -> Issued:
    return Issued(id=id, at=WALL_START, provider=provider, team=team, kind="files")


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_what_was_made_here_is_written_and_known_at_once(worker: Worker) -> None:
    worker.issuers.made([("files", "file-a")], "up", "red")
    assert worker.lines.issued == [row("file-a")]
    worker.find("file-a")
    assert worker.heard == [{"file-a": (row("file-a"),)}]
    assert worker.asked == []


def test_what_is_shown_again_is_not_written_again(worker: Worker) -> None:
    for _ in range(3):
        worker.issuers.made([("files", "file-a")], "up", "red")
    worker.issuers.made([("files", "file-a")], "up2", "red")
    assert worker.lines.issued == [row("file-a"), row("file-a", "up2")]


@pytest.mark.parametrize("id_", ["", "a b", "ü", "a\n", "x" * 257])
def test_what_cannot_be_an_id_is_neither_written_nor_asked_for(worker: Worker, id_: str) -> None:
    worker.issuers.made([("files", id_)], "up", "red")
    worker.find(id_)
    assert (worker.lines.issued, worker.asked, worker.heard) == ([], [], [{}])


def test_the_rest_is_asked_for_in_one_question_and_remembered(worker: Worker) -> None:
    worker.issuers.made([("files", "file-a")], "up", "red")
    worker.find("file-a", "file-b", "file-c", "file-b")
    assert worker.asked == [(1, ["file-b", "file-c"])]
    assert worker.heard == []
    worker.issuers.answered(1, [row("file-b"), row("file-b", "up2")])
    found: Found = {"file-a": (row("file-a"),), "file-b": (row("file-b"), row("file-b", "up2"))}
    assert worker.heard == [found]
    worker.find("file-b")
    assert worker.heard[1:] == [{"file-b": found["file-b"]}]
    assert worker.clock.pending == []


def test_that_nobody_knows_an_id_is_not_remembered(worker: Worker) -> None:
    worker.find("file-a")
    worker.issuers.answered(1, [])
    worker.find("file-a")
    worker.issuers.answered(2, [row("file-a")])
    assert worker.heard == [{}, {"file-a": (row("file-a"),)}]


def test_an_answer_that_does_not_come_is_not_waited_for(worker: Worker) -> None:
    worker.find("file-a")
    worker.clock.advance(ASK_SECONDS)
    assert worker.heard == [None]
    worker.issuers.answered(1, [row("file-a")])  # late
    worker.issuers.answered(7, [row("file-a")])  # never asked
    assert worker.heard == [None]
    worker.find("file-a")
    worker.issuers.answered(2, None)
    assert worker.heard == [None, None]
    assert (worker.issuers.asked, worker.issuers.unanswered) == (2, 2)


def test_too_many_questions_are_not_asked(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    for n in range(3):
        worker.find(f"file-{n}")
    assert len(worker.asked) == 2
    assert worker.heard == [None]


def test_without_a_control_half_it_knows_what_it_made() -> None:
    worker = Worker(asks=False)
    worker.issuers.made([("files", "file-a")], "up", "red")
    worker.find("file-a", "file-b")
    assert worker.heard == [{"file-a": (row("file-a"),)}]


def test_what_was_deleted_is_forgotten(worker: Worker) -> None:
    worker.issuers.made([("files", "file-a")], "up", "red")
    worker.issuers.made([("files", "file-a")], "up2", "red")
    worker.issuers.deleted("file-a", "up")
    assert worker.lines.issued[2:] == [Forgotten(id="file-a", at=WALL_START, provider="up")]
    worker.find("file-a")
    assert worker.heard == [{"file-a": (row("file-a", "up2"),)}]
    worker.issuers.deleted("file-a", "up2")
    worker.find("file-a")
    assert worker.asked == [(1, ["file-a"])]


def test_what_was_used_last_is_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    worker.issuers.made([("files", "file-a"), ("files", "file-b")], "up", "red")
    worker.find("file-a")
    worker.issuers.made([("files", "file-c")], "up", "red")
    worker.find("file-a", "file-c")
    assert worker.asked == []
    worker.find("file-b")
    assert worker.asked == [(1, ["file-b"])]
