"""Finds rules in text, whole or as it comes, with the same result however it was cut.

At each place the first rule to begin wins, and of several that begin there the longest. Whether one begins at a place
depends on a bounded stretch of text: one character before, and the rule's width and one more behind. So a `Window`
decides about a place as soon as that stretch is there, or as soon as a character has come that no match of the rule can
hold, and gives out what is decided. What it holds back is at most the largest width; for most rules, the last word.
For the same reason a whole text can be searched in slices (`scan`), with the same result, and a loop be left to others
in between.

Not here: where texts stand in a body (json_strings.py), and what becomes of what is found (guard.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..config.safe_regex import measure
from .pii_patterns import KNOWN, Known

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ..config import GuardRule


STEPS = 1 << 21
"""Of expressions, between two moments in which others may run: a few milliseconds."""
SHORTEST = 256
PER_TEXT = 8
"""Characters for which a text counts beside its own: it takes its time to be found."""


class Found(NamedTuple):
    """`rule` matches from `start` to `end`."""

    start: int
    end: int
    rule: Rule


class Rule:
    """One thing to look for. `blocks`: it ends the exchange; else its name stands for what it finds."""

    __slots__ = ("_known", "blocks", "name", "placeholder", "ways")

    def __init__(self, config: GuardRule) -> None:
        self.name = config.name
        self.blocks = config.action == "block"
        self.placeholder = f"[{config.name}]"
        self._known = _known(config)
        self.ways = self._known.ways

    def find(self, text: str, at: int, before: int) -> Found | None:
        """The first match that begins from `at` on, and below `before`. Looks no further than that needs."""
        pattern, width, _, settle, _ = self._known
        end = before + width + 1
        match = pattern.search(text, at, end)
        while match is not None and match.start() < before:
            settled = match.end() if settle is None else settle(text, match)
            if settled is not None:
                return Found(match.start(), settled, self)
            match = pattern.search(text, match.start() + 1, end)
        return None

    def undecided(self, text: str) -> int:
        """The first place about which more text may still say something."""
        known, size = self._known, len(text)
        first = max(0, size - known.width)
        if known.outside is not None:
            for at in range(size - 1, first - 1, -1):
                if known.outside.match(text, at):
                    return at + 1
        return first


class Window:
    """One text as it comes."""

    __slots__ = ("_at", "_rules", "_text")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._text = ""
        """What is held back, and one character before it."""
        self._at = 0

    @property
    def held(self) -> int:
        """Characters that have not been given out."""
        return len(self._text) - self._at

    def feed(self, text: str, found: list[Rule], *, last: bool = False) -> str:
        """What may be given out now; what was taken out of it is added to `found`. `last`: that was all of it."""
        whole = self._text = self._text + text
        size = len(whole)
        limit = size if last else min(rule.undecided(whole) for rule in self._rules)
        at = self._at
        out: list[str] = []
        pending = [one for rule in self._rules if (one := rule.find(whole, at, limit)) is not None]
        while pending:
            first = min(pending, key=lambda one: (one.start, -one.end))
            out += (whole[at : first.start], first.rule.placeholder)
            found.append(first.rule)
            at = first.end
            pending = [
                again
                for one in pending
                if (again := one if one.start >= at else one.rule.find(whole, at, limit)) is not None
            ]
        if at < limit:
            out.append(whole[at:limit])
            at = limit
        keep = max(0, at - 1)
        self._text, self._at = whole[keep:], at - keep
        return "".join(out)


def redact(rules: Sequence[Rule], text: str, found: list[Rule]) -> str:
    """A whole text without what the rules find; what was taken out is added to `found`."""
    return Window(rules).feed(text, found, last=True)


def search(rules: Sequence[Rule], text: str) -> list[Found]:
    """Every match in a whole text, in order, none within another."""
    matches: list[Found] = []
    for _ in scan(rules, text, matches, len(text) or 1):
        pass
    return matches


def scan(rules: Sequence[Rule], text: str, matches: list[Found], slice_: int) -> Generator[int, None, None]:
    """As `search`, into `matches`; comes back after each slice of the text, with its length."""
    at = done = 0
    while done < len(text):
        limit = min(done + slice_, len(text))
        at = max(at, done)
        pending = [one for rule in rules if (one := rule.find(text, at, limit)) is not None] if at < limit else []
        while pending:
            first = min(pending, key=lambda one: (one.start, -one.end))
            matches.append(first)
            at = first.end
            pending = [
                again
                for one in pending
                if (again := one if one.start >= at else one.rule.find(text, at, limit)) is not None
            ]
        yield limit - done
        done = limit


def slice_for(rules: Sequence[Rule]) -> int:
    """How many characters these rules may look at in one go."""
    return max(SHORTEST, STEPS // max(1, sum(rule.ways for rule in rules)))


def _known(config: GuardRule) -> Known:
    if config.pattern is not None:
        return KNOWN[config.pattern]
    assert config.regex is not None  # noqa: S101 - narrows for the type checker: a rule has one of the two
    measured = measure(config.regex)
    return Known(measured.pattern, measured.width, measured.outside, ways=measured.ways)
