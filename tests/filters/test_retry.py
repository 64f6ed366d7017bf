"""retry: installs its policy, and a failure is followed by another attempt only as far as that says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import RetryBudget, RetryConfig, parse_config
from headgate.filters.retry import Retry
from headgate.proxy.errors import (
    BadStatusError,
    BrokenAnswerError,
    BusyStatusError,
    ConnectError,
    ConnectTimeoutError,
    ErrorEventError,
    GatewayError,
    InvalidRequestError,
    NoTargetError,
    PoolOverflowError,
    ProtocolError,
    ResetError,
    UpstreamAuthError,
    UpstreamTimeoutError,
)
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import config_for, gateway_over, gateway_over_two, running_gateway
from tests_support.upstream import RST, FakeUpstream, in_turn

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange
    from headgate.proxy.plan import RetryPolicy
    from tests_support.upstream import Step

CONDITIONS = ("connect-failure", "reset", "5xx", "429", "timeout")
FAILURES: list[tuple[type[GatewayError], str | None]] = [
    (ConnectError, "connect-failure"),
    (ConnectTimeoutError, "connect-failure"),
    (ResetError, "reset"),
    (ProtocolError, "reset"),
    (BrokenAnswerError, "reset"),
    (BadStatusError, "5xx"),
    (ErrorEventError, "5xx"),
    (BusyStatusError, "429"),
    (UpstreamTimeoutError, "timeout"),
    (UpstreamAuthError, "credential"),
    (InvalidRequestError, None),
    (NoTargetError, None),
    (PoolOverflowError, None),
]
WHOLE = json_response(chat_completion())


def policy(config: RetryConfig | None = None, **options: Any) -> RetryPolicy:
    """What an exchange finds after the filter."""
    ex = cast("Exchange", SimpleNamespace(retry=None))
    Retry(config or RetryConfig(), **options).on_request(ex)
    assert ex.retry is not None
    return ex.retry


def test_the_defaults_are_those_of_the_manual() -> None:
    made = policy()
    assert (made.attempts, made.on) == (3, frozenset({"connect-failure", "reset", "5xx", "429"}))
    assert (made.budget_percent, made.budget_min_per_second) == (20, 10)


def test_the_file_says_otherwise() -> None:
    config = parse_config(
        'filters: [{retry: {attempts: 5, "on": ["5xx"], budget: {percent: 50, min_per_second: 1.5}}}]', env={}
    )
    settings = config.filters[0].config
    assert isinstance(settings, RetryConfig)
    made = policy(settings)
    assert (made.attempts, made.on, made.budget_percent, made.budget_min_per_second) == (5, frozenset({"5xx"}), 50, 1.5)


def test_workers_share_the_retries_that_are_always_allowed() -> None:
    made = policy(RetryConfig(budget=RetryBudget(min_per_second=10)), workers=4)
    assert (made.budget_percent, made.budget_min_per_second) == (20, 2.5)


def test_it_needs_no_body_and_stands_behind_auth() -> None:
    assert (Retry.reads_body, Retry.after) == (False, ("auth",))


@pytest.mark.parametrize(("failure", "condition"), FAILURES, ids=lambda value: getattr(value, "__name__", value))
def test_each_failure_is_repeated_under_its_own_word_alone(failure: type[GatewayError], condition: str | None) -> None:
    for word in CONDITIONS:
        made = policy(RetryConfig(on=frozenset({word})))  # type: ignore[arg-type]  # a list of literals
        # Another key or provider is tried whenever ours is refused: nothing was done, and no client can mend it.
        assert made.allows(failure("…"), 1) == (word == condition or condition == "credential")


@given(st.integers(1, 10), st.integers(1, 20), st.sampled_from([failure for failure, _ in FAILURES]))
def test_there_are_never_more_attempts_than_it_says(attempts: int, made: int, failure: type[GatewayError]) -> None:
    every = policy(RetryConfig(attempts=attempts, on=frozenset(CONDITIONS)))  # type: ignore[arg-type]  # as above
    assert not every.allows(failure("…"), made) or made < attempts


async def test_a_failing_provider_is_followed_by_the_next_one() -> None:
    async with gateway_over_two([RST], WHOLE) as (gateway, first, second):
        answer = await gateway.post()
        [row] = await gateway.rows(1)
        assert (len(first.requests), len(second.requests)) == (1, 1)
    assert (answer.status, answer.header("x-headgate-attempts"), row.attempts, row.provider) == (200, "2", 2, "up2")


async def test_without_the_filter_there_is_one_attempt() -> None:
    async with gateway_over_two([RST], WHOLE, retry=False) as (gateway, first, second):
        answer = await gateway.post()
        assert (answer.status, len(first.requests), len(second.requests)) == (502, 1, 0)


async def test_what_is_not_on_the_list_is_not_repeated() -> None:
    changes = {"filters": [{"retry": {"on": ["reset"]}}]}
    async with gateway_over(in_turn(error_response(500, "no"), WHOLE), auth=False, changes=changes) as (gateway, up):
        answer = await gateway.post(key=None)
        assert (answer.status, len(up.requests)) == (500, 1)


async def test_a_route_may_switch_it_off_or_say_otherwise() -> None:
    routes = [
        {"name": "once", "match": {"model": "once"}, "filters": {"retry": "off"}},
        {"name": "busy", "match": {"model": "busy"}, "filters": {"retry": {"on": ["429"]}}},
    ]
    script: list[Step] = [error_response(500, "no")]
    async with (
        FakeUpstream(script) as first,
        FakeUpstream(script) as second,
        running_gateway({**config_for(first, second), "routes": routes}) as gateway,
    ):
        made = {
            model: (await gateway.post(b'{"model":"%s","messages":[]}' % model.encode())).header("x-headgate-attempts")
            for model in ("any", "once", "busy")
        }
    assert made == {"any": "2", "once": "1", "busy": "1"}
