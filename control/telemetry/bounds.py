"""Label values made safe, and their number kept down.

What a client or provider made up may be any text, and there may be any number of them. A page of metrics is at most
2 000 series and 1 MB all the same: each family has a share of the page, names get a place in it in the order in which
they are met, and who comes later is `other`. A place once given is kept, so no series ever goes back.
"""

from __future__ import annotations

from ...proxy.stats import OTHER

LABEL_BYTES = 100
MAX_SERIES = 2_000
MAX_BYTES = 1_000_000


class Places:
    """`size` places for label sets; the last one is for all the others together."""

    __slots__ = ("_size", "_taken")

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: set[tuple[str, ...]] = set()

    def place(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels to count under: these, or as many times `other`."""
        if labels in self._taken:
            return labels
        if len(self._taken) >= self._size - 1:
            return (OTHER,) * len(labels)
        self._taken.add(labels)
        return labels


def clean(value: str) -> str:
    """`value` as it may stand in a label: printable, valid UTF-8, at most `LABEL_BYTES` long."""
    if not value.isprintable():
        value = "".join([char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value[:LABEL_BYTES]])
    raw = value.encode("utf-8", "replace")
    return raw[:LABEL_BYTES].decode("utf-8", "ignore") if len(raw) > LABEL_BYTES else raw.decode()
