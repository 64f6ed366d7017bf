"""Bytes on their way from callbacks to one reader who awaits them.

What is not read yet is bounded by its writer: `put` says when to stop, and `on_room` when to go on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pieces:
    """One body. `error` is what kept it from being whole, `over` that nothing more comes."""

    __slots__ = ("_behind", "_changed", "_on_room", "_room", "_taken", "_waiting", "error", "over")

    def __init__(self, room: int, on_room: Callable[[], None]) -> None:
        self.over = False
        self.error: Exception | None = None
        self._room = room
        self._on_room = on_room
        self._behind = False
        self._taken: list[bytes] = []
        self._waiting = 0
        self._changed = asyncio.Event()

    def __bool__(self) -> bool:
        """Whether there is something to read."""
        return bool(self._taken)

    def put(self, data: bytes) -> bool:
        """Keep it; False when the reader is behind. What nobody will read is dropped."""
        if self.over:
            return True
        self._taken.append(data)
        self._waiting += len(data)
        self._behind = self._waiting > self._room
        self.wake()
        return not self._behind

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes; what is there can still be read."""
        if not self.over:
            self.over = True
            self.error = error
            self.wake()

    def drop(self, error: Exception) -> None:
        """Nobody reads on: let go of what is there. Whoever tries all the same gets `error`, unless all was read."""
        if self._taken or not self.over:
            self.over = True
            self.error = error
            self._taken.clear()
            self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    async def change(self) -> None:
        """Wait until something has happened since the last look. Cancellation leaves nothing behind."""
        self._changed.clear()
        await self._changed.wait()

    async def read(self) -> bytes | None:
        """All that is there, as soon as there is something; None at the end. Raises `error`."""
        while not self._taken and not self.over:
            await self.change()
        if not self._taken:
            if self.error is not None:
                raise self.error
            return None
        data = b"".join(self._taken)
        self._taken.clear()
        self._waiting = 0
        if self._behind and not self.over:
            self._behind = False
            self._on_room()
        return data
