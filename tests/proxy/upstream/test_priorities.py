"""priorities: what a level cannot carry spills to the next, by Envoy's arithmetic; too few healthy ones mean panic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.priorities import Health, Share, share_load, sufficiency

HEALTHS = st.lists(
    st.integers(0, 300).flatmap(lambda total: st.builds(Health, st.integers(0, total), st.just(total))),
    max_size=5,
)


# Envoy's documentation, "Priority levels": health of each level in per cent -> load of each level.
@pytest.mark.parametrize(
    ("healthy", "loads"),
    [
        ((100, 100), (100, 0)),
        ((72, 72), (100, 0)),
        ((71, 71), (99, 1)),
        ((50, 50), (70, 30)),
        ((25, 100), (35, 65)),
        ((25, 25), (50, 50)),
        ((0, 100), (0, 100)),
        ((20, 20, 10), (40, 40, 20)),
        ((0, 20, 0), (0, 100, 0)),
        ((0, 0), (100, 0)),
    ],
)
def test_load_spills_as_envoy_documents(healthy: tuple[int, ...], loads: tuple[int, ...]) -> None:
    shares = share_load([Health(count, 100) for count in healthy])
    assert tuple(share.load for share in shares) == loads


def test_below_half_healthy_a_lone_level_panics() -> None:
    assert share_load([Health(2, 4)]) == [Share(100, False)]
    assert share_load([Health(1, 4)]) == [Share(100, True)]


def test_nobody_panics_while_all_levels_together_suffice() -> None:
    assert share_load([Health(1, 4), Health(4, 4)]) == [Share(35, False), Share(65, False)]


def test_only_the_level_below_the_threshold_panics() -> None:
    assert share_load([Health(1, 10), Health(6, 10)]) == [Share(15, True), Share(85, False)]


def test_the_first_level_that_has_members_takes_all_when_nobody_is_healthy() -> None:
    assert share_load([Health(0, 0), Health(0, 3), Health(0, 9)]) == [Share(0, False), Share(100, True), Share(0, True)]


def test_without_panic_nobody_healthy_means_no_load() -> None:
    assert share_load([Health(0, 3)], panic_threshold=0) == [Share(0, False)]


def test_one_healthy_member_of_very_many_is_not_rounded_away() -> None:
    assert sufficiency(Health(1, 10_000)) == 1
    assert share_load([Health(1, 10_000)], panic_threshold=0) == [Share(100, False)]


@given(levels=HEALTHS, threshold=st.floats(0, 100), factor=st.integers(100, 300))
def test_loads_are_whole_and_only_fall_on_levels_that_can_take_them(
    levels: list[Health], threshold: float, factor: int
) -> None:
    shares = share_load(levels, overprovisioning=factor, panic_threshold=threshold)
    assert sum(share.load for share in shares) in (0, 100)
    assert any(level.healthy for level in levels) <= (sum(share.load for share in shares) == 100)
    for level, share in zip(levels, shares, strict=True):
        assert 0 <= share.load <= 100
        assert share.load == 0 or share.panic or level.healthy


@given(levels=HEALTHS.filter(bool))
def test_a_healthier_level_never_gets_less(levels: list[Health]) -> None:
    first, *others = levels
    loads = [
        share_load([Health(healthy, first.total), *others], panic_threshold=0)[0].load
        for healthy in range(first.total + 1)
    ]
    assert loads == sorted(loads)
