"""What is wrong with a configuration, and where.

Every check adds to one `Report` and nothing stops at the first mistake, so that an operator
repairs a file in one round. Messages name keys and places but never echo a value: a value may be
a secret that stands in the wrong line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

MAX_PROBLEMS = 100
"""More than these help nobody, and a hostile file could make millions of them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` and `column` count from 1; 0 where the file as a whole is meant; `file` is empty where
    it is not known."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(Exception):
    """The configuration is refused; carries every problem with its place. Boot and reload only."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def in_file(self, name: str) -> "ConfigError":
        """The same, with `name` for the file where none is named."""
        return ConfigError([problem if problem.file else replace(problem, file=name) for problem in self.problems])


class Placed(Protocol):
    """Whatever stands somewhere in a file: a node, or a `Place`."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def path(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A place that is no node: a key, a character, the file as a whole."""

    line: int = 0
    column: int = 0
    path: str = ""


class Report:
    """Collects the problems and warnings of one load, each problem once."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.warnings: list[str] = []
        self._problems: dict[Problem, None] = {}
        self._left_out = 0

    @property
    def has_room(self) -> bool:
        """Whether a further problem would still be shown, so that a hint for it is worth computing."""
        return len(self._problems) < MAX_PROBLEMS

    def add(self, place: Placed, message: str) -> None:
        problem = Problem(self.file, place.line, place.column, place.path, message)
        if self.has_room:
            self._problems[problem] = None
        elif problem not in self._problems:
            self._left_out += 1

    def refuse(self, place: Placed, message: str) -> NoReturn:
        """Add a problem behind which nothing can be read, and raise ConfigError with all so far."""
        self.add(place, message)
        raise self._error()

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems in the order of the file, if there is one."""
        if self._problems:
            raise self._error()

    def _error(self) -> ConfigError:
        found = sorted(self._problems, key=lambda problem: (problem.line, problem.column))
        if self._left_out:
            found.append(Problem(self.file, 0, 0, "", f"and {self._left_out} more problems"))
        return ConfigError(found)
