"""Where the config comes from: a file and what the command line says over it.

Reading and parsing are apart, because a supervisor hands its workers the very text it has checked: a worker that is
replaced while a bad file lies on the disk still starts under the last good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...config import ConfigError, GatewayConfig, Problem, parse_config
from ...config.expand import read_text, reason
from ...config.yaml_nodes import MAX_BYTES
from .file_watch import Marks, marks

if TYPE_CHECKING:
    import os


class Loaded(NamedTuple):
    """A text, what it means, and what the files that it names were like when they were read."""

    text: str
    config: GatewayConfig
    marks: Marks


class ConfigSource:
    """`path` None stands for an empty file. `workers` overrides the file."""

    def __init__(self, path: str | os.PathLike[str] | None, workers: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.workers = workers

    @property
    def name(self) -> str:
        """What stands for the file in problems."""
        return "defaults" if self.path is None else str(self.path)

    def read(self) -> str:
        """The text of the file. Raises ConfigError."""
        if self.path is None:
            return ""
        try:
            return read_text(self.path, MAX_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError([Problem(self.name, 0, 0, "", reason(error))]) from None

    def parse(self, text: str) -> GatewayConfig:
        """A text as the config it means. Raises ConfigError."""
        config = parse_config(text, name=self.name)
        changes: dict[str, object] = {}
        if self.path is not None:
            changes["files"] = (self.path, *config.files)
        if self.workers is not None:
            changes["workers"] = self.workers
        return config.model_copy(update=changes) if changes else config

    def load(self) -> GatewayConfig:
        """Read and parse."""
        return self.loaded().config

    def loaded(self, text: str | None = None) -> Loaded:
        """Parse, and read before that unless a text is given. Raises ConfigError."""
        text = self.read() if text is None else text
        config = self.parse(text)
        return Loaded(text, config, marks(path for path in config.files if path != self.path))
