"""credentials: keys take turns by weight; a refused one is left alone and tried again, a limited one waits its time."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.credentials import MAX_MODEL_LENGTH, Cooling, Credential, Credentials


def key(name: str, weight: int = 1, value: bytes = b"x") -> Credential:
    return Credential(name, ((b"authorization", b"Bearer " + value),), weight=weight)


def names(keys: Credentials, picks: int, model: str = "m", now: float = 0.0) -> str:
    picked = [keys.pick(model, now) for _ in range(picks)]
    return "".join(credential.name if credential else "-" for credential in picked)


def test_keys_take_turns_smoothly_by_weight() -> None:
    assert names(Credentials([key("a", 5), key("b"), key("c")]), 14) == "aabacaa" * 2


def test_a_key_of_weight_zero_is_never_used() -> None:
    assert names(Credentials([key("a", 0), key("b")]), 3) == "bbb"


def test_no_keys_are_never_available() -> None:
    keys = Credentials([])
    assert keys.pick("m", 0.0) is None
    assert keys.soonest("m", 0.0) == inf
    assert not keys.limited("m", 0.0)
    assert len(keys) == 0


def test_a_key_does_not_show_its_secret() -> None:
    assert repr(key("a", value=b"secret")) == "<Credential a>"


def test_a_refused_key_is_left_alone_for_a_minute() -> None:
    first, second = key("a"), key("b")
    keys = Credentials([first, second])
    keys.on_refused(first, now=100.0)
    assert names(keys, 4, now=159.9) == "bbbb"
    assert keys.soonest("m", 159.9) == 0
    assert "a" in names(keys, 4, now=160.0)


def test_one_attempt_tries_a_refused_key_and_a_success_makes_it_whole() -> None:
    only = key("a")
    keys = Credentials([only])
    keys.on_refused(only, now=0.0)
    assert keys.soonest("m", 10.0) == 50
    assert names(keys, 3, now=60.0) == "a--"
    keys.on_success(only)
    assert names(keys, 3, now=60.0) == "aaa"
    assert keys.soonest("m", 60.0) == 0


def test_each_further_refusal_doubles_the_time_up_to_ten_minutes() -> None:
    only = key("a")
    keys = Credentials([only])
    now, waits = 0.0, []
    for _ in range(6):
        keys.on_refused(only, now)
        waits.append(keys.soonest("m", now))
        now += waits[-1]
        assert keys.pick("m", now) is only
    assert waits == [60, 120, 240, 480, 600, 600]


def test_refusals_of_attempts_that_ran_side_by_side_are_one() -> None:
    only = key("a")
    keys = Credentials([only])
    for _ in range(20):
        keys.on_refused(only, now=0.0)
    assert keys.soonest("m", 0.0) == 60


def test_a_trial_without_an_outcome_is_repeated_after_a_minute() -> None:
    only = key("a")
    keys = Credentials([only])
    keys.on_refused(only, now=0.0)
    assert names(keys, 2, now=60.0) == "a-"
    assert names(keys, 2, now=119.0) == "--"
    assert names(keys, 2, now=120.0) == "a-"


def test_a_limit_is_for_one_model_and_one_key() -> None:
    first, second = key("a"), key("b")
    keys = Credentials([first, second])
    keys.on_limited(first, "m", 30.0, now=0.0)
    assert names(keys, 3, "m", now=29.9) == "bbb"
    assert "a" in names(keys, 2, "other", now=1.0)
    keys.on_limited(second, "m", 20.0, now=0.0)
    assert keys.pick("m", 5.0) is None
    assert keys.soonest("m", 5.0) == 15
    assert keys.soonest("other", 5.0) == 0
    assert keys.pick("m", 20.0) is second


@pytest.mark.parametrize(("asked", "waited"), [(None, 5), (0.25, 0.25), (86_400, 300), (0, 0)])
def test_a_limit_lasts_as_long_as_asked_within_bounds(asked: float | None, waited: float) -> None:
    only = key("a")
    keys = Credentials([only])
    keys.on_limited(only, "m", asked, now=0.0)
    assert keys.soonest("m", 0.0) == waited


def test_a_later_answer_does_not_shorten_a_limit() -> None:
    only = key("a")
    keys = Credentials([only])
    keys.on_limited(only, "m", 60.0, now=0.0)
    keys.on_limited(only, "m", 1.0, now=1.0)
    keys.on_success(only)
    assert keys.soonest("m", 2.0) == 58


def test_a_limited_key_was_accepted() -> None:
    only = key("a")
    keys = Credentials([only])
    keys.on_refused(only, now=0.0)
    assert keys.pick("m", 60.0) is only
    keys.on_limited(only, "m", 1.0, now=60.0)
    assert names(keys, 2, now=62.0) == "aa"


def test_whether_a_limit_is_why_nobody_is_available() -> None:
    first, second = key("a"), key("b")
    keys = Credentials([first, second])
    assert not keys.limited("m", 0.0)
    keys.on_refused(first, now=0.0)
    assert not keys.limited("m", 0.0)
    keys.on_limited(second, "m", 10.0, now=0.0)
    assert keys.limited("m", 0.0)
    keys.on_refused(second, now=0.0)
    assert not keys.limited("m", 0.0)


def test_what_is_known_of_a_key_stays_with_those_that_take_its_place() -> None:
    first, second = key("a"), key("b")
    keys = Credentials([first, second])
    keys.on_refused(first, now=0.0)
    keys.on_limited(second, "m", 100.0, now=0.0)
    keys = Credentials([key("a", 3), key("b", 2), key("c", value=b"new")], before=keys)
    assert names(keys, 3, now=1.0) == "ccc"
    assert sorted(names(keys, 3, "other", now=1.0)) == ["b", "b", "c"]
    keys = Credentials([key("a", value=b"another"), key("c", value=b"new")], before=keys)
    assert sorted(names(keys, 2, now=1.0)) == ["a", "c"]
    assert len(keys._cooling) == 0
    assert keys.soonest("m", 1.0) == 0


def test_what_a_removed_key_still_says_changes_nothing() -> None:
    gone, stays = key("a"), key("b")
    keys = Credentials([stays], before=Credentials([gone, stays]))
    keys.on_refused(gone, now=0.0)
    keys.on_limited(gone, "m", 60.0, now=0.0)
    keys.on_success(gone)
    assert names(keys, 2) == "bb"


def test_what_cools_is_bounded_and_forgets_what_ends_first() -> None:
    only, cooling = key("a"), Cooling(bound=3)
    for at, end in enumerate((50.0, 10.0, 30.0, 40.0)):
        cooling.cool(only, f"m{at}", end, now=0.0)
    assert [cooling.until(only, f"m{at}") for at in range(4)] == [50, 0, 30, 40]
    cooling.cool(only, "m4", 90.0, now=45.0)
    assert len(cooling) == 2
    cooling.cool(only, "m" * (MAX_MODEL_LENGTH + 1), 90.0, now=45.0)
    assert len(cooling) == 2


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["pick", "success", "refused", "limited", "wait"]),
        st.integers(0, 2),
        st.sampled_from(["m", "n"]),
        st.floats(0, 400),
    ),
    max_size=80,
)


@given(events=EVENTS)
def test_a_pick_and_what_is_said_about_it_agree(events: list[tuple[str, int, str, float]]) -> None:
    group = [key("a"), key("b", 2), key("c", 3)]
    keys = Credentials(group, bound=4)
    now = 0.0
    limits: dict[tuple[str, str], float] = {}
    for what, at, model, seconds in events:
        credential = group[at]
        match what:
            case "success":
                keys.on_success(credential)
            case "refused":
                keys.on_refused(credential, now)
            case "limited":
                keys.on_limited(credential, model, seconds, now)
                end = now + min(seconds, 300)
                limits[credential.name, model] = max(end, limits.get((credential.name, model), 0))
            case "wait":
                now += seconds
            case _:
                wait = keys.soonest(model, now)
                picked = keys.pick(model, now)
                assert (picked is None) == (wait > 0)
                assert wait <= 600
                if picked is not None:
                    assert len(limits) > 4 or limits.get((picked.name, model), 0) <= now
                else:
                    assert keys.pick(model, now + wait) is not None


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_turns_are_exact_over_each_round(weights: list[int]) -> None:
    keys = Credentials([key(f"k{at}", weight) for at, weight in enumerate(weights)])
    seen = Counter(credential.name for _ in range(sum(weights)) if (credential := keys.pick("m", 0.0)) is not None)
    assert seen == {f"k{at}": weight for at, weight in enumerate(weights)}
