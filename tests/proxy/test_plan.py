"""plan: strict tiers, vetoes with their reasons, and a next step that never asks the same place twice in vain."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.openai import OpenAI
from headgate.proxy.errors import (
    BadStatusError,
    BudgetExceededError,
    BusyStatusError,
    ConnectError,
    GatewayError,
    ModelNotAllowedError,
    NoTargetError,
    ProviderNotConfiguredError,
    ResetError,
    UpstreamAuthError,
)
from headgate.proxy.exchange import Veto
from headgate.proxy.plan import (
    BACKOFF_MAX,
    BUDGET,
    POLICY,
    PRICE_UNKNOWN,
    Plan,
    RetryPolicy,
    Step,
    Target,
    Vetoed,
    backoff,
    build_plan,
    next_step,
    rejection,
)
from headgate.proxy.upstream.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable


def _target(name: str, *, priority: int = 0, unconfigured: bool = False, stand_in: bool = False) -> Target:
    cluster = Cluster(
        name, OpenAI(), (), unconfigured=unconfigured, credential_origin=f"{name.upper()}_KEY", stand_in=stand_in
    )
    return Target(cluster, "m", priority=priority)


def _names(plan: Plan) -> list[str]:
    return [target.cluster.name for target in plan.targets]


class ByName:
    """Ranks by the cluster's name, backwards."""

    name = "by-name"

    def score(self, target: Target) -> float:
        return -ord(target.cluster.name[0])


def test_config_order_is_kept_inside_a_tier_and_tiers_are_strict() -> None:
    plan = build_plan([_target("b", priority=1), _target("a"), _target("c")], [], None, 0.0)
    assert _names(plan) == ["a", "c", "b"]


def test_a_scorer_ranks_inside_its_tier_only() -> None:
    plan = build_plan([_target("a", priority=1), _target("b"), _target("c")], [], ByName(), 0.0)
    assert _names(plan) == ["c", "b", "a"]


def test_a_veto_takes_a_target_out_and_its_reason_is_kept() -> None:
    targets = [_target("a"), _target("b")]
    veto = Veto(lambda target: "tired" if target is targets[0] else None, soft=True)
    plan = build_plan(targets, [veto], None, 0.0)
    assert _names(plan) == ["b"]
    assert plan.vetoed == (Vetoed(targets[0], "tired", True),)


def test_a_veto_that_is_idle_is_not_asked() -> None:
    targets = [_target("a"), _target("b")]
    veto = Veto(lambda _: "tired", soft=False)
    veto.idle = True
    assert _names(build_plan(targets, [veto], None, 0.0)) == ["a", "b"]
    veto.idle = False
    assert _names(build_plan(targets, [veto], None, 0.0)) == []


def test_the_stand_in_answers_while_nobody_else_is_configured() -> None:
    plan = build_plan([_target("a", unconfigured=True), _target("mock", stand_in=True, priority=1)], [], None, 0.0)
    assert _names(plan) == ["mock"]


def test_the_stand_in_never_replaces_a_provider_that_is_configured() -> None:
    targets = [_target("a"), _target("mock", stand_in=True, priority=1)]
    vetoed = build_plan(targets, [Veto(lambda target: "down" if target is targets[0] else None, soft=True)], None, 0.0)
    assert _names(vetoed) == []
    error = rejection("m", vetoed.vetoed, 0.0)
    assert isinstance(error, NoTargetError)
    assert "a: down" in error.message
    assert "mock" not in error.message


def test_missing_credentials_are_named() -> None:
    plan = build_plan([_target("a", unconfigured=True), _target("b", unconfigured=True)], [], None, 0.0)
    error = rejection("m", plan.vetoed, 0.0)
    assert isinstance(error, ProviderNotConfiguredError)
    assert "A_KEY, B_KEY" in error.message
    assert error.hopeless


def test_policy_alone_is_a_403() -> None:
    plan = build_plan([_target("a")], [Veto(lambda _: POLICY, soft=False)], None, 0.0)
    assert isinstance(rejection("m", plan.vetoed, 0.0), ModelNotAllowedError)


def test_money_alone_or_beside_policy_is_a_402() -> None:
    dear, other = Vetoed(_target("a"), BUDGET, soft=False), Vetoed(_target("b"), POLICY, soft=False)
    unpriced, resting = Vetoed(_target("c"), PRICE_UNKNOWN, soft=False), Vetoed(_target("d"), "cooling", soft=True)
    assert rejection("m", [dear, other, unpriced], 0.0).code == "budget_exceeded"
    assert "is not known" in (unknown := rejection("m", [unpriced], 0.0)).message
    assert (unknown.status, unknown.code) == (402, "price_unknown")
    assert rejection("m", [dear, resting], 0.0).status == 503
    said = BudgetExceededError("3 USD is left")
    assert rejection("m", [unpriced, dear._replace(error=said)], 0.0) is said


def _nobody(_: Target) -> bool:
    return False


def _next(
    plan: Plan,
    tried: list[Target],
    error: GatewayError,
    *,
    remaining: float = 100.0,
    vetoed: Callable[[Target], bool] = _nobody,
    strained: Callable[[Target], bool] = _nobody,
    spare: Callable[[Target], bool] = _nobody,
) -> Step | None:
    return next_step(
        plan, tried, error, remaining=remaining, rng=Random(1), vetoed=vetoed, strained=strained, spare=spare
    )


def _step(plan: Plan, tried: list[Target], error: GatewayError, *, remaining: float = 100.0) -> Target | None:
    step = _next(plan, tried, error, remaining=remaining)
    return step.target if step is not None else None


@pytest.mark.parametrize("error", [BadStatusError("x"), ResetError("x"), ConnectError("x"), BusyStatusError("x")])
def test_the_next_untried_target_comes_first(error: GatewayError) -> None:
    a, b = _target("a"), _target("b")
    assert _step(Plan((a, b), ()), [a], error) is b


def test_the_same_target_again_only_when_it_cannot_have_heard_of_it() -> None:
    a = _target("a")
    plan = Plan((a,), ())
    assert _step(plan, [a], ConnectError("x")) is a
    assert _step(plan, [a], ResetError("x")) is None
    assert _step(plan, [a], BadStatusError("x")) is None


def test_a_lone_429_is_waited_for_when_it_fits() -> None:
    a = _target("a")
    plan = Plan((a,), ())
    busy = BusyStatusError("x", retry_after=5.0)
    step = _next(plan, [a], busy)
    assert step is not None
    assert step.delay == 5.0
    assert _step(plan, [a], busy, remaining=4.0) is None
    assert _step(plan, [a], BusyStatusError("x", retry_after=61.0)) is None
    assert _step(plan, [a], BusyStatusError("x")) is None


def test_a_target_vetoed_meanwhile_is_not_tried() -> None:
    a, b = _target("a"), _target("b")
    step = _next(Plan((a, b), ()), [a], ConnectError("x"), vetoed=lambda target: target is b)
    assert step is not None
    assert step.target is a
    assert _next(Plan((a,), ()), [a], ConnectError("x"), vetoed=lambda _: True) is None
    strained = _next(Plan((a, b), ()), [a], ConnectError("x"), strained=lambda target: target is b)
    assert strained is not None
    assert strained.target is a
    assert _next(Plan((a,), ()), [a], ConnectError("x"), strained=lambda _: True) is None


def test_another_endpoint_or_key_of_the_same_target_comes_before_the_next_target() -> None:
    a, b = _target("a"), _target("b")
    for error in (BadStatusError("x"), ResetError("x"), BusyStatusError("x"), UpstreamAuthError("x")):
        step = _next(Plan((a, b), ()), [a], error, spare=lambda target: target is a)
        assert step is not None
        assert step.target is a
        vetoed = _next(Plan((a, b), ()), [a], error, spare=lambda _: True, vetoed=lambda target: target is a)
        assert vetoed is not None
        assert vetoed.target is b


def test_a_refused_key_is_worth_another_try_whatever_the_policy_says() -> None:
    policy = RetryPolicy(2, frozenset())
    assert policy.allows(UpstreamAuthError("x"), 1)
    assert not policy.allows(UpstreamAuthError("x"), 2)
    assert not policy.allows(BadStatusError("x"), 1)


def test_the_policy_counts_attempts_and_asks_what_failed() -> None:
    policy = RetryPolicy(2, frozenset({"5xx"}))
    assert policy.allows(BadStatusError("x"), 1)
    assert not policy.allows(BadStatusError("x"), 2)
    assert not policy.allows(ResetError("x"), 1)
    assert not policy.allows(GatewayError("x"), 1)


@given(made=st.integers(1, 40), seed=st.integers())
def test_backoff_is_full_jitter_under_a_doubling_bound(made: int, seed: int) -> None:
    delay = backoff(made, Random(seed))
    assert 0 <= delay <= min(BACKOFF_MAX, 0.025 * 2 ** (made - 1))


class _Top(Random):
    def random(self) -> float:
        return 1.0


def test_backoff_doubles_from_25_to_250_ms() -> None:
    assert [backoff(made, cast("Random", _Top())) for made in range(1, 6)] == [0.025, 0.05, 0.1, 0.2, 0.25]
