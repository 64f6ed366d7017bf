"""`${NAME}`, `${NAME:-default}` and `${file:/path}` in a value; `$${` is a literal `${`.

As in a shell, `:-` also covers a variable that is set to nothing. One pass: what an expansion
yields is never expanded again, so a variable cannot smuggle a second one in. The sum of all
expansions of a load is bounded, because a short file could name a long variable ten thousand times.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_FILE: Final = 64 << 10
MAX_TOTAL: Final = 1 << 20

_PART = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class ExpandError(ValueError):
    """An expansion that cannot be done; the message names the variable or file, never a value."""


class ExpansionLimitError(ExpandError):
    """All expansions together are too large; there is no use in going on."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """The text, and the variable or `file:…` that gave it; `origin` None where nothing was expanded."""

    text: str
    origin: str | None


class Expander:
    """Expands the values of one load against one environment; remembers the files it read."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._files: dict[str, str] = {}
        self._total = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """The files read so far."""
        return tuple(map(Path, self._files))

    def expand(self, text: str) -> Expansion:
        """Raises ExpandError for an unset variable without default, an unreadable file, a stray `${`."""
        origin: str | None = None
        parts: list[str] = []
        end = 0
        for found in _PART.finditer(text):
            parts.append(text[end : found.start()])
            end = found.end()
            if found[0] == "$${":
                parts.append("${")
                continue
            value, source = self._value(found[1])
            origin = origin or source
            self._total += len(value)
            if self._total > MAX_TOTAL:
                raise ExpansionLimitError("the expansions of this file are larger than 1 MiB")
            parts.append(value)
        parts.append(text[end:])
        return Expansion("".join(parts), origin)

    def _value(self, inside: str | None) -> tuple[str, str]:
        if inside is not None and inside.startswith("file:"):
            return self._file(inside.removeprefix("file:")), inside
        name = _NAME.fullmatch(inside) if inside is not None else None
        if name is None:
            raise ExpandError("'${' must open ${NAME}, ${NAME:-default} or ${file:/path}; a literal one is '$${'")
        default = name[2]
        value = self._env.get(name[1])
        if value is None and default is None:
            raise ExpandError(f"{name[1]} is not set; ${{{name[1]}:-default}} would give it a default")
        return value or default or "", name[1]

    def _file(self, path: str) -> str:
        if path not in self._files:
            try:
                self._files[path] = read_text(path, MAX_FILE).removesuffix("\n").removesuffix("\r")
            except (OSError, ValueError) as error:
                raise ExpandError(f"{path}: {reason(error)}") from error
        return self._files[path]


def read_text(path: str | Path, limit: int) -> str:
    """A regular file of at most `limit` bytes of UTF-8. Never blocks: a pipe or a device is refused.

    Raises OSError, or ValueError that says what is wrong.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > limit:
            raise ValueError(f"larger than {limit >> 10} KiB")
        # Files under /proc claim to be empty, so the read itself is bounded as well.
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"larger than {limit >> 10} KiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
