"""Which request paths a list of globs names.

`*` stands for anything within one segment; `**`, which may only end a glob, for anything at all. So `/v1/files/*` is
every file and nothing below one, `/v1/files/**` also what is below, and neither is `/v1/files` itself. All else stands
for itself.

A path comes from outside and may be long, so no star is ever tried twice: within a segment, what comes first after a
star may be taken where it is first found, for good.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class PathGlobs:
    """Immutable."""

    __slots__ = ("_matches", "_written")

    def __init__(self, globs: Iterable[str]) -> None:
        self._written = tuple(globs)
        self._matches = re.compile("|".join(map(_pattern, self._written)), re.DOTALL).fullmatch

    def names(self, path: str) -> bool:
        """Whether one of them matches the whole path."""
        return self._matches(path) is not None

    def __repr__(self) -> str:
        return f"PathGlobs({', '.join(self._written)})"


def _pattern(glob: str) -> str:
    everything = ".*" if glob.endswith("**") else ""
    first, *others = glob.removesuffix("**").split("*")
    pattern = re.escape(first)
    for at, part in enumerate(others, 1):
        found = f"[^/]*{'?' if at < len(others) else ''}{re.escape(part)}"
        pattern += f"(?>{found})" if at < len(others) else found
    return pattern + everything
