"""One turn of the ledger: from the spools into the store, and what is done with goes.

Nothing is remembered between turns but the open store: how far a segment is taken over stands in the store, whether a
worker lives is asked of the kernel. So a turn may end anywhere, by kill -9 too, and the next one goes on.

A segment goes when it is sealed and its last byte is in the store. A spool goes when its lock is free: to its end
first, then its open exchanges become `lost`, then its lock file. The lock is held meanwhile, and the files are listed
again under it: a worker may have begun another segment before it died.

Several gateways may share one store and one spool directory. Whoever holds the lock files of both tails for all of
them. The directory has one of its own because two stores fed from one directory would each get a part of its records.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .issuers import IssuerTable
from .spools import SpoolFiles, list_spools, measure_spools, read_batch, take_lock
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .spending import Alert, Of, Threshold

TAILER_LOCK: Final = ".tailer.lock"


class Ingest:
    """Takes over the spools in `directory`. Every method blocks; use it from one thread at a time."""

    def __init__(
        self, store: str | os.PathLike[str], directory: str | os.PathLike[str], *, wall: Callable[[], float]
    ) -> None:
        self._path = Path(store)
        self._directory = Path(directory)
        self._wall = wall
        self._store: Store | None = None
        self._inode = 0
        self._locks: list[int] = []
        self.elsewhere = False
        """Another gateway takes the records of this directory into a store of its own."""
        self.thresholds: Mapping[Of, Threshold] = {}
        """At which totals there are alerts; replaced whole."""
        self.rows = 0
        self.lost = 0
        self.dead_letters = 0

    @property
    def holder(self) -> bool:
        """Whether this gateway tails, and no other that shares the store."""
        return bool(self._locks)

    def step(self) -> bool:
        """Take at most one bite of each spool; True when there may be more.

        Raises sqlite3.Error, OSError or SchemaError when the store or the spool cannot be used; then it lets go of the
        store, and the next step opens it again.
        """
        try:
            store = self._open()
            if store is None:
                return False
            store.spending.thresholds = self.thresholds
            more = [self._take(store, spool) for spool in list_spools(self._directory)]
        except BaseException:
            self._let_go_of_store()
            raise
        return any(more)

    def trim(self, retention: float, max_size: int) -> int:
        """Keep the store within its bounds; returns how many rows went. Only the holder trims."""
        return self._store.trim(retention, max_size) if self._store is not None else 0

    def measure(self) -> Callable[[], bool]:
        """Looks at the spools as they are now; what it returns says whether the store still lacks some of it."""
        ends, reader = measure_spools(self._directory), IssuerTable(self._path)

        def lacks() -> bool:
            try:
                return reader.lacks(ends)
            finally:
                reader.close()

        return lacks

    def spent(self, wanted: Sequence[tuple[Of, str]]) -> list[dict[str, int]]:
        """What is charged by now, whoever tails: see `read_spent`."""
        if self._store is not None:
            return self._store.spent(wanted)
        store = Store(self._path, wall=self._wall)
        try:
            return store.spent(wanted)
        finally:
            store.close()

    def take_alerts(self) -> list[Alert]:
        """Alerts since the last time."""
        if self._store is None:
            return []
        alerts, self._store.spending.alerts = self._store.spending.alerts, []
        return alerts

    def close(self) -> None:
        """Let go of the store and of the locks."""
        self._let_go_of_store()
        self._let_go_of_locks()

    def _open(self) -> Store | None:
        """The store; None while another gateway holds one of the locks."""
        if not self._locks and not self._take_locks():
            return None
        if self._store is not None and not self._is_the_file():
            # Moved or deleted: what is written to it now, nobody will find.
            self._let_go_of_store()
        if self._store is None:
            self._store = Store(self._path, wall=self._wall)
            self._inode = self._path.stat().st_ino
            self._store.spending.thresholds = self.thresholds
            self._settle(self._store)
        return self._store

    def _take_locks(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.elsewhere = False
        try:
            for path in (self._path.with_name(f"{self._path.name}.lock"), self._directory / TAILER_LOCK):
                if (lock := take_lock(path)) is None:
                    self.elsewhere = bool(self._locks)  # who shares the store, too, holds its lock as well
                    self._let_go_of_locks()
                    return False
                self._locks.append(lock)
        except OSError:
            self._let_go_of_locks()
            raise
        return True

    def _let_go_of_locks(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _is_the_file(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _let_go_of_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _settle(self, store: Store) -> None:
        """What a crash or a helping hand left behind: offsets and open exchanges of spools that are no more."""
        spools = list_spools(self._directory)
        for gone in store.open_spools() - {spool.name for spool in spools}:
            self._lose(store, gone)
        store.forget_segments(store.segments() - {segment.name for spool in spools for segment in spool.segments})

    def _take(self, store: Store, spool: SpoolFiles) -> bool:
        lock = take_lock(spool.lock)
        if lock is None:
            return self._read(store, spool, dead=False)
        try:
            listed = (files for files in list_spools(self._directory) if files.name == spool.name)
            if self._read(store, next(listed), dead=True):
                return True
            self._lose(store, spool.name)
            spool.lock.unlink(missing_ok=True)
        finally:
            os.close(lock)
        return False

    def _read(self, store: Store, spool: SpoolFiles, *, dead: bool) -> bool:
        """Apply the next batch; False when all that is complete has been applied."""
        for place, segment in enumerate(spool.segments, 1):
            sealed = dead or place < len(spool.segments)
            batch = read_batch(spool.name, segment, store.position(segment.name), final=sealed)
            if batch is not None:
                self.dead_letters += store.apply(batch)
                self.rows += len(batch.done)
                return True
            if sealed:
                segment.unlink(missing_ok=True)
                store.forget_segments({segment.name})
        return False

    def _lose(self, store: Store, spool: str) -> None:
        while count := store.lose(spool):
            self.lost += count
