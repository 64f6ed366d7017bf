"""Looks through a whole JSON text, in turns: a while, then whoever drives it may do something else.

A look is a generator that comes back each time it has spent a slice (redaction.py), and ends with the text as its rules
leave it, or None where they leave it as it is. `at_once` does not wait, `in_turn` lets the loop go round in between:
the slowest text that somebody can make holds up nobody else for longer than a slice of it takes.

Not here: streams, whose events are looked at as they come (guard_stream.py).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from anyio.lowlevel import checkpoint

from .json_strings import Spelt, change, texts_in_turn
from .redaction import PER_TEXT, scan, slice_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..proxy.errors import GatewayError
    from .json_strings import Change, Path
    from .redaction import Found, Rule

T = TypeVar("T")
Looking = Generator[None, None, str | None]
TOKENS: Final = 1 << 14
"""Of JSON, between two turns: a few milliseconds where none of them is a text."""
_NO_TEXT = frozenset(
    (
        "role", "type", "object", "id", "model", "finish_reason", "status", "detail", "format", "data", "file_data",
        "b64_json", "partial_image_b64", "embedding", "encrypted_content", "signature", "system_fingerprint",
        "service_tier",
    )
)  # fmt: skip
"""Members whose strings say how, and not what; and so do ids."""


def is_text(path: Path) -> bool:
    """Whether a string below these names is text: by the last of them."""
    for name in reversed(path):
        if isinstance(name, str):
            return name not in _NO_TEXT and not name.endswith(("_id", "_ids"))
    return True


def look_through(
    rules: Sequence[Rule],
    source: str,
    max_text: int,
    judge: Callable[[Rule], None],
    too_large: Callable[[], GatewayError],
) -> Looking:
    """Every text of a JSON object. `judge` is told of each match, and raises for what blocks; `too_large` makes the
    error for more than `max_text` characters of text."""
    changes: list[Change] = []
    size = spent = 0
    slice_ = slice_for(rules)
    for found in texts_in_turn(source, TOKENS):
        if found is None:
            yield
            continue
        path, start, end = found
        spent += PER_TEXT
        if is_text(path) and not source.startswith("data:", start, end):
            size += end - start
            if size > max_text:
                raise too_large()
            spelt = Spelt(source, start, end)
            matches: list[Found] = []
            for looked_at in scan(rules, spelt.text, matches, slice_):
                spent += looked_at
                if spent >= slice_:
                    spent = 0
                    yield
            for match in matches:
                judge(match.rule)
                changes.append((spelt.place(match.start), spelt.place(match.end), match.rule.placeholder))
        elif spent >= slice_:
            spent = 0
            yield
    return change(source, changes) if changes else None


class Place(NamedTuple):
    """A text, and where it is spelt."""

    start: int
    end: int
    text: str


def all_texts(source: str, max_text: int, too_large: Callable[[], GatewayError]) -> Generator[None, None, list[Place]]:
    """Every text of a JSON object that is not empty, `max_text` characters of them at the most."""
    places: list[Place] = []
    size = 0
    for found in texts_in_turn(source, TOKENS):
        if found is None:
            yield
            continue
        path, start, end = found
        if is_text(path) and end > start and not source.startswith("data:", start, end):
            size += end - start
            if size > max_text:
                raise too_large()
            places.append(Place(start, end, Spelt(source, start, end).text))
    return places


def look_at(rules: Sequence[Rule], text: str, judge: Callable[[Rule], None]) -> Looking:
    """A text that is no JSON."""
    matches: list[Found] = []
    for _ in scan(rules, text, matches, slice_for(rules)):
        yield
    for found in matches:
        judge(found.rule)
    return change(text, [(found.start, found.end, found.rule.placeholder) for found in matches]) if matches else None


def at_once(looking: Generator[None, None, T]) -> T:
    """All of it, in one go."""
    while True:
        try:
            next(looking)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_turn(looking: Generator[None, None, T]) -> T:
    """All of it, with a round of the loop after each slice. Cancelled, it leaves nothing behind."""
    while True:
        try:
            next(looking)
        except StopIteration as end:
            result: T = end.value
            return result
        await checkpoint()
