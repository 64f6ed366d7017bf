"""Lines to a file, from a thread: who has a line to write never waits for a disk, a pipe or a full queue.

`put` is called on the event loop and takes a place in a bounded queue, or says that there is none. One thread takes the
lines out and appends them, many in one write; it starts with the first line. It is woken by a line that finds the queue
empty, and gives others a moment to follow: a thread that woke for each would cost more than all else there is to do for
a line. Before each write it looks whether the file still stands under its name, so a file that was moved away (log
rotation) is opened anew, with or without a signal; several processes may append to one file.

An error of the file loses the lines at hand, which is counted, and the next lines try again. A line that is cut by a
full disk is ended before the next one.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STDOUT = 1
BATCH = 256
"""Lines in one write."""
LINGER_SECONDS = 0.05
"""How long a line waits for others, unless they are enough before."""
CLOSE_SECONDS = 1.0
"""How long the last lines may take; a process has two for its last words."""


class LineWriter:
    """Appends to `path`, or to standard output. `capacity`: lines that may wait. `lost` counts those that could not be
    written. Not fork-safe once it has begun."""

    def __init__(self, path: Path | None, capacity: int) -> None:
        self.lost = 0
        self._path = path
        self._capacity = capacity
        self._enough = max(1, min(BATCH, capacity // 2))
        """Lines that are worth a write at once."""
        self._marks = frozenset((1, self._enough))
        """The last of so many that wait wakes the thread."""
        self._lines: deque[bytes] = deque()
        self._begun: SimpleQueue[None] = SimpleQueue()
        """The queue was empty, and is no more. A mark may be set by a finalizer in the midst of anything: this kind of
        queue allows for that, an Event does not."""
        self._hurry: SimpleQueue[None] = SimpleQueue()
        """There are enough, or there will be no more."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._fd = -1
        self._torn = False

    def put(self, line: bytes) -> bool:
        """Have `line`, with its line end, written; False where the queue is full, or closed. Never waits."""
        lines = self._lines
        if len(lines) >= self._capacity:
            return False
        lines.append(line)
        waiting = len(lines)  # with this one: the thread may have taken out all that were before it
        if waiting in self._marks:
            self._wake(waiting)
        return True

    def _wake(self, waiting: int) -> None:
        if waiting == 1:
            self._begun.put(None)
        if waiting == self._enough:
            self._hurry.put(None)
        if self._thread is None:
            # A daemon: a pipe that nobody reads must not keep the process. At exit, `close` waits for it a while.
            self._thread = threading.Thread(target=self._run, name="headgate-line-writer", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def end(self) -> None:
        """Take no more lines; the thread writes those that wait and lets go of the file. Never waits."""
        if not self._closed:
            self._closed = True
            self._capacity = 0
            self._begun.put(None)
            self._hurry.put(None)

    def close(self) -> None:
        """`end`, and wait for the thread, for at most CLOSE_SECONDS. Harmless when repeated."""
        self.end()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        """The thread: until no more lines are taken, and those that were are written.

        Both marks are taken back before the queue is emptied, so a line that came too late to set one is written with
        those that did."""
        lines, going = self._lines, True
        while going:
            self._begun.get()
            if len(lines) < self._enough:
                with suppress(Empty):  # these are all, for now
                    self._hurry.get(timeout=LINGER_SECONDS)
            for marks in (self._begun, self._hurry):
                while not marks.empty():
                    marks.get_nowait()
            going = not self._closed
            while lines:
                self._write([lines.popleft() for _ in range(min(len(lines), BATCH))])
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        atexit.unregister(self.close)

    def _write(self, lines: list[bytes]) -> None:
        data = (b"\n" if self._torn else b"") + b"".join(lines)
        done = 0
        try:
            fd = self._file()
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError:
            written = data[:done].count(b"\n") - (1 if self._torn and done else 0)
            self.lost += len(lines) - written
            self._torn = (self._torn and not done) or (done > 0 and data[done - 1 : done] != b"\n")
        else:
            self._torn = False

    def _file(self) -> int:
        """The descriptor to write to. Raises OSError."""
        if self._path is None:
            return STDOUT
        if self._fd >= 0 and not self._is_in_place():
            os.close(self._fd)
            self._fd = -1
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._torn = False
        return self._fd

    def _is_in_place(self) -> bool:
        assert self._path is not None  # noqa: S101 - narrows for the type checker: only a file has a place
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))
