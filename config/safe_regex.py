"""Regular expressions that cannot be made to run for ever, and that a window over a stream can follow.

Python's `re` has no time limit, so the language is made smaller instead. An expression is literals, classes, groups,
alternatives, `\\b` and bounded repeats: nothing may repeat without a bound, nothing may be repeated that can match in
several ways, there are no back-references, and around a match nothing is looked for but `\\b`. What is left has a
longest match (`Measured.width`), and the ways to match at one place can be counted: more than `MAX_WAYS` are refused,
so one character of text costs at most so many steps.

Classes such as `\\d` and `\\w` are ASCII. The parser is the one that `re` itself uses.
"""

import re
from re import _constants as ops  # type: ignore[attr-defined]  # the parser's own names; there are no public ones
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

MAX_SOURCE: Final = 512
MAX_WIDTH: Final = 256
MAX_WAYS: Final = 1024
_REPEATS: Final = frozenset((ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT))
_CATEGORIES: Final = {
    ops.CATEGORY_DIGIT: r"[0-9]", ops.CATEGORY_NOT_DIGIT: r"[^0-9]", ops.CATEGORY_WORD: r"[A-Za-z0-9_]",
    ops.CATEGORY_NOT_WORD: r"[^A-Za-z0-9_]", ops.CATEGORY_SPACE: r"[ \t\n\r\f\v]",
    ops.CATEGORY_NOT_SPACE: r"[^ \t\n\r\f\v]",
}  # fmt: skip


class Measured(NamedTuple):
    """A checked expression. No match is longer than `width` characters. `outside` finds a character that no match
    holds; None: any character may be part of one. One character of text costs at most `ways` steps."""

    pattern: re.Pattern[str]
    width: int
    outside: re.Pattern[str] | None
    ways: int


def measure(source: str) -> Measured:
    """Check and compile. Raises ValueError with what is not allowed."""
    if len(source) > MAX_SOURCE:
        raise ValueError(f"must have at most {MAX_SOURCE} characters")
    try:
        tree = parser.parse(source, re.ASCII)
        pattern = re.compile(source, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    if pattern.flags & ~(re.ASCII | re.IGNORECASE):
        raise ValueError("may set no flag but (?i)")
    atoms = _Atoms()
    ways = _ways(tree, atoms)
    least, width = tree.getwidth()
    if least < 3:
        raise ValueError("must need at least 3 characters")
    if width > MAX_WIDTH:
        raise ValueError(f"must not match more than {MAX_WIDTH} characters")
    if ways > MAX_WAYS:
        raise ValueError(f"can match one place in {ways} ways, {MAX_WAYS} are allowed: shorten its repeats")
    return Measured(pattern, width, atoms.outside(bool(pattern.flags & re.IGNORECASE)), ways)


class _Atoms:
    """What single characters an expression is made of, as a class of ASCII; beyond it everything, or nothing."""

    def __init__(self) -> None:
        self._ascii: set[str] = set()
        self._beyond = False

    def add(self, expression: str, *, beyond: bool) -> None:
        matcher = re.compile(expression)
        self._ascii.update(chr(code) for code in range(128) if matcher.fullmatch(chr(code)))
        self._beyond = self._beyond or beyond

    def outside(self, ignore_case: bool) -> re.Pattern[str] | None:
        inside = self._ascii | (
            {one for char in self._ascii for one in (char.lower(), char.upper())} if ignore_case else set()
        )
        text = "".join(re.escape(char) for char in sorted(inside)) + (r"\x80-\U0010ffff" if self._beyond else "")
        return re.compile(f"[^{text}]") if not (self._beyond and len(inside) == 128) else None


def _ways(tree: Any, atoms: _Atoms) -> int:
    """In how many ways a sequence can match at one place, at most. Raises ValueError for what is not allowed."""
    ways = 1
    for op, argument in tree:
        ways *= _ways_of(op, argument, atoms)
        if ways > 1 << 64:
            return ways
    return ways


def _ways_of(op: Any, argument: Any, atoms: _Atoms) -> int:
    if op is ops.LITERAL or op is ops.NOT_LITERAL:
        char = re.escape(chr(argument))
        atoms.add(f"[^{char}]" if op is ops.NOT_LITERAL else char, beyond=op is ops.NOT_LITERAL or argument > 127)
        return 1
    if op is ops.ANY:
        atoms.add(".", beyond=True)
        return 1
    if op is ops.IN:
        _class(argument, atoms)
        return 1
    if op is ops.AT and argument is ops.AT_BOUNDARY:
        return 1
    if op is ops.SUBPATTERN:
        _, added, removed, inner = argument
        if added or removed:
            raise ValueError("may set no flag within a group")
        return _ways(inner, atoms)
    if op is ops.ATOMIC_GROUP:
        return _ways(argument, atoms)
    if op is ops.BRANCH:
        return sum(_ways(one, atoms) for one in argument[1])
    if op in _REPEATS:
        least, most, inner = argument
        if most > MAX_WIDTH:
            raise ValueError("must bound every repeat: {1,64} instead of +, {0,64} instead of *")
        if _ways(inner, atoms) > 1:
            raise ValueError("may not repeat what can match in several ways")
        return int(most) - int(least) + 1
    raise ValueError("may hold literals, classes, groups, alternatives, bounded repeats and \\b, and nothing else")


def _class(items: Any, atoms: _Atoms) -> None:
    parts = [_part(op, argument) for op, argument in items if op is not ops.NEGATE]
    negated = any(op is ops.NEGATE for op, _ in items)
    union = "|".join(part for part, _ in parts)
    atoms.add(f"(?!{union})[\\s\\S]" if negated else union, beyond=negated or any(beyond for _, beyond in parts))


def _part(op: Any, argument: Any) -> tuple[str, bool]:
    if op is ops.LITERAL:
        return re.escape(chr(argument)), argument > 127
    if op is ops.RANGE:
        low, high = argument
        return f"[{re.escape(chr(low))}-{re.escape(chr(high))}]", high > 127
    source = _CATEGORIES[argument]
    return source, source.startswith("[^")
