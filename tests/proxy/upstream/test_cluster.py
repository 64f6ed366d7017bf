"""cluster: every place is given back once, keys and hosts rest when they should, and who waits is served."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.openai import OpenAI
from headgate.proxy.clock import NEVER, Deadlines
from headgate.proxy.errors import (
    BadStatusError,
    BusyStatusError,
    ConnectError,
    ErrorEventError,
    GatewayError,
    NoTargetError,
    PoolOverflowError,
    UpstreamTimeoutError,
)
from headgate.proxy.upstream.balance import Balancing
from headgate.proxy.upstream.call import CallReceiver, UpstreamRequest
from headgate.proxy.upstream.cluster import (
    COOLING,
    OVERLOADED,
    REFUSED,
    UNHEALTHY,
    Cluster,
)
from headgate.proxy.upstream.credentials import Credential
from headgate.proxy.upstream.host import Host
from headgate.proxy.upstream.limits import LimitSettings
from headgate.proxy.upstream.outlier import OutlierSettings
from headgate.proxy.upstream.place import Needs
from tests_support.calls import FakeEndpoint
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.proxy.upstream.call import Call, ResponseHead

MODEL = "m"


class Caller(CallReceiver):
    """Holds a place; remembers the errors it was told."""

    def __init__(self) -> None:
        self.host: Host | None = None
        self.credential: Credential | None = None
        self.tokens = 0
        self.call: Call | None = None
        self.errors: list[GatewayError] = []

    def on_sent(self, call: Call) -> None: ...
    def on_head(self, call: Call, head: ResponseHead) -> None: ...
    def on_data(self, call: Call, data: bytes) -> None: ...
    def on_end(self, call: Call, clean: bool) -> None: ...

    def on_error(self, call: Call, error: GatewayError) -> None:
        self.errors.append(error)


class Bench:
    """A cluster of `hosts` fake endpoints, on a clock that moves when told."""

    def __init__(self, hosts: int = 1, keys: Sequence[Credential] = (), **settings: Any) -> None:
        self.clock = FakeClock()
        self.deadlines = Deadlines(self.clock)
        self.hosts = [Host(FakeEndpoint(f"http://up{n}")) for n in range(hosts)]
        self.cluster = Cluster(
            "up", OpenAI(), self.hosts, credentials=keys, deadlines=self.deadlines, rng=Random(3), **settings
        )

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def start(self, needs: Needs = Needs(), model: str = MODEL) -> Caller:  # noqa: B008 - immutable
        caller = Caller()
        request = UpstreamRequest(b"POST", b"/x", [], b"{}")
        caller.call = self.cluster.start(request, caller, model, self.now, needs)
        return caller

    def end(self, caller: Caller, error: GatewayError | None = None, *, status: int = 200, left: bool = False) -> None:
        self.cluster.end(caller, self.now, error, status=status, cancelled=left)

    def sent_to(self, caller: Caller) -> FakeEndpoint:
        assert caller.host is not None
        endpoint = caller.host.endpoint
        assert isinstance(endpoint, FakeEndpoint)
        return endpoint

    def objection(self, model: str = MODEL) -> str | None:
        return self.cluster.objection(model, self.now) if self.cluster.strained else None


def key(name: str, weight: int = 1) -> Credential:
    return Credential(name, ((b"authorization", b"Bearer " + name.encode()),), weight=weight)


# -- places


def test_a_call_takes_a_place_and_gives_it_back() -> None:
    bench = Bench()
    caller = bench.start(Needs(tokens=7))
    [host] = bench.hosts
    assert (bench.cluster.rq_active, host.active, host.tokens, host.rq_total) == (1, 1, 7, 1)
    bench.end(caller)
    assert (bench.cluster.rq_active, host.active, host.tokens) == (0, 0, 0)
    assert (bench.cluster.rq_success, host.rq_success) == (1, 1)


def test_what_became_of_a_call_is_counted() -> None:
    bench = Bench()
    bench.end(bench.start(), ConnectError("x"), status=0)
    bench.end(bench.start(), UpstreamTimeoutError("x"), status=0)
    bench.end(bench.start(), left=True)
    [host] = bench.hosts
    assert (host.rq_error, host.rq_timeout, host.rq_cancelled, host.rq_success) == (2, 1, 1, 0)
    assert (bench.cluster.rq_error, bench.cluster.rq_timeout, bench.cluster.rq_total) == (2, 1, 3)


def test_above_its_limit_a_cluster_objects_and_refuses() -> None:
    bench = Bench(limits=LimitSettings(requests=2))
    first = bench.start()
    assert bench.objection() is None
    bench.start()
    assert bench.objection() == OVERLOADED
    with pytest.raises(PoolOverflowError):
        bench.start()
    assert bench.cluster.rq_overflow == 1
    bench.end(first)
    assert bench.objection() is None
    bench.start()


def test_tokens_under_way_are_bounded() -> None:
    bench = Bench(limits=LimitSettings(tokens=100))
    assert bench.cluster.asks
    first = bench.start(Needs(tokens=60))
    with pytest.raises(PoolOverflowError):
        bench.start(Needs(tokens=41))
    second = bench.start(Needs(tokens=40))
    assert bench.objection() == OVERLOADED
    bench.end(first)
    bench.end(second)
    bench.start(Needs(tokens=100))


def test_a_queued_call_starts_when_there_is_a_place_in_the_order_of_arrival() -> None:
    bench = Bench(limits=LimitSettings(requests=1, pending=2), queue_seconds=5.0)
    running, first, second = bench.start(), bench.start(), bench.start()
    assert (first.host, second.host, bench.cluster.rq_pending_active) == (None, None, 2)
    assert bench.objection() == OVERLOADED
    with pytest.raises(PoolOverflowError):
        bench.start()
    assert first.call is not None
    first.call.pause()
    bench.end(running)
    assert (first.host, second.host) == (bench.hosts[0], None)
    assert bench.sent_to(first).last.paused
    first.call.resume()
    assert not bench.sent_to(first).last.paused
    first.call.cancel()
    assert bench.sent_to(first).last.cancelled
    bench.end(first, left=True)
    assert second.host is bench.hosts[0]
    bench.end(second)
    assert (bench.cluster.rq_active, bench.cluster.rq_pending_active) == (0, 0)


def test_a_queued_call_waits_no_longer_than_it_may() -> None:
    bench = Bench(limits=LimitSettings(requests=1, pending=2), queue_seconds=5.0)
    running, waiting, leaving = bench.start(), bench.start(), bench.start()
    assert leaving.call is not None
    leaving.call.pause()
    leaving.call.resume()
    leaving.call.cancel()
    assert bench.cluster.rq_pending_active == 1
    bench.end(leaving, left=True)
    bench.clock.advance(5.2)
    assert [type(error) for error in waiting.errors] == [PoolOverflowError]
    bench.end(waiting, waiting.errors[0], status=0)
    assert leaving.errors == []
    bench.end(running)
    assert (bench.cluster.rq_active, bench.cluster.rq_pending_active, len(bench.deadlines)) == (0, 0, 0)


def test_new_limits_let_in_those_who_wait() -> None:
    bench = Bench(limits=LimitSettings(requests=1, pending=2), queue_seconds=5.0)
    _, waiting = bench.start(), bench.start()
    bench.cluster.set_limits(LimitSettings(requests=2, pending=2), 5.0, bench.now)
    assert waiting.host is bench.hosts[0]


def test_new_limits_turn_away_whom_they_leave_without_hope() -> None:
    bench = Bench(limits=LimitSettings(tokens=100), queue_seconds=60.0)
    running, large, small = (bench.start(Needs(tokens=tokens)) for tokens in (90, 80, 20))
    bench.cluster.set_limits(LimitSettings(tokens=60), 60.0, bench.now)
    assert [type(error) for error in large.errors] == [PoolOverflowError]
    bench.end(large, large.errors[0], status=0)
    bench.end(running)
    assert small.host is bench.hosts[0], "nobody waits behind one who never runs"
    bench.end(small)
    assert (bench.cluster.rq_active, bench.cluster.rq_pending_active, len(bench.deadlines)) == (0, 0, 0)


def test_hosts_that_weigh_other_than_before_are_taken_as_they_are() -> None:
    bench = Bench(hosts=2, policy="weighted")
    bench.hosts[0].weight, bench.hosts[1].weight = 0, 1
    bench.cluster.set_hosts(bench.hosts)
    assert {bench.start().host for _ in range(10)} == {bench.hosts[1]}


def test_a_cluster_that_lost_its_hosts_says_so_to_those_who_wait() -> None:
    bench = Bench(limits=LimitSettings(requests=1, pending=2), queue_seconds=5.0)
    running, waiting = bench.start(), bench.start()
    bench.cluster.set_hosts(())
    bench.end(running)
    assert [type(error) for error in waiting.errors] == [NoTargetError]
    with pytest.raises(NoTargetError):
        bench.start()
    assert bench.cluster.rq_active == 0


# -- keys


def test_the_key_goes_with_the_call_and_no_key_adds_nothing() -> None:
    bench = Bench(keys=[key("a")])
    caller = bench.start()
    assert bench.sent_to(caller).last.request.headers == [(b"authorization", b"Bearer a")]
    assert bench.cluster.has_credential
    keyless = Bench()
    assert keyless.sent_to(keyless.start()).last.request.headers == []
    assert not keyless.cluster.has_credential


def test_a_limited_key_rests_for_its_model_and_another_takes_over() -> None:
    a, b = key("a"), key("b")
    bench = Bench(keys=[a, b])
    first = bench.start()
    bench.cluster.limited(first, MODEL, bench.now, 10.0)
    bench.end(first, BusyStatusError("x"), status=429)
    assert bench.objection() is None
    assert bench.cluster.has_spare(MODEL, bench.now, bench.hosts, [first.credential] if first.credential else [])
    others = [bench.start().credential for _ in range(4)]
    assert set(others) == {b if first.credential is a else a}
    assert {bench.start(model="other").credential for _ in range(4)} == {a, b}


def test_a_cluster_whose_keys_all_rest_says_why_and_for_how_long() -> None:
    bench = Bench(keys=[key("a")])
    caller = bench.start()
    bench.cluster.limited(caller, MODEL, bench.now, 10.0)
    assert bench.objection() == COOLING
    assert bench.cluster.rests_for(MODEL, bench.now) == 10.0
    assert bench.objection("other") is None
    assert not bench.cluster.has_spare(MODEL, bench.now, [], [])
    bench.clock.advance(10)
    assert bench.objection() is None
    assert not bench.cluster.strained
    bench.cluster.refused(caller, bench.now)
    assert bench.objection("other") == REFUSED
    assert bench.start().credential is caller.credential  # somebody decided to ask all the same


def test_a_refused_key_that_works_again_is_forgiven() -> None:
    bench = Bench(keys=[key("a")])
    caller = bench.start()
    bench.cluster.refused(caller, bench.now)
    bench.clock.advance(61)
    assert bench.objection() is None
    assert caller.credential is not None
    again = bench.start()
    bench.end(again)
    assert caller.credential.refusals == 0


def test_without_keys_nothing_rests() -> None:
    bench = Bench()
    caller = bench.start()
    bench.cluster.limited(caller, MODEL, bench.now, 10.0)
    bench.cluster.refused(caller, bench.now)
    assert bench.objection() is None
    assert bench.cluster.rests_for(MODEL, bench.now) == 0.0


# -- hosts


def test_a_host_that_failed_is_avoided_while_there_is_another() -> None:
    bench = Bench(hosts=2)
    for _ in range(20):
        assert bench.start(Needs(avoid=(bench.hosts[0],))).host is bench.hosts[1]
    assert bench.start(Needs(avoid=tuple(bench.hosts))).host in bench.hosts
    assert bench.cluster.has_spare(MODEL, bench.now, [bench.hosts[0]], [])
    assert not bench.cluster.has_spare(MODEL, bench.now, bench.hosts, [])


def fail_until_ejected(bench: Bench, error: GatewayError, status: int) -> Host:
    sick = bench.hosts[0]
    others = tuple(bench.hosts[1:])
    for _ in range(5):
        caller = bench.start(Needs(avoid=others))
        assert caller.host is sick
        bench.end(caller, error, status=status)
    return sick


@pytest.mark.parametrize(
    ("error", "status"), [(ConnectError("x"), 0), (BadStatusError("x"), 500), (BadStatusError("x"), 503)]
)
def test_a_host_that_fails_five_times_is_ejected_and_comes_back(error: GatewayError, status: int) -> None:
    bench = Bench(hosts=4)
    sick = fail_until_ejected(bench, error, status)
    assert (sick.ejected, sick.available, bench.cluster.ejections) == (True, False, 1)
    assert {bench.start().host for _ in range(60)} == set(bench.hosts) - {sick}
    bench.clock.advance(41)
    assert (sick.ejected, sick.available) == (False, True)
    assert sick in {bench.start().host for _ in range(60)}
    bench.clock.advance(200)
    assert bench.cluster.deadline == NEVER, "nobody looks any more"
    assert len(bench.deadlines) == 0


@pytest.mark.parametrize(("error", "status"), [(BusyStatusError("x"), 429), (ErrorEventError("x"), 200), (None, 404)])
def test_what_is_not_the_hosts_fault_ejects_nobody(error: GatewayError | None, status: int) -> None:
    bench = Bench(hosts=4)
    for _ in range(40):
        bench.end(bench.start(), error, status=status)
    assert bench.cluster.ejections == 0


def test_a_client_that_leaves_says_nothing_about_the_host() -> None:
    bench = Bench(hosts=4)
    for _ in range(40):
        bench.end(bench.start(), left=True)
    assert bench.cluster.ejections == 0


def test_the_only_host_is_never_ejected() -> None:
    bench = Bench(outliers=OutlierSettings(consecutive_5xx=1, max_ejection_percent=100))
    for _ in range(9):
        bench.end(bench.start(), ConnectError("x"), status=0)
    assert bench.hosts[0].available
    assert bench.objection() is None


def test_an_active_check_takes_a_host_out_and_brings_it_back() -> None:
    bench = Bench(hosts=3)
    sick = fail_until_ejected(bench, ConnectError("x"), 0)
    assert bench.cluster.set_health(sick.name, False, bench.now)
    assert not bench.cluster.set_health(sick.name, False, bench.now), "no news"
    assert not bench.cluster.set_health("nobody", False, bench.now)
    assert bench.cluster.set_health(sick.name, True, bench.now)
    assert (sick.ejected, sick.available) == (False, True)


def test_with_all_hosts_down_they_are_used_unless_panic_is_off() -> None:
    bench = Bench(hosts=2)
    for host in bench.hosts:
        bench.cluster.set_health(host.name, False, bench.now)
    assert bench.objection() is None
    assert bench.start().host in bench.hosts
    assert bench.cluster.healthy_panic == 1
    strict = Bench(hosts=2, balancing=Balancing(panic_threshold=0))
    for host in strict.hosts:
        strict.cluster.set_health(host.name, False, strict.now)
    assert strict.objection() == UNHEALTHY
    assert strict.start().host in strict.hosts, "somebody decided to ask all the same"


def test_new_hosts_take_calls_and_old_ones_none() -> None:
    bench = Bench(hosts=2)
    fresh = Host(FakeEndpoint("http://new"))
    running = bench.start()
    bench.cluster.set_hosts([fresh])
    assert {bench.start().host for _ in range(5)} == {fresh}
    bench.end(running)
    assert all(host.active == 0 for host in bench.hosts)


EVENTS = st.lists(
    st.sampled_from(["start", "ok", "fail", "leave", "refused", "limited", "tick", "sick", "well", "cancel"]),
    max_size=60,
)


@given(EVENTS, st.integers(0, 2**32))
def test_whatever_happens_every_place_comes_back(events: list[str], seed: int) -> None:
    rng = Random(seed)
    bench = Bench(
        hosts=3, keys=[key("a"), key("b")], limits=LimitSettings(requests=3, tokens=50, pending=2), queue_seconds=2.0
    )
    held: list[Caller] = []
    for event in events:
        if event == "start":
            try:
                held.append(bench.start(Needs(tokens=rng.randint(0, 30))))
            except PoolOverflowError:
                continue
        elif event == "tick":
            bench.clock.advance(rng.choice([0.5, 3.0, 70.0]))
            for caller in [caller for caller in held if caller.errors]:
                held.remove(caller)
                bench.end(caller, caller.errors[0], status=0)
        elif event in ("sick", "well"):
            bench.cluster.set_health(rng.choice(bench.hosts).name, event == "well", bench.now)
        elif held:
            caller = held.pop(rng.randrange(len(held)))
            assert caller.call is not None
            if event in ("cancel", "leave") or caller.host is None:
                caller.call.cancel()
                bench.end(caller, left=True)
                continue
            if event == "refused":
                bench.cluster.refused(caller, bench.now)
            elif event == "limited":
                bench.cluster.limited(caller, MODEL, bench.now, 5.0)
            bench.end(caller, ConnectError("x") if event == "fail" else None)
        running = [caller for caller in held if caller.host is not None]
        assert bench.cluster.rq_active == len(running) == sum(host.active for host in bench.hosts) <= 3
        assert sum(host.tokens for host in bench.hosts) == sum(caller.tokens for caller in running) <= 50
        assert bench.cluster.rq_pending_active == len([one for one in held if one.host is None and not one.errors])
        assert any(host.available or not host.healthy for host in bench.hosts)


# -- how many at once


def most(bench: Bench) -> int:
    """How many calls find room, all at once; all are over afterwards."""
    held: list[Caller] = []
    while len(held) < 600:
        try:
            held.append(bench.start())
        except PoolOverflowError:
            break
    for caller in held:
        bench.end(caller)
    return len(held)


def test_the_limit_that_is_learned_is_the_one_that_holds() -> None:
    bench = Bench(limits=LimitSettings(requests=500))
    assert most(bench) == 500
    bench.cluster.set_adaptive(True)
    assert bench.cluster.adapts
    assert most(bench) == 16, "it begins there"
    for _ in range(20):  # all in time, and all places used
        held = [bench.start() for _ in range(most(bench))]
        for _ in range(3 * len(held)):
            bench.cluster.on_first_token(0.1, 100, bench.now)
        for caller in held:
            bench.end(caller)
        bench.clock.advance(1.1)
    grown = most(bench)
    assert 16 < grown <= 500
    bench.cluster.set_limits(LimitSettings(requests=10), 0.0, bench.now)
    assert most(bench) == 10, "never more than is configured"
    bench.cluster.set_adaptive(False)
    bench.cluster.set_limits(LimitSettings(requests=500), 0.0, bench.now)
    assert not bench.cluster.adapts
    assert most(bench) == 500
    bench.cluster.on_first_token(9.0, 100, bench.now)
    assert most(bench) == 500


def test_who_waits_is_let_in_when_the_limit_grows() -> None:
    bench = Bench(limits=LimitSettings(requests=500, pending=100), queue_seconds=60.0)
    bench.cluster.set_adaptive(True)
    held = [bench.start() for _ in range(30)]
    assert bench.cluster.rq_pending_active == 14
    for _ in range(6):
        for _ in range(40):
            bench.cluster.on_first_token(0.1, 100, bench.now)
        bench.clock.advance(1.1)
    assert bench.cluster.rq_pending_active == 0
    assert all(caller.host is not None for caller in held)


def test_the_lines_of_a_request_that_are_ready_get_those_of_its_key() -> None:
    for keys, lines in (
        ([key("a")], b"x: 1\r\nauthorization: Bearer a"),
        ([Credential("bad", ((b"authorization", b"a\r\nb"),))], b"x: 1"),
    ):
        bench = Bench(keys=keys)
        request = UpstreamRequest(b"POST", b"/x", [(b"x", b"1")], b"{}", lines=b"x: 1")
        bench.cluster.start(request, Caller(), MODEL, bench.now)
        assert request.headers[1:] == [*keys[0].fields]
        assert request.lines == lines
        assert (request.lined == len(request.headers)) is (keys[0].name == "a")  # else the encoder looks, and refuses


def test_a_key_without_another_beside_it_is_used_while_it_rests_and_tried_when_its_time_is_over() -> None:
    bench = Bench(keys=[key("a")])
    first = bench.start()
    bench.cluster.limited(first, MODEL, bench.now, 30.0)
    bench.end(first)
    assert bench.start().credential is first.credential
    bench.cluster.refused(first, bench.now)
    rested = bench.start()
    assert rested.credential is first.credential
    assert rested.credential is not None
    assert not rested.credential.on_trial
    bench.clock.advance(61)
    assert bench.start().credential is first.credential
    assert rested.credential.on_trial
    bench.end(rested)
    assert (rested.credential.refusals, rested.credential.on_trial) == (0, False)


def test_what_was_begun_is_what_is_under_way_and_what_has_ended() -> None:
    bench = Bench(hosts=2, limits=LimitSettings(requests=2))
    callers = [bench.start(), bench.start()]
    with pytest.raises(PoolOverflowError):
        bench.start()
    never = Caller()
    bench.end(never, ConnectError("x"), status=0)
    assert (bench.cluster.rq_total, bench.cluster.rq_error) == (2, 1)
    assert sum(host.rq_total for host in bench.hosts) == 2
    for caller, error, left in zip(callers, (None, ConnectError("x")), (False, True), strict=True):
        bench.end(caller, error, left=left)
    assert bench.cluster.rq_total == sum(host.rq_total for host in bench.hosts) == 2
