"""tidy: what only starting needed goes back to the system, and what stays is walked no more."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from headgate.control.process.tidy import YOUNG, give_back

if TYPE_CHECKING:
    from collections.abc import Iterator


class Circle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The collector is the whole test run's."""
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.enable()


def test_what_only_circles_hold_is_freed() -> None:
    left = weakref.ref(Circle())
    assert left() is not None
    give_back()
    assert left() is None


def test_what_is_left_is_out_of_the_collector_s_sight_and_what_comes_is_not() -> None:
    stays = Circle()
    before = gc.get_freeze_count()
    give_back()
    assert gc.get_freeze_count() > before
    assert not any(seen is stays for seen in gc.get_objects())
    comes = weakref.ref(Circle())
    gc.collect()
    assert comes() is None
    assert gc.get_threshold()[0] == YOUNG
