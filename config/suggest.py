"""The word an operator probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_SHOWN = 60


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is nearest to `word`, or None where nothing is near."""
    near = get_close_matches(word[:MAX_SHOWN].lower(), sorted(known), n=1, cutoff=0.6)
    return near[0] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'attempts'?` to hang onto a message, or nothing."""
    meant = did_you_mean(word, known)
    return f", did you mean '{meant}'?" if meant else ""


def shown(word: str) -> str:
    """A word of the file as it may stand in a message: one line, bounded, nothing unprintable."""
    cut = word if len(word) <= MAX_SHOWN else word[: MAX_SHOWN - 1] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
