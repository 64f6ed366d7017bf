"""replies: every error has the four keys, an id, and whatever a client needs to know about trying again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy import errors
from headgate.proxy.errors import (
    BadStatusError,
    BudgetExceededError,
    GatewayError,
    MethodNotAllowedError,
    OverLimitError,
    OverloadError,
    ProviderNotConfiguredError,
    RateLimitError,
)
from headgate.proxy.replies import Reply, error_body, error_reply, internal_error, json_reply

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GatewayError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_openais_shape_and_its_class_says_all(kind: type[GatewayError]) -> None:
    reply = error_reply(kind("what to do"), "hg_1")
    assert reply.status == kind.status
    assert 400 <= reply.status < 600
    body = json.loads(reply.body)["error"]
    assert body == {"message": "what to do", "type": kind.type, "param": None, "code": kind.code, "request_id": "hg_1"}
    assert kind.outcome in ("refused", "failed")
    assert (kind.outcome == "refused") is issubclass(kind, errors.DownstreamError | OverloadError)
    assert (b"retry-after" in dict(reply.headers)) is (reply.status in (429, 503) and kind is not OverLimitError)


@pytest.mark.parametrize(
    ("wait", "sent"), [(None, b"1"), (0.0, b"1"), (0.2, b"1"), (7.1, b"8"), (60.0, b"60"), (3600.0, b"60")]
)
def test_a_wait_is_in_whole_seconds_that_an_sdk_obeys(wait: float | None, sent: bytes) -> None:
    assert dict(error_reply(OverloadError("x", retry_after=wait)).headers)[b"retry-after"] == sent


@pytest.mark.parametrize(("wait", "sent", "later"), [(7.1, b"8", False), (60.0, b"60", False), (60.1, b"61", True)])
def test_a_limit_of_ours_says_how_long_it_lasts_even_where_no_sdk_waits(wait: float, sent: bytes, later: bool) -> None:
    headers = dict(error_reply(RateLimitError("x", retry_after=wait, fields=[(b"x-left", b"0")])).headers)
    assert (headers[b"retry-after"], headers[b"x-left"]) == (sent, b"0")
    assert (headers.get(b"x-should-retry") == b"false") is later


@pytest.mark.parametrize(("wait", "sent"), [(None, None), (0.2, b"1"), (2_000_000.5, b"2000001")])
def test_a_budget_says_when_there_is_a_new_one_and_that_no_sdk_should_try_before(
    wait: float | None, sent: bytes | None
) -> None:
    headers = dict(error_reply(BudgetExceededError("x", retry_after=wait)).headers)
    assert (headers.get(b"retry-after"), headers[b"x-should-retry"]) == (sent, b"false")


def test_nobody_is_told_to_wait_for_what_will_never_fit() -> None:
    headers = dict(error_reply(OverLimitError("x", retry_after=5)).headers)
    assert (headers.get(b"retry-after"), headers[b"x-should-retry"]) == (None, b"false")


@pytest.mark.parametrize(
    ("error", "attempts", "hopeless"),
    [
        (BadStatusError("x"), 0, False),
        (BadStatusError("x"), 1, False),
        (BadStatusError("x"), 2, True),
        (ProviderNotConfiguredError("x"), 0, True),
    ],
)
def test_an_sdk_is_told_not_to_multiply_our_tries(error: GatewayError, attempts: int, hopeless: bool) -> None:
    headers = dict(error_reply(error, attempts=attempts).headers)
    assert (headers.get(b"x-should-retry") == b"false") is hopeless


def test_the_allowed_methods_are_named() -> None:
    assert dict(error_reply(MethodNotAllowedError("x", allow="GET, POST")).headers)[b"allow"] == b"GET, POST"
    assert b"allow" not in dict(error_reply(MethodNotAllowedError("x")).headers)


def test_the_detail_is_for_the_log_alone() -> None:
    assert b"10.0.0.7" not in error_reply(BadStatusError("x", detail="10.0.0.7 said no")).body


def test_a_param_is_named_and_an_id_left_out_where_there_is_none() -> None:
    body = json.loads(error_body(errors.MissingModelError("x", param="model")))["error"]
    assert body == {"message": "x", "type": "invalid_request_error", "param": "model", "code": "missing_model"}


def test_a_bug_is_a_500_that_says_nothing_of_itself() -> None:
    error = internal_error()
    assert (error.status, error.code, error.outcome) == (500, "internal_error", "failed")


def test_a_reply_is_json_unless_it_says_otherwise() -> None:
    assert json_reply({"a": [1]}, 201).body == b'{"a":[1]}'
    assert json_reply({}).headers == [(b"content-type", b"application/json")]
    assert Reply(200, b"x", [(b"content-type", b"text/plain")]).headers == [(b"content-type", b"text/plain")]


@given(st.text(alphabet=st.characters(), max_size=50))
def test_any_message_makes_a_body(message: str) -> None:
    """A path that is not UTF-8 is quoted with lone surrogates."""
    assert set(json.loads(error_body(GatewayError(message)))["error"]) == {"message", "type", "param", "code"}
