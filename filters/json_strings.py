"""The string values of a JSON text: where each stands, below which names, and how to change a part of one in place.

Names are not values: they are walked over. A text that is changed keeps every character around the change as it was
spelt, escapes included; what is put in must need no escape itself.

Not here: whether the text is JSON; a parser has said so before.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Path = tuple[str | int, ...]
Change = tuple[int, int, str]
"""Replace the characters from the first place to the second by these."""

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
_NAME_END = re.compile(r"[ \t\n\r]*+:")
_ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.")


class Text(NamedTuple):
    """A string value: what is between its quotes stands from `start` to `end`."""

    path: Path
    start: int
    end: int


def texts(source: str) -> Iterator[Text]:
    """Every string value, in order."""
    return (one for one in texts_in_turn(source, len(source)) if one is not None)


def texts_in_turn(source: str, every: int) -> Iterator[Text | None]:
    """The same, and None each time that so many brackets, commas and strings have gone by: a text may be nothing but
    those."""
    stack: list[str | int] = []
    """For each open bracket the name or the place that is under way."""
    lists: list[bool] = []
    left = every
    for match in _TOKEN.finditer(source):
        left -= 1
        if left < 0:
            left = every
            yield None
        token = match[0]
        first = token[0]
        if first == '"':
            if lists and not lists[-1] and _NAME_END.match(source, match.end()):
                stack[-1] = json.loads(token)
            else:
                yield Text(tuple(stack), match.start() + 1, match.end() - 1)
        elif first in "[{":
            lists.append(first == "[")
            stack.append(0 if first == "[" else "")
        elif first in "]}":
            lists.pop()
            stack.pop()
        elif lists and lists[-1]:
            stack[-1] += 1  # type: ignore[operator]  # in a list it is a place


class Spelt:
    """The text of a string value, and where each of its characters is spelt."""

    __slots__ = ("_escapes", "start", "text")

    def __init__(self, source: str, start: int, end: int) -> None:
        self.start = start
        raw = source[start:end]
        self._escapes: list[tuple[int, int]] = []
        if "\\" not in raw:
            self.text = raw
            return
        parts: list[str] = []
        done = size = 0
        for match in _ESCAPE.finditer(raw):
            plain = raw[done : match.start()]
            value = json.loads(f'"{match[0]}"')
            parts += (plain, value)
            size += len(plain) + len(value)
            done = match.end()
            self._escapes.append((size, done))
        parts.append(raw[done:])
        self.text = "".join(parts)

    def place(self, at: int) -> int:
        """Where the character `at` of the text begins in the source."""
        nth = bisect_right(self._escapes, at, key=lambda one: one[0])
        after = self._escapes[nth - 1] if nth else (0, 0)
        return self.start + after[1] + (at - after[0])


def change(source: str, changes: Sequence[Change]) -> str:
    """The source with the changes made, which are in order and apart."""
    parts: list[str] = []
    done = 0
    for start, end, value in changes:
        parts += (source[done:start], value)
        done = end
    parts.append(source[done:])
    return "".join(parts)


def spell(text: str) -> str:
    """A text as it stands between quotes."""
    return json.dumps(text)[1:-1]
