"""policies: members are picked in proportion to their weight, less loaded ones first, and cold ones warm up slowly."""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.balance import Member
from headgate.proxy.upstream.policies import (
    EarliestDeadline,
    LeastRequest,
    Picker,
    Rotation,
    SlowStart,
    Sole,
    WeightedDraw,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PICKS = 100_000
OFF = SlowStart()
WEIGHTS = st.lists(st.integers(1, 50), min_size=2, max_size=8)


def members(*weights: int, since: float = 0.0) -> list[Member]:
    return [Member(f"m{at}", weight=weight, since=since) for at, weight in enumerate(weights)]


def counts(picker: Picker, picks: int = PICKS, now: float = 0.0) -> Counter[str]:
    seen: Counter[str] = Counter()
    for _ in range(picks):
        member = picker.pick(now, None, ())
        assert member is not None
        seen[member.name] += 1
    return seen


BY_WEIGHT: list[Callable[[list[Member]], Picker]] = [
    lambda group: EarliestDeadline(group, Random(1), OFF),
    lambda group: WeightedDraw(group, Random(1), OFF),
    lambda group: LeastRequest(group, Random(1), OFF),
]


@pytest.mark.parametrize("build", BY_WEIGHT)
@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1), (1, 2, 4), (3, 1)])
def test_idle_members_share_by_weight_within_two_percent(
    build: Callable[[list[Member]], Picker], weights: tuple[int, ...]
) -> None:
    seen = counts(build(members(*weights)))
    for at, weight in enumerate(weights):
        assert seen[f"m{at}"] == pytest.approx(PICKS * weight / sum(weights), rel=0.02)


def under_load(weights: tuple[int, ...], in_flight: int) -> list[float]:
    """Each member's part of what its weight promises, when `in_flight` requests run at a time."""
    group = members(*weights)
    picker = LeastRequest(group, Random(2), OFF)
    seen: Counter[str] = Counter()
    running: deque[Member] = deque()
    for _ in range(PICKS):
        member = picker.pick(0.0, None, ())
        assert member is not None
        seen[member.name] += 1
        member.active += 1
        running.append(member)
        if len(running) >= in_flight:
            running.popleft().active -= 1
    return [seen[member.name] / PICKS * sum(weights) / member.weight for member in group]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 4), (1, 10)])
def test_least_request_shares_by_weight_within_two_percent_under_load(weights: tuple[int, ...]) -> None:
    assert under_load(weights, in_flight=220) == pytest.approx([1] * len(weights), rel=0.02)


@pytest.mark.parametrize("in_flight", [2, 5, 11])
def test_a_small_member_is_not_flooded_for_being_idle_more_often(in_flight: int) -> None:
    small, large = under_load((1, 10), in_flight)
    assert 0.7 < small < 1.05
    assert large == pytest.approx(1, rel=0.05)


def test_random_ignores_weights() -> None:
    seen = counts(WeightedDraw(members(1, 9), Random(1), OFF, even=True))
    assert seen["m0"] == pytest.approx(PICKS / 2, rel=0.02)


def test_rotation_takes_turns_and_begins_anywhere() -> None:
    firsts = set()
    for seed in range(20):
        picker = Rotation(members(1, 1, 1), Random(seed))
        turn = [picker.pick(0.0, None, ()) for _ in range(6)]
        assert turn[:3] == turn[3:]
        assert len(set(turn)) == 3
        firsts.add(turn[0].name if turn[0] else "")
    assert firsts == {"m0", "m1", "m2"}


@given(weights=WEIGHTS, seed=st.integers(0, 1000), picks=st.integers(1, 500))
def test_weighted_rotation_is_smooth(weights: list[int], seed: int, picks: int) -> None:
    seen = counts(EarliestDeadline(members(*weights), Random(seed), OFF), picks)
    for at, weight in enumerate(weights):
        due = picks * weight / sum(weights)
        others = len(weights)
        assert due - others < seen[f"m{at}"] < due + others


@given(weights=WEIGHTS, seed=st.integers(0, 1000))
def test_the_table_of_a_weighted_draw_gives_each_member_its_share(weights: list[int], seed: int) -> None:
    group = members(*weights)
    table = WeightedDraw(group, Random(seed), OFF)
    share: Counter[str] = Counter()
    for own, member, other in zip(table._own, group, table._other, strict=True):
        share[member.name] += own  # type: ignore[assignment]
        share[other.name] += 1 - own  # type: ignore[assignment]
    for at, weight in enumerate(weights):
        assert share[f"m{at}"] == pytest.approx(len(weights) * weight / sum(weights))


def test_of_two_the_one_with_fewer_requests_is_picked() -> None:
    busy, free = group = members(1, 1)
    busy.active, free.active = 5, 4
    assert counts(LeastRequest(group, Random(1), OFF), 100) == {"m1": 100}


def test_weight_divides_load() -> None:
    small, large = group = members(1, 4)
    small.active, large.active = 2, 7
    assert counts(LeastRequest(group, Random(1), OFF), 100) == {"m1": 100}


def test_outstanding_tokens_outweigh_a_handful_of_requests() -> None:
    prompt, chat = group = members(1, 1)
    prompt.active, prompt.tokens = 1, 100_000
    chat.active, chat.tokens = 5, 2_500
    assert counts(LeastRequest(group, Random(1), OFF), 100) == {"m1": 100}


@given(
    loads=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**6)), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
)
def test_the_most_loaded_member_is_not_picked_over_a_free_one(loads: list[tuple[int, int]], seed: int) -> None:
    group = members(*[1] * len(loads))
    for member, (active, tokens) in zip(group, loads, strict=True):
        member.active, member.tokens = active, tokens
    worst = max(group, key=lambda member: (member.active, member.tokens))
    others = [member for member in group if member is not worst]
    if all(member.active < worst.active and member.tokens < worst.tokens for member in others):
        assert worst.name not in counts(LeastRequest(group, Random(seed), OFF), 50)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
def test_two_choices_are_two_members(weights: tuple[int, ...]) -> None:
    group = members(*weights)
    picker = LeastRequest(group, Random(3), OFF)
    for _ in range(500):
        first, second = picker._two(0.0)
        assert first is not second


@pytest.mark.parametrize(
    ("age", "factor"), [(-1, 0.1), (0, 0.1), (3, 0.1), (30, 0.5), (45, 0.75), (60, 1.0), (1000, 1.0)]
)
def test_slow_start_grows_from_a_tenth_to_all(age: float, factor: float) -> None:
    assert SlowStart(window=60).factor(age) == pytest.approx(factor)


def test_aggression_bends_the_curve() -> None:
    assert SlowStart(window=60, aggression=2).factor(15) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "build",
    [
        lambda group, slow: EarliestDeadline(group, Random(1), slow),
        lambda group, slow: WeightedDraw(group, Random(1), slow),
        lambda group, slow: WeightedDraw(group, Random(1), slow, even=True),
    ],
)
def test_a_member_half_way_through_slow_start_gets_half_a_share(
    build: Callable[[list[Member], SlowStart], Picker],
) -> None:
    group = members(1, 1)
    group[1].since = 100.0
    seen = counts(build(group, SlowStart(window=60)), now=130.0)
    assert seen["m1"] == pytest.approx(PICKS / 3, rel=0.02)


def test_least_request_keeps_a_cold_member_at_a_part_of_the_load() -> None:
    group = members(1, 1, 1)
    group[2].since = 100.0
    picker = LeastRequest(group, Random(1), SlowStart(window=60))
    for _ in range(200):
        member = picker.pick(101.0, None, ())
        assert member is not None
        member.active += 1
    assert 2 <= group[2].active <= 20  # a tenth of a full share would be 10
    for _ in range(400):
        member = picker.pick(200.0, None, ())
        assert member is not None
        member.active += 1
    assert [member.active for member in group] == pytest.approx([200, 200, 200], abs=10)


def test_a_cold_member_with_little_load_is_still_the_fuller() -> None:
    cold, warm = group = members(1, 1)
    cold.since, cold.active, warm.active = 100.0, 1, 5
    assert counts(LeastRequest(group, Random(1), SlowStart(window=60)), 100, now=100.0) == {"m1": 100}


@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    avoided=st.sets(st.integers(0, 5)),
    seed=st.integers(0, 1000),
)
def test_an_avoided_member_is_never_picked(weights: list[int], avoided: set[int], seed: int) -> None:
    group = members(*weights)
    avoid = [member for at, member in enumerate(group) if at in avoided]
    rng = Random(seed)
    for picker in (
        Rotation(group, rng),
        EarliestDeadline(group, rng, OFF),
        WeightedDraw(group, rng, OFF),
        LeastRequest(group, rng, OFF),
        Sole(group[0]),
    ):
        picked = picker.pick(0.0, None, avoid)
        assert picked not in avoid
        if isinstance(picker, Rotation):
            assert (picked is None) == (len(avoid) == len(group))


def test_the_busier_of_two_is_taken_when_the_other_is_to_be_avoided() -> None:
    free, busy = group = members(1, 1)
    busy.active = 9
    assert LeastRequest(group, Random(1), OFF).pick(0.0, None, [free]) is busy
    assert LeastRequest(group, Random(1), OFF).pick(0.0, None, group) is None
