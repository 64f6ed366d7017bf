"""Which models a list of names allows: a name stands for itself, or for all that begins as it does before its `*`.

What is compared is the name that the client asks for, and never the one that a target has for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ModelNames:
    """Immutable."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, written: Iterable[str]) -> None:
        names = frozenset(written)
        self._prefixes = tuple(sorted(name[:-1] for name in names if name.endswith("*")))
        self._exact = frozenset(name for name in names if not name.endswith("*"))

    def allow(self, model: str) -> bool:
        """Whether one of them stands for `model`; none does for what names no model."""
        return model in self._exact or (bool(model) and model.startswith(self._prefixes))

    def __repr__(self) -> str:
        return f"ModelNames({', '.join([*sorted(self._exact), *(prefix + '*' for prefix in self._prefixes)])})"
