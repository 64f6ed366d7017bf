"""Notices that the keys in a `keys_file` have changed, so that a key that is revoked is refused within seconds.

The file is replaced whole, so one look that finds another is enough. What is found at the first look counts as changed,
too: it may have come after the file was read.

Not here: what else a config names (file_watch.py), and the reading itself, which each process does for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from anyio import to_thread

from ...config import ConfigError
from ...filters.keys_file import pepper_path
from .file_watch import Marks, marks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ...config import GatewayConfig
    from ...proxy.clock import Clock

LOOK_SECONDS = 1.0
log = structlog.get_logger("headgate")


class KeyWatch:
    """Tells `changed` of each change, until that has taken it over; it raises ConfigError when it cannot."""

    def __init__(self, clock: Clock, changed: Callable[[], Awaitable[None]]) -> None:
        self._clock = clock
        self._changed = changed
        self._files: tuple[Path, ...] = ()
        self._known: Marks | None = None
        self._said: str | None = None

    def follow(self, config: GatewayConfig) -> None:
        """Look at the files of this config from now on."""
        auth = config.auth
        file = auth.keys_file if auth is not None else None
        self._files = (file, pepper_path(file)) if file is not None else ()
        self._known = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            if self._files:
                try:
                    await self.look()
                except Exception as error:  # a bug, which must not be the end of looking
                    log.error("keys_not_read", exc_info=error)
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Once. What is refused is logged once, and tried again at the next look."""
        files = self._files
        found = await to_thread.run_sync(marks, files)
        if found == self._known:
            return
        try:
            await self._changed()
        except ConfigError as error:
            if self._said != str(error):
                self._said = str(error)
                for problem in error.problems:
                    log.error("keys_refused", problem=str(problem))
            return
        self._said = None
        if self._files == files:
            self._known = found
