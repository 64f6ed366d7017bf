"""Meters in memory that the workers of one host share: exact over all of them, without a server.

The memory is a file without a name that the supervisor makes and every worker maps. A decision is made under one lock
on it, by the kernel's open-file-description locks, so a worker that is killed holds nothing; each worker opens the file
for itself, for a lock belongs to an opening. Whoever does not get the lock within its tries is not made to wait longer:
the call is refused with 503, never let in uncounted.

What a killed worker leaves is never less than what it let in. A meter has two copies of its state and one byte that
says which holds; the other is written first, so a write is seen whole or not at all. Tokens count as used from the
start and are corrected at the end: of a dead worker's calls the estimate stays. Slots are counted apart for each
process, in a cell that it alone writes; the supervisor clears the cells of a dead one.

There is room for `RECORDS` meters, found by a digest of name, rule and caller. One is given to another caller only when
it is as good as new. Where there is no room among the `PROBE` places of a caller, newcomers share the meter of the rule
(see memory.py), until that one is as good as new.

Not here: the arithmetic (meters.py), which process has which cells (`Berths`, of the supervisor's).
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from hashlib import blake2b
from mmap import mmap
from struct import Struct
from time import sleep  # noqa: TID251 - it must stop the loop: nobody may come between a lock and its call
from typing import TYPE_CHECKING, Final, NamedTuple

from ...proxy.errors import OverloadError
from .meters import Debt, Slots, Window
from .rules import AMOUNTS, Granted, Refused, Rule, report_of, tightest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .meters import Meter
    from .rules import Kind

RECORDS: Final = 65_536
OTHERS: Final = 1_024
"""Of these records: for the meters that newcomers of one rule share."""
PROBE: Final = 32
YIELDS: Final = 200
NAPS: Final = 100
NAP_SECONDS: Final = 0.0005
"""Tries for the lock: it is held for some 20 µs, so most callers get it after a few yields. Where its holder has lost
its core, only sleep gives it back; after 50 ms its holder stands still for another reason."""
MOST_UNSETTLED: Final = 10_000
"""Calls whose tokens could not be corrected yet, because the lock was not to be had. Of what is more the estimate
stays."""
MOST: Final = 2**63 - 1
"""What a record can hold."""

_HEADER: Final = 64
_KEY: Final = 16
_RECORD: Final = _KEY + 8 + 2 * 32
_CELL: Final = 4
_STATE: Final = Struct("<4q")
_COUNTS: Final = Struct("<2q")
_CELLS: Final = Struct("<I")
_FREE: Final = bytes(_KEY)
_GONE: Final = b"\xff" * _KEY
_SLOTS: Final = -1
_LOCK: Final = Struct("hh4xqqi4x").pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_UNLOCK: Final = Struct("hh4xqqi4x").pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


class SharedMemory:
    """One opening of the file. `processes`: how many there is room for, at one time."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.map = mmap(file, os.fstat(file).st_size)
        self.processes = _COUNTS.unpack_from(self.map, 8)[0]
        self._tries = YIELDS + NAPS

    @classmethod
    def create(cls, processes: int) -> SharedMemory:
        """New and empty. Raises OSError."""
        file = os.memfd_create("headgate-limits", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, _HEADER + RECORDS * (_RECORD + processes * _CELL))
            os.pwrite(file, _COUNTS.pack(processes, 1), 8)
            return cls(file)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def attach(cls, file: int) -> SharedMemory:
        """An opening of its own of a file that somebody else has opened. Raises OSError."""
        own = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(own)
        except BaseException:
            os.close(own)
            raise

    def close(self) -> None:
        """Unmap it; a lock is gone with it."""
        self.map.close()
        os.close(self.file)

    # -- the lock

    def lock(self) -> bool:
        """Whether it was to be had. After a failure only one try is made, until it is to be had again: whoever holds it
        then stands still."""
        for tried in range(self._tries):
            try:
                fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, _LOCK)
            except (BlockingIOError, PermissionError):
                if tried < YIELDS:
                    os.sched_yield()
                else:
                    sleep(NAP_SECONDS)
            else:
                self._tries = YIELDS + NAPS
                return True
        self._tries = 1
        return False

    def unlock(self) -> None:
        """Let others have it."""
        fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, _UNLOCK)

    # -- records, under the lock

    def find(self, key: bytes, others: bytes, taken: Sequence[int], now: int) -> int:
        """Where the meter of `key` is; or a record for it that is as good as new and not among `taken`; or that of
        `others`."""
        start = int.from_bytes(key[:4], "little") % (RECORDS - OTHERS)
        room = -1
        for step in range(PROBE):
            at = OTHERS + (start + step) % (RECORDS - OTHERS)
            found = self.key(at)
            if found == key:
                return at
            if room < 0 and at not in taken and self._is_idle(at, found, now):
                room = at
            if found == _FREE:
                break
        shared = self._find_others(others, now)
        if room >= 0 and (self.key(shared) != others or self._is_idle(shared, others, now)):
            return room
        return shared

    def _find_others(self, key: bytes, now: int) -> int:
        start = int.from_bytes(key[:4], "little") % OTHERS
        room = -1
        for step in range(OTHERS):
            at = (start + step) % OTHERS
            found = self.key(at)
            if found == key:
                return at
            if room < 0 and self._is_idle(at, found, now):
                room = at
            if found == _FREE:
                break
        if room < 0:
            raise OverloadError("The gateway has more limits than it has room to count.", retry_after=60)
        return room

    def key(self, at: int) -> bytes:
        """Whose record it is."""
        offset = _HEADER + at * _RECORD
        return self.map[offset : offset + _KEY]

    def _is_idle(self, at: int, key: bytes, now: int) -> bool:
        if key == _FREE:
            return True
        until = self._load(at)[3]
        return not self.slots(at) if until == _SLOTS else now >= until

    def _load(self, at: int) -> tuple[int, int, int, int]:
        offset = _HEADER + at * _RECORD + _KEY
        state: tuple[int, int, int, int] = _STATE.unpack_from(self.map, offset + 8 + 32 * self.map[offset])
        return state

    def meter(self, at: int, key: bytes, rule: Rule) -> Meter:
        """The meter of `key` there, or a new one."""
        meter = rule.kind.meter()
        if self.key(at) == key:
            first, second, third, _ = self._load(at)
            if isinstance(meter, Window):
                meter.opened, meter.used = first, second
            elif isinstance(meter, Debt):
                meter.at, meter.owed = first, second * meter.length + third
            elif isinstance(meter, Slots):
                meter.used = self.slots(at)
        return meter

    def save(self, at: int, key: bytes, meter: Meter, limit: int) -> None:
        """Write it whole or, if this process is killed, not at all."""
        if isinstance(meter, Window):
            state = (meter.opened, meter.used, 0, meter.opened + meter.length)
        elif isinstance(meter, Debt):
            whole, part = divmod(meter.owed, meter.length)
            state = (meter.at, whole, part, meter.at + meter.resets(limit, meter.at))
        else:
            state = (0, 0, 0, _SLOTS)
        memory, offset = self.map, _HEADER + at * _RECORD
        is_new = memory[offset : offset + _KEY] != key
        if is_new:
            memory[offset : offset + _KEY] = _GONE
        other = 1 - memory[offset + _KEY]
        _STATE.pack_into(memory, offset + _KEY + 8 + 32 * other, *state)
        memory[offset + _KEY] = other
        if is_new:
            memory[offset : offset + _KEY] = key

    # -- cells

    def slots(self, at: int) -> int:
        """Held by all processes."""
        memory, offset = self.map, _HEADER + RECORDS * _RECORD + at * _CELL
        used = _COUNTS.unpack_from(memory, 8)[1]
        if used == 1:
            return int(_CELLS.unpack_from(memory, offset)[0])
        return sum([_CELLS.unpack_from(memory, offset + n * RECORDS * _CELL)[0] for n in range(used)])

    def hold(self, at: int, process: int, change: int) -> None:
        """A slot more or less for a process: this one, which alone may call it."""
        offset = _HEADER + RECORDS * (_RECORD + process * _CELL) + at * _CELL
        _CELLS.pack_into(self.map, offset, _CELLS.unpack_from(self.map, offset)[0] + change)

    def clear(self, process: int) -> None:
        """Give back every slot of a process that is no more."""
        offset = _HEADER + RECORDS * (_RECORD + process * _CELL)
        self.map[offset : offset + RECORDS * _CELL] = bytes(RECORDS * _CELL)

    def expect(self, process: int) -> None:
        """From now on that one has cells that count."""
        processes, used = _COUNTS.unpack_from(self.map, 8)
        _COUNTS.pack_into(self.map, 8, processes, max(used, process + 1))


class Berths:
    """Which process of a supervisor has which cells."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self._free = set(range(memory.processes))

    def take(self) -> int:
        """The lowest that is free. Raises OSError when there is none."""
        if not self._free:
            raise OSError("there are as many processes as shared memory was made for")
        process = min(self._free)
        self._free.discard(process)
        self.memory.expect(process)
        return process

    def leave(self, process: int) -> None:
        """Its process has ended, by whatever way."""
        self.memory.clear(process)
        self._free.add(process)


class Hold(NamedTuple):
    """What a call has taken and must give back or settle."""

    at: int
    key: bytes
    rule: Rule
    stamp: int
    taken: int


class SharedLimits:
    """The rules of one filter, counted in shared memory by one process."""

    __slots__ = ("_memory", "_places", "_process", "_unsettled", "crowded")

    def __init__(self, memory: SharedMemory, process: int, name: str, rules: Sequence[Rule]) -> None:
        self._memory = memory
        self._process = process
        self._places = [(rule, prefix := f"{name}\0{rule.kind}\0".encode(), _digest(prefix)) for rule in rules]
        self._unsettled: deque[tuple[Hold, int]] = deque(maxlen=MOST_UNSETTLED)
        self.crowded = 0

    def take(self, keys: Sequence[str], tokens: int, now: int) -> Granted[Hold] | Refused:
        """See `Limits`. Raises OverloadError where the lock was not to be had."""
        digests = [_digest(prefix + key.encode()) for (_, prefix, _), key in zip(self._places, keys, strict=True)]
        memory = self._memory
        if not memory.lock():
            raise OverloadError("The gateway could not count this request in time. Try again.", retry_after=1)
        try:
            while self._unsettled:
                self._settle(*self._unsettled.popleft(), now)
            return self._take(digests, tokens, now)
        finally:
            memory.unlock()

    def _take(self, digests: list[bytes], tokens: int, now: int) -> Granted[Hold] | Refused:
        memory = self._memory
        refused: Refused | None = None
        found: list[int] = []
        meters: list[tuple[bytes, Meter]] = []
        for (rule, _, others), digest in zip(self._places, digests, strict=True):
            at = memory.find(digest, others, found, now)
            key = others if at < OTHERS else digest
            meter = memory.meter(at, key, rule)
            found.append(at)
            meters.append((key, meter))
            wait = meter.wait(rule.limit, tokens if rule.kind.what in AMOUNTS else 1, now)
            if wait and (refused is None or wait > refused.wait):
                refused = Refused(rule, wait, report_of(rule, meter, now))
        if refused is not None:
            return refused
        granted: Granted[Hold] = Granted()
        for (rule, _, _), at, (key, meter) in zip(self._places, found, meters, strict=True):
            limit, what = rule.limit, rule.kind.what
            self.crowded += at < OTHERS
            amount = tokens if what in AMOUNTS else 1
            stamp = meter.take(limit, amount, now)
            if what != "concurrent" or memory.key(at) != key:
                memory.save(at, key, meter, limit)
            if what == "requests":
                granted.requests = tightest(granted.requests, report_of(rule, meter, now))
                continue
            granted.holds.append(Hold(at, key, rule, stamp, amount))
            if what == "concurrent":
                memory.hold(at, self._process, 1)
            elif what == "tokens":
                granted.tokens = tightest(granted.tokens, report_of(rule, meter, now))
        return granted

    def settle(self, granted: Granted[Hold], tokens: int, now: int) -> None:
        """See `Limits`. Slots are given back at once; tokens as soon as the lock is to be had."""
        for hold in granted.holds:
            if hold.rule.kind.what == "concurrent":
                self._memory.hold(hold.at, self._process, -1)
            elif tokens != hold.taken:
                self._unsettled.append((hold, tokens))
        if self._unsettled and self._memory.lock():
            try:
                while self._unsettled:
                    self._settle(*self._unsettled.popleft(), now)
            finally:
                self._memory.unlock()

    def _settle(self, hold: Hold, tokens: int, now: int) -> None:
        memory, rule = self._memory, hold.rule
        if memory.key(hold.at) == hold.key:
            meter = memory.meter(hold.at, hold.key, rule)
            meter.settle(rule.limit, hold.stamp, hold.taken, tokens, now)
            memory.save(hold.at, hold.key, meter, rule.limit)


class SharedStore:
    """Opens limits that `process` counts together with the others."""

    def __init__(self, memory: SharedMemory, process: int = 0) -> None:
        self._memory = memory
        self._process = process
        self._restored: set[tuple[str, Kind]] = set()

    def open(self, name: str, rules: Sequence[Rule]) -> SharedLimits:
        """The limits of the filter `name`, with what is already counted under that name."""
        return SharedLimits(self._memory, self._process, name, rules)

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """Once for each name and kind: this memory forgets nothing, whatever config comes and goes. Raises
        OverloadError where the lock was not to be had."""
        if (name, kind) in self._restored:
            return
        self._restored.add((name, kind))
        limits = SharedLimits(self._memory, self._process, name, [Rule(kind, MOST)])
        for key, amount in spent.items():
            limits.take([key], amount, now)

    def close(self) -> None:
        """This process counts no more."""
        self._memory.close()


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=_KEY).digest()
