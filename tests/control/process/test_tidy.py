"""tidy: what only starting needed goes back to the system."""

from __future__ import annotations

import gc
import weakref

from headgate.control.process.tidy import give_back


class Circle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_only_circles_hold_is_freed() -> None:
    gc.disable()
    try:
        left = weakref.ref(Circle())
        assert left() is not None
        give_back()
        assert left() is None
    finally:
        gc.enable()
