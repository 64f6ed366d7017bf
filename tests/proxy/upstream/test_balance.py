"""balance: priority first, then the caller's region, then the policy; nobody unavailable, nobody avoided, nobody of
weight 0."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.balance import Balancer, Balancing, Member, Policy
from headgate.proxy.upstream.ring_hash import hash_key

if TYPE_CHECKING:
    from collections.abc import Iterable

POLICIES: tuple[Policy, ...] = get_args(Policy)
MEMBERS = st.lists(
    st.builds(
        lambda weight, priority, region, available: (weight, priority, region, available),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from(["", "eu", "us"]),
        st.booleans(),
    ),
    max_size=8,
)
PICKS = 20_000


def balancer(members: Iterable[Member], policy: Policy = "random", settings: Balancing | None = None) -> Balancer:
    return Balancer(policy, members, Random(1), settings or Balancing())


def spread(balance: Balancer, picks: int = PICKS, region: str = "") -> dict[str, float]:
    seen: Counter[str] = Counter()
    for number in range(picks):
        member = balance.pick(0.0, key=hash_key(b"%d" % number), region=region)
        assert member is not None
        seen[member.name] += 1
    return {name: count / picks for name, count in seen.items()}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_spreads_equal_members_evenly(policy: Policy) -> None:
    tolerance = 0.02 if policy == "ring_hash" else 0.005
    shares = spread(balancer([Member(f"m{at}") for at in range(4)], policy), picks=100_000)
    assert shares == pytest.approx(dict.fromkeys(["m0", "m1", "m2", "m3"], 0.25), abs=tolerance)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lone_member_takes_everything(policy: Policy) -> None:
    member = Member("a")
    balance = balancer([member], policy)
    assert balance.pick(0.0) is member
    assert balance.pick(0.0, key=5, region="eu") is member
    assert balance.pick(0.0, avoid=[member]) is None


def test_nobody_there_means_nobody_picked() -> None:
    assert balancer([]).pick(0.0) is None


def test_weight_zero_takes_no_load_not_even_in_a_panic() -> None:
    off = Member("off", weight=0)
    assert balancer([off]).pick(0.0) is None
    assert spread(balancer([off, Member("down", available=False)])) == {"down": 1.0}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_unavailable_takes_load_again_after_a_rebuild(policy: Policy) -> None:
    first, second = Member("a"), Member("b")
    balance = balancer([first, second], policy)
    first.available = False
    balance.rebuild()
    assert spread(balance) == {"b": 1.0}
    first.available = True
    balance.rebuild()
    assert spread(balance) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.02)


def test_a_changed_weight_or_priority_counts_after_a_rebuild() -> None:
    first, second = Member("a"), Member("b")
    balance = balancer([first, second], "ring_hash")
    first.weight = 0
    balance.rebuild()
    assert spread(balance, picks=100) == {"b": 1.0}
    first.weight, second.priority = 1, 1
    balance.rebuild()
    assert spread(balance, picks=100) == {"a": 1.0}


def test_a_member_says_who_it_is() -> None:
    assert [repr(Member("a")), repr(Member("b", available=False))] == ["<Member a>", "<Member b unavailable>"]


def test_members_can_be_exchanged() -> None:
    balance = balancer([Member("a"), Member("b")], "ring_hash")
    balance.rebuild([Member("c"), Member("d")])
    assert spread(balance).keys() == {"c", "d"}


def test_an_unhealthy_level_spills_to_the_next() -> None:
    upper = [Member(f"own{at}", available=at < 2) for at in range(4)]
    lower = [Member("paid", priority=1)]
    shares = spread(balancer([*lower, *upper]))
    assert shares == pytest.approx({"own0": 0.35, "own1": 0.35, "paid": 0.30}, abs=0.02)


def test_a_healthy_level_keeps_everything_to_itself() -> None:
    assert spread(balancer([Member("own"), Member("paid", priority=1)])) == {"own": 1.0}


def test_a_panic_spreads_load_over_healthy_and_unhealthy_alike() -> None:
    balance = balancer([Member(f"m{at}", available=at == 0) for at in range(4)])
    assert spread(balance) == pytest.approx(dict.fromkeys(["m0", "m1", "m2", "m3"], 0.25), abs=0.02)
    assert balance.healthy_panic == PICKS


def test_a_level_that_panics_without_load_is_not_used() -> None:
    down, scarce = Member("down", available=False), [Member(f"p{at}", priority=1, available=at == 0) for at in range(3)]
    assert "down" not in spread(balancer([down, *scarce]))
    assert balancer([down, *scarce]).pick(0.0, avoid=scarce) is None


def test_with_panic_turned_off_nobody_is_picked_when_nobody_is_healthy() -> None:
    settings = Balancing(panic_threshold=0)
    assert balancer([Member("a", available=False)], settings=settings).pick(0.0) is None
    lone = [Member(f"m{at}", available=at == 0) for at in range(4)]
    assert spread(balancer(lone, settings=settings)) == {"m0": 1.0}


def test_the_callers_region_comes_first() -> None:
    balance = balancer([Member("e1", region="eu"), Member("e2", region="eu"), Member("u1", region="us")])
    assert spread(balance, region="us") == {"u1": 1.0}
    assert spread(balance, region="eu") == pytest.approx({"e1": 0.5, "e2": 0.5}, abs=0.02)
    assert spread(balance, region="ap").keys() == {"e1", "e2", "u1"}
    assert spread(balance).keys() == {"e1", "e2", "u1"}


def test_what_a_region_cannot_carry_goes_to_the_others() -> None:
    near = [Member(f"e{at}", region="eu", available=at == 0) for at in range(2)]
    balance = balancer([*near, Member("u1", region="us"), Member("u2", region="us")])
    assert spread(balance, region="eu") == pytest.approx({"e0": 0.70, "u1": 0.15, "u2": 0.15}, abs=0.02)


def test_a_region_without_healthy_members_is_served_by_the_others() -> None:
    balance = balancer([Member("e", region="eu", available=False), Member("u", region="us"), Member("a", region="ap")])
    assert spread(balance, region="eu") == pytest.approx({"u": 0.5, "a": 0.5}, abs=0.02)


def test_a_region_without_others_serves_all() -> None:
    balance = balancer([Member(f"e{at}", region="eu", available=at < 2) for at in range(3)])
    assert spread(balance, region="eu") == pytest.approx({"e0": 0.5, "e1": 0.5}, abs=0.02)


def test_a_retry_reaches_every_other_member_and_then_nobody() -> None:
    group = [Member("a", region="eu"), Member("b", region="us"), Member("c", priority=1)]
    for policy in POLICIES:
        balance = balancer(group, policy)
        tried: list[Member] = []
        for _ in group:
            member = balance.pick(0.0, key=1, region="eu", avoid=tried)
            assert member is not None
            tried.append(member)
        assert set(tried) == set(group)
        assert tried[-1].name == "c"
        assert balance.pick(0.0, key=1, region="eu", avoid=tried) is None


@given(described=MEMBERS, policy=st.sampled_from(POLICIES), avoided=st.sets(st.integers(0, 7)), seed=st.integers(0, 99))
def test_a_pick_is_always_somebody_who_may_be_picked(
    described: list[tuple[int, int, str, bool]], policy: Policy, avoided: set[int], seed: int
) -> None:
    members = [
        Member(f"m{at}", weight=weight, priority=priority, region=region, available=available)
        for at, (weight, priority, region, available) in enumerate(described)
    ]
    avoid = [member for at, member in enumerate(members) if at in avoided]
    balance = Balancer(policy, members, Random(seed))
    weighty = [member for member in members if member.weight]
    for key in range(20):
        member = balance.pick(0.0, key=key, region="eu", avoid=avoid)
        if member is None:
            assert all(member in avoid for member in weighty if member.available)
        else:
            assert member in weighty
            assert member not in avoid
            assert member.available or balance.healthy_panic
    if weighty:
        assert balance.pick(0.0) is not None


@pytest.mark.parametrize("policy", POLICIES)
@given(who=MEMBERS, region=st.sampled_from(["", "eu"]))
def test_the_usual_picker_picks_as_the_balancer_does(
    policy: Policy, who: list[tuple[int, int, str, bool]], region: str
) -> None:
    members = [
        Member(f"m{at}", weight=weight, priority=priority, region=place, available=available)
        for at, (weight, priority, place, available) in enumerate(who)
    ]
    one, other = balancer(members, policy), balancer(members, policy)
    if one.usual is None:
        return
    for number in range(20):
        key = hash_key(b"%d" % number)
        picked = one.usual.pick(0.0, key, ())
        assert picked is other.pick(0.0, key=key, region=region)
        assert picked is not None
        picked.active += 1
    assert other.healthy_panic == 0


def test_where_there_is_a_choice_to_make_nobody_picks_as_usual() -> None:
    plain = [Member("a"), Member("b")]
    assert balancer(plain).usual is not None
    assert balancer([*plain, Member("c", available=False)]).usual is not None
    assert balancer([]).usual is None
    assert balancer([Member("a", available=False), Member("b", available=False)]).usual is None  # a panic
    assert balancer([Member("a", region="eu"), Member("b", region="us")]).usual is None
    assert balancer([Member("a"), Member("b", available=False), Member("c", priority=1)]).usual is None
