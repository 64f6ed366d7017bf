"""ring_hash: a key keeps its endpoint; one that leaves moves only its own keys; none gets much more than its share."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.balance import Member
from headgate.proxy.upstream.ring_hash import MAX_POINTS, Ring, RingHash, hash_key

KEYS = [hash_key(b"session %d" % number) for number in range(20_000)]
WEIGHTS = st.lists(st.integers(1, 3), min_size=2, max_size=5)


def members(*weights: int) -> list[Member]:
    return [Member(f"10.0.0.{at}:8000", weight=weight) for at, weight in enumerate(weights)]


def ring(group: list[Member]) -> Ring:
    return Ring((member.name, member.weight) for member in group)


def policy(group: list[Member], factor: float = 1.25) -> RingHash:
    return RingHash(ring(group), group, Random(1), factor)


def homes(picker: RingHash, keys: list[int]) -> list[Member]:
    found = [picker.pick(0.0, key, ()) for key in keys]
    assert None not in found
    return [member for member in found if member is not None]


def test_a_key_always_goes_to_the_same_member() -> None:
    group = members(1, 1, 1)
    assert homes(policy(group), KEYS) == homes(policy(group), KEYS)


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1), (1, 2, 3), (1,) * 10])
def test_keys_spread_by_weight_within_two_points_of_a_hundred(weights: tuple[int, ...]) -> None:
    group = members(*weights)
    seen = Counter(member.name for member in homes(policy(group), KEYS))
    for member in group:
        assert seen[member.name] / len(KEYS) == pytest.approx(member.weight / sum(weights), abs=0.02)


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_when_a_member_leaves_only_its_own_keys_move(count: int) -> None:
    group = members(*[1] * count)
    before = homes(policy(group), KEYS)
    for gone in group:
        rest = [member for member in group if member is not gone]
        after = homes(policy(rest), KEYS)
        moved = sum(old is not new for old, new in zip(before, after, strict=True))
        assert moved == before.count(gone)
        assert moved / len(KEYS) <= 1 / count + 0.02


@given(weights=WEIGHTS, leaver=st.integers(0, 4), keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_an_unavailable_member_moves_no_key_of_the_others(weights: list[int], leaver: int, keys: list[int]) -> None:
    group = members(*weights)
    gone = group[leaver % len(group)]
    rest = [member for member in group if member is not gone]
    before = homes(policy(group), keys)
    after = homes(RingHash(ring(group), rest, Random(1)), keys)
    assert all(old is new for old, new in zip(before, after, strict=True) if old is not gone)


def test_more_weight_adds_points_and_moves_none() -> None:
    light, heavy = Ring([("a", 1), ("b", 1)]), Ring([("a", 1), ("b", 3)])
    assert set(light._points) < set(heavy._points)


def test_the_circle_is_bounded_however_heavy_the_weights() -> None:
    heavy = Ring([("a", 128), ("b", 1_000), ("c", 1)])
    assert len(heavy._points) <= MAX_POINTS + 3
    assert len(set(heavy._owners)) == 3


def test_a_member_above_its_share_passes_keys_to_the_next_on_the_circle() -> None:
    group = members(1, 1, 1, 1)
    picker = policy(group)
    key = KEYS[0]
    (home,) = homes(picker, [key])
    nexts = homes(policy([member for member in group if member is not home]), [key])
    home.active = 8
    assert homes(picker, [key]) == nexts
    home.active = 1  # 1.25 x (1 + 1) / 4 is less than one whole request, which anybody may have
    assert homes(picker, [key]) == nexts
    for member in group:
        member.active = 3
    assert homes(picker, [key]) == [home]


@given(weights=WEIGHTS, requests=st.integers(1, 80), keys=st.integers(1, 5), seed=st.integers(0, 100))
def test_nobody_ever_has_more_than_the_factor_times_its_share(
    weights: list[int], requests: int, keys: int, seed: int
) -> None:
    group, rng = members(*weights), Random(seed)
    picker = policy(group)
    for in_flight in range(1, requests + 1):
        member = picker.pick(0.0, KEYS[rng.randrange(keys)], ())
        assert member is not None
        member.active += 1
        assert member.active < 1.25 * in_flight * member.weight / sum(weights) + 1 + 1e-9


def test_without_a_key_members_are_taken_at_random() -> None:
    picker = policy(members(1, 1))
    seen = {member.name for _ in range(100) if (member := picker.pick(0.0, None, ())) is not None}
    assert len(seen) == 2


def test_avoided_members_pass_the_key_on_until_nobody_is_left() -> None:
    group = members(1, 1, 1)
    picker = policy(group)
    tried: list[Member] = []
    for _ in group:
        member = picker.pick(0.0, KEYS[7], tried)
        assert member is not None
        assert member not in tried
        tried.append(member)
    assert picker.pick(0.0, KEYS[7], tried) is None


def test_the_nearest_takes_the_key_when_all_that_are_left_have_too_much() -> None:
    group = members(1, 1, 1)
    picker = policy(group)
    for key in KEYS[:20]:
        (home,) = homes(picker, [key])
        full = [member for member in group if member is not home]
        (nearest,) = homes(policy(full), [key])
        for member in full:
            member.active = 50
        assert picker.pick(0.0, key, [home]) is nearest
        for member in full:
            member.active = 0


@given(key=st.integers())
def test_any_number_is_a_key(key: int) -> None:
    assert policy(members(1, 1)).pick(0.0, key, ()) is not None


def test_keys_of_one_text_are_the_same_in_every_process() -> None:
    assert hash_key(b"session 1") == 17099827076019606721
