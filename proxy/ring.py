"""One answer as it comes, for several who read it: its bytes from the beginning while they are few, then the latest.

    0 ────────────── base ═══════════ held ═══════════ end
                       ▲ nobody needs what is before     ▲ whoever keeps up stands here

Nobody waits for the slowest. A reader that is not at the end has a backlog, and no more than `most` bytes of it:
whoever falls off the ring is lost at once, and whoever stays more than `lag` bytes behind for `grace` seconds is lost
then. So the source is held up only while nobody at all keeps up (`flows`), and the ring is bounded whatever readers do.

From the first byte on, all is kept up to `prefix` bytes: so long somebody may still join, and the whole can be had.
When memory is scarce the ring gives that up early (`shrink`).

What is appended in one piece is read in whole pieces: where each ended at the end of an event, so does each reading.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX_BYTES: Final = 4 * 1024 * 1024
"""Kept from the beginning, and kept for those that are behind."""
LAG_BYTES: Final = 1024 * 1024
LAG_SECONDS: Final = 30.0
"""Who is further behind for as long is lost."""
_JOINED: Final = 4096
"""Pieces are put together up to this size: an event of thirty bytes would cost more than itself to keep."""


class Place:
    """How far one reader is. `stalled`: it takes nothing now; `lost`: it has missed something, or is too slow."""

    __slots__ = ("at", "lags_since", "lost", "stalled")

    def __init__(self) -> None:
        self.at = 0
        self.stalled = False
        self.lost = False
        self.lags_since: float | None = None
        """Since when it is too far behind."""


class Ring:
    """See above. Offsets are bytes from the beginning of the answer; `now` is monotonic seconds."""

    __slots__ = ("_ends", "_lag", "_most", "_pieces", "_prefix", "base", "end", "keeps", "lags", "places")

    def __init__(self, *, prefix: int = PREFIX_BYTES, most: int = PREFIX_BYTES, lag: int = LAG_BYTES) -> None:
        self._prefix = prefix
        self._most = most
        self._lag = lag
        self._pieces: list[bytes] = []
        self._ends: list[int] = []
        self.base = 0
        self.end = 0
        self.keeps = True
        """The beginning is still here: somebody may join."""
        self.places: list[Place] = []
        self.lags = False
        """Somebody has been too far behind since it was looked last."""

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Ring:
        """A whole answer, of any size."""
        ring = cls()
        ring._pieces = list(pieces)
        ring._ends = list(accumulate(map(len, pieces)))
        ring.end = ring._ends[-1] if pieces else 0
        return ring

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.end - self.base

    @property
    def flows(self) -> bool:
        """Somebody keeps up, so that the source may go on."""
        for place in self.places:  # noqa: SIM110 - a generator costs a frame for each look
            if not place.stalled:
                return True
        return False

    # -- readers

    def join(self) -> Place | None:
        """A new reader, at the beginning; None where that is gone."""
        if not self.keeps:
            return None
        place = Place()
        self.places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """It reads no more. Harmless when it is not here."""
        if place in self.places:
            self.places.remove(place)
            self._forget()

    def read(self, place: Place, most: int) -> bytes:
        """The next bytes for a reader, in whole pieces: as many as fit into `most`, and at least one. Empty at the
        end."""
        at = place.at
        first = bisect_right(self._ends, at)
        if first >= len(self._ends):
            return b""
        last = max(first + 1, bisect_right(self._ends, at + most))
        skipped = at - (self._ends[first - 1] if first else self.base)
        data = b"".join(self._pieces[first:last])
        if skipped:  # pieces were put together after it had read the first of them
            data = data[skipped:]
        place.at = at + len(data)
        if place.lags_since is not None and self.end - place.at <= self._lag:
            place.lags_since = None
        if not self.keeps:
            self._forget()
        return data

    def late(self, now: float, grace: float = LAG_SECONDS) -> list[Place]:
        """Readers that have been too far behind for too long; each is lost, and told once."""
        late = [place for place in self.places if place.lags_since is not None and now - place.lags_since >= grace]
        for place in late:
            self._lose(place)
        return late

    # -- the source

    def append(self, data: bytes, now: float) -> list[Place]:
        """More of the answer. Those that are lost by it; they have been taken out."""
        if not data:
            return []
        self.end += len(data)
        if self._pieces and len(self._pieces[-1]) + len(data) <= _JOINED:
            self._pieces[-1] += data
            self._ends[-1] = self.end
        else:
            self._pieces.append(data)
            self._ends.append(self.end)
        if self.keeps and self.end > self._prefix:
            self.keeps = False
        fallen: list[Place] = []
        for place in self.places:
            behind = self.end - place.at
            if behind > self._lag and place.stalled:
                if behind > self._most:
                    fallen.append(place)
                elif place.lags_since is None:
                    place.lags_since = now
                    self.lags = True
        for place in fallen:
            self._lose(place)
        if not self.keeps:
            self._forget()
        return fallen

    def close(self) -> None:
        """Nobody joins any more: what those that are here have read may go."""
        self.keeps = False
        self._forget()

    def shrink(self) -> list[Place]:
        """Memory is scarce: keep no more than those need who are a little behind. The others are lost."""
        far = [place for place in self.places if place.stalled and self.end - place.at > self._lag]
        self.close()
        for place in far:
            self._lose(place)
        return far

    def pieces(self) -> tuple[bytes, ...]:
        """The whole answer so far. Raises ValueError where its beginning is gone."""
        if not self.keeps:
            raise ValueError("the beginning is not kept")
        return tuple(self._pieces)

    # -- inside

    def _lose(self, place: Place) -> None:
        place.lost = True
        place.lags_since = None
        self.leave(place)

    def _forget(self) -> None:
        """Let go of what nobody needs."""
        if self.keeps:
            return
        needed = min([place.at for place in self.places], default=self.end)
        count = bisect_right(self._ends, needed)
        if count:
            self.base = self._ends[count - 1]
            del self._pieces[:count]
            del self._ends[:count]
