"""chain: a moment nobody overrides costs nothing, the prefix is the same for all, and a wrong order is found."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.chain import Chain, misplaced, prefix_length
from headgate.proxy.filter import Event, Filter

EX = cast("Any", object())


class Plain(Filter):
    """Overrides nothing."""


class Request(Filter):
    def on_request(self, ex: Any) -> None: ...


class AsyncRequest(Filter):
    async def on_request(self, ex: Any) -> None: ...


class Early(Request):
    reads_body = False


class Auth(Early):
    admits = True


class Attempts(Filter):
    def on_attempt(self, ex: Any, attempt: Any) -> None: ...
    def on_attempt_end(self, ex: Any, attempt: Any) -> None: ...


class Ends(Filter):
    def on_attempt_end(self, ex: Any, attempt: Any) -> None: ...


class Rest(Filter):
    def on_response(self, ex: Any, head: Any) -> None: ...
    def on_bytes(self, ex: Any, data: bytes) -> None: ...
    def on_done(self, ex: Any) -> None: ...
    def on_record(self, ex: Any, record: Any) -> None: ...


class Says(Filter):
    """Gives what it is told for every event."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def on_event(self, ex: Any, event: Event) -> Any:
        return [Event(event.raw + one) for one in self.given] if self.given != (None,) else None


def test_only_moments_that_are_overridden_are_in_it() -> None:
    chain = Chain([Plain(), Plain()])
    assert not any(
        (chain.requests, chain.attempts, chain.attempt_ends, chain.responses, chain.observers, chain.events, chain.done)
    )
    assert chain.records == ()
    assert chain.byte_path
    assert chain.admission == -1


def test_requests_run_downwards_and_the_others_upwards() -> None:
    first, second = Rest(), Rest()
    attempts, ends = Attempts(), Ends()
    chain = Chain([Request(), first, AsyncRequest(), second, attempts, ends])
    assert [(step.position, step.reached) for step in chain.requests] == [(0, 0), (2, 2)]
    assert chain.requests[0].rest == chain.requests[1:]
    assert chain.responses == ((3, second.on_response), (1, first.on_response))
    assert chain.observers == (second.on_bytes, first.on_bytes)
    assert chain.done == ((3, second.on_done), (1, first.on_done))
    assert chain.records == ((3, second.on_record), (1, first.on_record))
    assert chain.attempts == ((attempts.on_attempt, attempts.on_attempt_end),)
    assert chain.attempt_ends == (ends.on_attempt_end, attempts.on_attempt_end)


def test_what_reserves_runs_once_more_when_all_have_let_pass() -> None:
    class Reserves(Request):
        reserves = True

    chain = Chain([Reserves(), Request(), Reserves(), Plain()])
    assert [(step.position, step.reached) for step in chain.reservations] == [(0, 4), (2, 4)]
    assert chain.reservations[0].rest == chain.reservations[1:]


def test_a_rest_begins_where_the_prefix_ends_and_knows_all_of_it() -> None:
    chain = Chain([Auth(), Early(), Request()], 2)
    assert [step.position for step in chain.requests] == [2]
    assert chain.admission == 0
    assert len(chain.filters) == 3


@pytest.mark.parametrize(
    ("kinds", "overridden", "length"),
    [
        ([], [], 0),
        ([Auth, Early], [], 2),
        ([Auth, Request, Early], [], 1),
        ([Request], [], 0),
        ([Auth, Early, Early], ["1"], 1),
        ([Auth, Early], ["nobody"], 2),
    ],
)
def test_the_prefix_ends_at_the_body_or_at_what_a_route_changes(
    kinds: list[type[Filter]], overridden: list[str], length: int
) -> None:
    links = [kind() for kind in kinds]
    for place, link in enumerate(links):
        link.name = str(place)
    assert prefix_length(links, frozenset(overridden)) == length


def test_a_filter_above_one_it_must_follow_is_found() -> None:
    assert misplaced(["retry", "auth", "budget"], [("auth",), (), ("auth", "retry")]) == [(0, "auth")]
    assert misplaced(["auth", "retry"], [(), ("auth",)]) == []
    assert misplaced([], []) == []


@pytest.mark.parametrize(
    ("said", "relayed"),
    [
        ([Says(b"1")], b"x1"),
        ([Says(b"2"), Says(b"1")], b"x12"),
        ([Says(b"b", b"c"), Says(b"1", b"2")], b"x1bx1cx2bx2c"),
        ([Says(b"2"), Says(None)], b""),
        ([Says(), Says(b"1")], b""),
    ],
)
def test_events_are_replaced_split_and_dropped_bottom_to_top(said: list[Filter], relayed: bytes) -> None:
    assert Chain(said).rewrite(EX, b"x") == relayed


def test_an_event_that_is_given_back_stays_as_it_is() -> None:
    class Same(Filter):
        def on_event(self, ex: Any, event: Event) -> Event:
            return event

    chain = Chain([Same(), Same()])
    assert not chain.byte_path
    assert chain.rewrite(EX, b"data: x\n\n") == b"data: x\n\n"


def test_the_defaults_of_a_filter_do_nothing() -> None:
    """Whoever calls `super()` gets what not overriding would have given."""
    link, event = Plain(), Event(b"x")
    assert link.on_request(EX) is None
    for moment in (link.on_attempt, link.on_attempt_end, link.on_response, link.on_bytes):
        moment(EX, cast("Any", None))
    link.on_done(EX)
    link.on_record(EX, None)
    assert link.on_event(EX, event) is event
    assert isinstance(Plain.from_config({}), Plain)


@given(st.lists(st.sampled_from([Plain, Request, AsyncRequest, Early, Attempts, Ends, Rest]), max_size=12))
def test_prefix_and_rest_together_run_every_request_once_and_in_order(kinds: list[type[Filter]]) -> None:
    links = [kind() for kind in kinds]
    length = prefix_length(links, frozenset())
    steps = (*Chain(links[:length]).requests, *Chain(links, length).requests)
    expected = [place for place, kind in enumerate(kinds) if kind in (Request, AsyncRequest, Early)]
    assert [step.position for step in steps] == expected
