"""spools: a line counts once its line end is there, and every line that is no record has its reason."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from headgate.control.events.spools import BITE_BYTES, list_spools, read_batch, take_lock
from headgate.control.events.store import Store
from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

A, B = encode(Opened(id="a", at=1.0)), encode(Opened(id="b", at=1.0))
DONE_A = encode(Done(id="a", at=1.0))
POISON = [
    b"garbage",
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"true",
    b"1",
    b'"text"',
    b"[]",
    b"{}",
    b"{",
    b'{"event":"done"',
    b'{"event":"done"}',
    b'{"event":"opened"}',
    b'{"event":"closed","id":"x","at":1}',
    b'{"event":null,"id":"x","at":1}',
    b'{"event":1,"id":"x","at":1}',
    b'{"id":"x","at":1}',
    b'{"event":"done","id":"","at":1}',
    b'{"event":"done","id":null,"at":1}',
    b'{"event":"done","id":7,"at":1}',
    b'{"event":"done","id":["x"],"at":1}',
    b'{"event":"done","id":"x","at":null}',
    b'{"event":"done","id":"x","at":"1"}',
    b'{"event":"done","id":"x","at":-1}',
    b'{"event":"done","id":"x","at":1e18}',
    b'{"event":"done","id":"x","at":1e999}',
    b'{"event":"done","id":"x","at":NaN}',
    b'{"event":"done","id":"x","at":Infinity}',
    b'{"event":"done","id":"x","at":1,}',
    b'{"event":"done","id":"x","at":1}}',
    b'{"event":"done","id":"x","at":1}{"event":"done","id":"y","at":1}',
    b'{"event":"done","id":"x","at":1,"outcome":"splendid"}',
    b'{"event":"done","id":"x","at":1,"usage_source":"guessed"}',
    b'{"event":"done","id":"x","at":1,"model":null}',
    b'{"event":"done","id":"x","at":1,"model":{"a":1}}',
    b'{"event":"done","id":"x","at":1,"model":"\\ud800"}',
    b'{"event":"done","id":"x","at":1,"model":"\xed\xa0\x80"}',
    b'{"event":"done","id":"x","at":1,"model":"\xff"}',
    b'{"event":"done","id":"x","at":1,"model":"\x01"}',
    b'{"event":"done","id":"x","at":1,"model":"\\x"}',
    b'{"event":"done","id":"x","at":1,"stream":"yes"}',
    b'{"event":"done","id":"x","at":1,"stream":2}',
    b'{"event":"done","id":"x","at":1,"prompt_tokens":1.5}',
    b'{"event":"done","id":"x","at":1,"prompt_tokens":"1"}',
    b'{"event":"done","id":"x","at":1,"prompt_tokens":1e400}',
    b'{"event":"done","id":"x","at":1,"cost_usd":"0.1"}',
    b'{"event":"done","id":"x","at":1,"cost_usd":[]}',
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"event":"opened","id":"x","at":1,"est_prompt":"many"}',
    b'{"event":"done","id":"x","at":1,"id":',
]


def segment(tmp_path: Path, data: bytes) -> Path:
    place = tmp_path / "w0-000000000000.00000001.seg"
    place.write_bytes(data)
    return place


def test_lines_are_sorted_into_what_they_are(tmp_path: Path) -> None:
    data = A + B + DONE_A + b"garbage\n" + encode(Done(id="c", at=1.0))
    batch = read_batch("w0", segment(tmp_path, data), 0, final=False)
    assert batch is not None
    assert [row.id for row in batch.done] == ["a", "c"]
    assert batch.opened == {"b": B[:-1]}
    assert batch.closed == ["c"]  # `a` was opened and closed within the bite
    assert [line for _, line in batch.dead] == [b"garbage"]
    assert batch.position == len(data)


def test_half_a_line_waits_while_somebody_may_write_the_rest(tmp_path: Path) -> None:
    place = segment(tmp_path, A + B[:10])
    batch = read_batch("w0", place, 0, final=False)
    assert batch is not None
    assert (batch.position, list(batch.opened)) == (len(A), ["a"])
    assert read_batch("w0", place, batch.position, final=False) is None
    place.write_bytes(A + B)
    batch = read_batch("w0", place, batch.position, final=False)
    assert batch is not None
    assert list(batch.opened) == ["b"]


@pytest.mark.parametrize("cut", range(1, len(B)))
def test_half_a_line_that_nobody_will_end_is_what_it_is(tmp_path: Path, cut: int) -> None:
    place = segment(tmp_path, A + B[:cut])
    batch = read_batch("w0", place, len(A), final=True)
    assert batch is not None
    assert batch.position == len(A) + cut
    if cut == len(B) - 1:
        assert list(batch.opened) == ["b"]  # all but its line end
    else:
        assert [line for _, line in batch.dead] == [B[:cut]]
    assert read_batch("w0", place, batch.position, final=True) is None


def test_empty_lines_are_nothing(tmp_path: Path) -> None:
    batch = read_batch("w0", segment(tmp_path, b"\n\n" + A + b"\n"), 0, final=False)
    assert batch is not None
    assert (list(batch.opened), batch.dead) == (["a"], [])


def test_a_bite_is_bounded_and_ends_at_a_line(tmp_path: Path) -> None:
    count = 3 * BITE_BYTES // len(DONE_A)
    place = segment(tmp_path, DONE_A * count)
    position = seen = 0
    while batch := read_batch("w0", place, position, final=False):
        assert batch.position - position <= BITE_BYTES
        seen += len(batch.done)
        position = batch.position
    assert seen == count


def test_a_line_longer_than_any_record_is_taken_away_in_pieces(tmp_path: Path) -> None:
    place = segment(tmp_path, b"x" * (2 * BITE_BYTES + 5) + b"\n" + A)
    position, dead, opened = 0, 0, 0
    while batch := read_batch("w0", place, position, final=False):
        position, dead, opened = batch.position, dead + len(batch.dead), opened + len(batch.opened)
    assert (position, dead, opened) == (place.stat().st_size, 3, 1)


@pytest.mark.parametrize("line", POISON, ids=range(len(POISON)))
def test_poison_is_a_dead_letter_and_its_neighbours_are_rows(tmp_path: Path, line: bytes) -> None:
    assert len(POISON) >= 50
    batch = read_batch("w0", segment(tmp_path, A + line + b"\n" + DONE_A), 0, final=False)
    assert batch is not None
    assert [row.id for row in batch.done] == ["a"]
    ((reason, kept),) = batch.dead
    assert reason
    assert kept == line


def test_of_five_hundred_lines_with_one_poisoned_all_others_are_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "events.db", wall=lambda: 1.0)
    for kind, poison in enumerate(POISON):
        lines = [encode(Done(id=f"{kind}-{number}", at=1.0)) for number in range(499)]
        lines.insert(250, poison + b"\n")
        batch = read_batch("w0", segment(tmp_path, b"".join(lines)), 0, final=False)
        assert batch is not None
        assert store.apply(batch) == 1
    store.close()
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM usage").fetchone() == (499 * len(POISON),)
        assert db.execute("SELECT COUNT(*) FROM dead_letters WHERE reason != ''").fetchone() == (len(POISON),)


def test_spools_are_listed_with_their_segments_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w0", max_size=100 * len(A), segment_size=1, monotonic=lambda: 0.0)
    for _ in range(12):
        spool.append(A)
    for name in ("notes.txt", ".w1-000000000000", "w1-00.lock", "w2-000000000000.1.seg", "w3-00000000000g.lock"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "w4-000000000000.00000001.seg").write_bytes(A)
    first, second = sorted(list_spools(tmp_path), key=lambda files: files.name)
    assert (first.name, len(first.segments)) == (spool.name, 12)
    assert first.segments == sorted(first.segments)
    assert (second.name, second.lock.exists()) == ("w4-000000000000", False)
    spool.close()


def test_no_directory_is_no_spools(tmp_path: Path) -> None:
    assert list_spools(tmp_path / "nowhere") == []


def test_the_lock_of_a_living_worker_cannot_be_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w0", max_size=1000, monotonic=lambda: 0.0)
    lock = tmp_path / f"{spool.name}.lock"
    assert take_lock(lock) is None
    spool.close()
    taken = take_lock(lock)
    assert taken is not None
    assert take_lock(lock) is None
    os.close(taken)


def test_a_kernel_without_locks_is_an_error_and_not_a_dead_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        take_lock(tmp_path / "w0-000000000000.lock")
