"""Where the config comes from: a file and what the command line says over it.

Reading and parsing are apart, because a supervisor hands its workers the very text it has checked: a worker that is
replaced while a bad file lies on the disk still starts under the last good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...config import ConfigError, GatewayConfig, Problem, parse_config

if TYPE_CHECKING:
    import os

DEFAULTS = "defaults"


class ConfigSource:
    """`path` None stands for an empty file. `workers` overrides the file."""

    def __init__(self, path: str | os.PathLike[str] | None, workers: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.workers = workers

    def read(self) -> str:
        """The text of the file. Raises ConfigError."""
        if self.path is None:
            return ""
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise ConfigError([Problem(str(self.path), 0, 0, "", str(reason))]) from None

    def parse(self, text: str) -> GatewayConfig:
        """A text as the config it means. Raises ConfigError."""
        config = parse_config(text, name=DEFAULTS if self.path is None else str(self.path))
        changes: dict[str, object] = {}
        if self.path is not None:
            changes["files"] = (self.path, *config.files)
        if self.workers is not None:
            changes["workers"] = self.workers
        return config.model_copy(update=changes) if changes else config

    def load(self) -> GatewayConfig:
        """Read and parse."""
        return self.parse(self.read())
