"""Flight: one call for all who ask the same, whoever leaves, is late or is slow; and one row each."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.errors import AnswerRefusedError, RateLimitError, ShuttingDownError
from headgate.proxy.filter import Event, Filter
from headgate.proxy.flight import Flight
from headgate.proxy.leading import Leading
from headgate.proxy.replay import Replay
from headgate.proxy.ring import LAG_SECONDS, PREFIX_BYTES
from headgate.proxy.run import Run
from headgate.proxy.tape import Tape
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.cached import BODY, STREAM, CachedRelay
from tests_support.traffic import error_events, has_done, without_ours

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange
    from tests_support.downstream import FakeDownstream

HEAD = response_head(
    200, [("content-type", "text/event-stream"), ("x-request-id", "req_1"), ("transfer-encoding", "chunked")]
)
TEXT = [event(chat_chunk({"content": f"word {n} "})) for n in range(6)]
FINISH = event(chat_chunk({}, finish_reason="stop"))
USED = event(chat_chunk(None, usage=USAGE))
WHOLE = [*TEXT, FINISH, USED, event(DONE)]
SHOWN = b"".join([*TEXT, FINISH, event(DONE)])
COST = (USAGE["prompt_tokens"] * 1.0 + USAGE["completion_tokens"] * 2.0) / 1e6
BIG = event(chat_chunk({"content": "x" * 100_000}))


def play(it: CachedRelay, *events: bytes) -> None:
    it.feed(*map(chunk, events))


def finish(it: CachedRelay, *events: bytes) -> None:
    play(it, *events)
    it.feed(LAST_CHUNK)


def bodies(*downstreams: FakeDownstream) -> set[bytes]:
    return {without_ours(one.received) for one in downstreams}


# -- streams


def test_all_who_ask_the_same_share_one_call_and_get_the_provider_s_bytes() -> None:
    it = CachedRelay()
    clients = [it.ask() for _ in range(100)]
    it.feed(HEAD)
    finish(it, *WHOLE)
    assert len(it.calls) == 1
    assert bodies(*clients) == {SHOWN}
    assert all(one.ended for one in clients)
    assert it.at_rest()


def test_one_pays_and_the_others_cost_nothing() -> None:
    it = CachedRelay()
    leader, *followers = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    finish(it, *WHOLE)
    row = it.row(leader)
    assert (row.cache, row.cost_usd, row.outcome, row.attempts) == ("miss", COST, "ok", 1)
    assert (row.prompt_tokens, row.provider, row.upstream_request_id) == (USAGE["prompt_tokens"], "up0", "req_1")
    for one in followers:
        row = it.row(one)
        assert (row.cache, row.cost_usd, row.cost_source, row.outcome) == ("joined", 0.0, "cache", "ok")
        assert (row.attempts, row.prompt_tokens, row.usage_source, row.status) == (0, 0, "none", 200)
        assert row.bytes_out == len(one.received)
    assert (it.cache.misses, it.cache.joined, it.cache.stored) == (1, 2, 1)


def test_each_head_speaks_of_its_own_exchange() -> None:
    it = CachedRelay()
    leader, follower = it.ask(), it.ask(headers=[(b"x-request-id", b"mine")])
    it.feed(HEAD)
    finish(it, *WHOLE)
    ids = {one.header(b"x-headgate-request-id") for one in (leader, follower)}
    assert len(ids) == 2
    assert None not in ids
    assert leader.header(b"x-headgate-cache") == b"miss"
    assert leader.header(b"x-headgate-cost-estimate-usd") is not None
    assert follower.header(b"x-headgate-cache") == b"hit"
    assert follower.header(b"x-headgate-cost-usd") == b"0"
    assert follower.header(b"x-headgate-cost-estimate-usd") is None
    for one in (leader, follower):
        assert one.header(b"x-request-id") == b"req_1"
        assert one.header(b"x-headgate-provider") == b"up0"
        assert one.header(b"content-type") == b"text/event-stream"
        assert len([name for name, _ in one.headers]) == len({name for name, _ in one.headers})


def test_each_stream_has_a_comment_of_its_own_before_its_end() -> None:
    it = CachedRelay()
    leader, follower, silent = it.ask(), it.ask(), it.ask(headers=[(b"x-headgate-stream-metadata", b"off")])
    it.feed(HEAD)
    finish(it, *WHOLE)
    for one, cost in ((leader, COST), (follower, 0.0)):
        before, mine, after = one.received.partition(b": headgate ")
        assert before == b"".join([*TEXT, FINISH])
        assert (one.header(b"x-headgate-request-id") or b"?") in mine + after
        assert json.loads(after.partition(b"\n")[0])["cost_usd"] == cost
        assert after.endswith(b"\n\n" + event(DONE))
    assert silent.received == SHOWN


@pytest.mark.parametrize("seen", range(len(WHOLE)))
def test_who_comes_late_gets_the_beginning_first(seen: int) -> None:
    it = CachedRelay()
    first = it.ask()
    it.feed(HEAD)
    play(it, *WHOLE[:seen])
    late = it.ask()
    finish(it, *WHOLE[seen:])
    assert bodies(first, late) == {SHOWN}
    assert len(it.calls) == 1
    assert it.at_rest()


def test_who_comes_after_the_end_is_answered_from_what_was_kept() -> None:
    it = CachedRelay()
    first = it.ask()
    it.feed(HEAD)
    finish(it, *WHOLE)
    it.relay.clock.advance(5)
    hit = it.ask()
    assert bodies(first, hit) == {SHOWN}
    assert hit.header(b"x-headgate-cache") == b"hit"
    assert hit.header(b"age") == b"5"
    assert hit.header(b"x-headgate-provider") == b"up0"
    assert hit.header(b"x-request-id") == hit.header(b"x-headgate-request-id")
    row = it.row(hit)
    assert (row.cache, row.cost_usd, row.attempts, row.provider) == ("hit", 0.0, 0, "")
    assert len(it.calls) == 1
    assert it.at_rest()


# -- whole answers


def test_a_whole_answer_goes_to_all_and_is_given_again() -> None:
    it = CachedRelay()
    answer = json_response(chat_completion(), headers=[("x-ratelimit-remaining-requests", "5")])
    clients = [it.ask(BODY) for _ in range(3)]
    it.feed(answer)
    clients.append(it.ask(BODY))
    assert len(it.calls) == 1
    assert {one.received for one in clients} == {answer.partition(b"\r\n\r\n")[2]}
    assert [it.row(one).cost_usd for one in clients] == [COST, 0.0, 0.0, 0.0]
    assert [one.header(b"x-headgate-cost-usd") for one in clients] == [b"0.000033", b"0", b"0", b"0"]
    assert [one.header(b"x-ratelimit-remaining-requests") for one in clients] == [b"5", b"5", b"5", None]
    assert it.at_rest()


def test_another_request_is_another_call() -> None:
    it = CachedRelay()
    it.ask(BODY)
    it.ask(BODY.replace(b"hi", b"ho"))
    it.ask(STREAM)
    assert len(it.calls) == 3


# -- leaving


def test_a_leader_that_leaves_breaks_nobody_and_pays_for_the_call() -> None:
    it = CachedRelay()
    leader, *others = [it.ask() for _ in range(100)]
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    leader.leave()
    assert not it.call.cancelled
    assert it.rows() == []
    finish(it, *WHOLE[3:])
    assert bodies(*others) == {SHOWN}
    row = it.row(leader)
    assert (row.outcome, row.status, row.cost_usd, row.cache) == ("cancelled", 200, COST, "miss")
    assert row.bytes_out == len(leader.received)
    assert sum(row.cost_usd or 0.0 for row in it.rows()) == COST
    assert len(it.calls) == 1
    assert it.cache.stored == 1
    assert it.at_rest()


def test_a_leader_that_leaves_before_the_answer_begins_breaks_nobody() -> None:
    it = CachedRelay()
    leader, other = it.ask(), it.ask()
    leader.leave()
    it.feed(HEAD)
    finish(it, *WHOLE)
    assert bodies(other) == {SHOWN}
    [cancelled] = [row for row in it.rows() if row.cache == "miss"]
    assert (cancelled.outcome, cancelled.status, cancelled.cost_usd) == ("cancelled", 499, COST)
    assert it.at_rest()


@pytest.mark.parametrize("seen", [None, 0, 3])
def test_the_call_is_given_up_when_the_last_one_leaves(seen: int | None) -> None:
    it = CachedRelay()
    clients = [it.ask() for _ in range(3)]
    if seen is not None:
        it.feed(HEAD)
        play(it, *WHOLE[:seen])
    for one in clients[:2]:
        one.leave()
    assert not it.call.cancelled
    clients[2].leave()
    assert it.call.cancelled
    assert [row.outcome for row in it.rows()] == ["cancelled"] * 3
    assert it.cache.stored == 0
    assert it.at_rest()


def test_one_alone_that_leaves_is_charged_for_what_it_got() -> None:
    it = CachedRelay()
    alone = it.ask()
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    alone.leave()
    row = it.row(alone)
    assert (row.outcome, row.usage_source) == ("cancelled", "estimated")
    assert row.completion_tokens > 0
    assert row.cost_usd
    assert it.at_rest()


def test_who_comes_when_all_have_left_makes_a_call_of_its_own() -> None:
    it = CachedRelay()
    it.ask().leave()
    second = it.ask()
    assert [call.cancelled for call in it.calls] == [True, False]
    it.feed(HEAD)
    finish(it, *WHOLE)
    assert bodies(second) == {SHOWN}
    assert it.at_rest()


# -- slow ones


def test_who_does_not_read_holds_up_nobody_and_loses_nothing_if_it_reads_on_in_time() -> None:
    it = CachedRelay()
    slow, quick = it.ask(room=10), it.ask()
    it.feed(HEAD)
    play(it, *WHOLE[:4])
    assert without_ours(quick.received) == b"".join(WHOLE[:4])
    assert len(slow.writes) == 1
    assert not it.call.paused
    finish(it, *WHOLE[4:])
    assert quick.ended
    assert not slow.ended
    slow.resume()
    assert bodies(slow, quick) == {SHOWN}
    assert it.row(slow).outcome == "ok"
    assert it.at_rest()


def test_the_provider_waits_only_while_nobody_reads() -> None:
    it = CachedRelay()
    one, other = it.ask(room=10), it.ask(room=10)
    it.feed(HEAD)
    play(it, *WHOLE[:2])
    assert it.call.paused
    other.resume()
    assert not it.call.paused
    play(it, *WHOLE[2:4])
    assert without_ours(other.received) == b"".join(WHOLE[:4])
    one.resume()
    finish(it, *WHOLE[4:])
    assert bodies(one, other) == {SHOWN}
    assert it.at_rest()


def test_one_that_joins_a_flight_nobody_reads_makes_it_go_on() -> None:
    it = CachedRelay()
    slow = it.ask(room=10)
    it.feed(HEAD)
    play(it, *WHOLE[:2])
    assert it.call.paused
    quick = it.ask()
    assert not it.call.paused
    finish(it, *WHOLE[2:])
    slow.resume()
    assert bodies(slow, quick) == {SHOWN}
    assert it.at_rest()


def test_who_is_a_megabyte_behind_for_half_a_minute_is_cut_with_an_error_event() -> None:
    it = CachedRelay()
    slow, quick = it.ask(room=10), it.ask()
    it.feed(HEAD)
    play(it, TEXT[0], *[BIG] * 12)
    it.relay.clock.advance(LAG_SECONDS - 1)
    assert not slow.finished
    it.relay.clock.advance(1.2)
    assert slow.ended
    [said] = error_events(slow.received)
    assert said["code"] == "client_too_slow"
    assert not has_done(slow.received)
    finish(it, FINISH, event(DONE))
    assert quick.ended
    assert has_done(quick.received)
    assert it.cache.cut == 1
    [cut] = [row for row in it.rows() if row.outcome == "truncated"]
    assert cut.error_code == "client_too_slow"
    assert sum(row.cost_usd or 0.0 for row in it.rows() if row.cache == "joined") == 0.0
    assert it.at_rest()


def test_who_falls_off_the_ring_is_cut_at_once() -> None:
    it = CachedRelay()
    quick, slow = it.ask(), it.ask(room=10)
    it.feed(HEAD)
    play(it, TEXT[0], *[BIG] * (PREFIX_BYTES // len(BIG) + 2))
    assert slow.ended
    assert error_events(slow.received)[0]["code"] == "client_too_slow"
    assert not it.call.paused
    finish(it, FINISH, event(DONE))
    assert quick.ended
    assert it.at_rest()


def test_who_comes_when_the_beginning_is_gone_makes_a_call_of_its_own() -> None:
    it = CachedRelay()
    it.ask()
    it.feed(HEAD)
    play(it, *[BIG] * (PREFIX_BYTES // len(BIG) + 1))
    it.ask()
    assert len(it.calls) == 2
    it.ask()
    assert len(it.calls) == 2
    assert it.cache.misses == 2


def test_scarce_memory_takes_the_beginning_and_the_answer_still_goes_down() -> None:
    it = CachedRelay(size="1MiB", max_entry="1MiB")
    first = it.ask()
    it.feed(HEAD)
    play(it, *[BIG] * 11)
    assert it.cache.room.used == 0
    it.ask()
    assert len(it.calls) == 2
    call = it.calls[0]
    for piece in (*map(chunk, (FINISH, event(DONE))), LAST_CHUNK):
        call.feed(piece)
    assert first.ended
    assert has_done(first.received)
    assert it.cache.unfit == 1


# -- failures


def test_a_provider_s_failure_before_an_answer_is_everybody_s_with_an_id_of_each() -> None:
    it = CachedRelay(retry=None)
    clients = [it.ask() for _ in range(3)]
    it.call.rst()
    assert [one.status for one in clients] == [502] * 3
    assert len({one.header(b"x-headgate-request-id") for one in clients}) == 3
    assert [it.row(one).error_code for one in clients] == ["upstream_error"] * 3
    assert [it.row(one).outcome for one in clients] == ["failed"] * 3
    assert len(it.calls) == 1
    assert it.at_rest()


def test_a_provider_s_own_error_answer_goes_to_all_and_is_not_kept() -> None:
    it = CachedRelay(retry=None)
    clients = [it.ask(BODY) for _ in range(3)]
    answer = json_response({"error": {"message": "no"}}, 400)
    it.feed(answer)
    assert [one.status for one in clients] == [400] * 3
    assert {one.received for one in clients} == {answer.partition(b"\r\n\r\n")[2]}
    assert [it.row(one).outcome for one in clients] == ["upstream_error"] * 3
    it.ask(BODY)
    assert len(it.calls) == 2
    assert (it.cache.stored, it.cache.unfit) == (0, 1)


def test_a_call_is_tried_again_as_ever_and_nobody_notices() -> None:
    it = CachedRelay(providers=2)
    clients = [it.ask() for _ in range(3)]
    it.feed(json_response({"error": {"message": "down"}}, 500))
    it.relay.clock.advance(0.3)
    call = it.relay.providers[1].last
    for piece in (HEAD, *map(chunk, WHOLE), LAST_CHUNK):
        call.feed(piece)
    assert bodies(*clients) == {SHOWN}
    assert it.row(clients[0]).attempts == 2
    assert clients[1].header(b"x-headgate-provider") == b"up1"
    assert it.at_rest()


def test_a_cut_stream_is_cut_for_all_and_not_kept() -> None:
    it = CachedRelay()
    clients = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    it.call.rst()
    for one in clients:
        assert one.ended
        assert len(error_events(one.received)) == 1
        assert not has_done(one.received)
    assert [it.row(one).outcome for one in clients] == ["truncated"] * 3
    assert it.cache.stored == 0
    assert it.at_rest()


def test_a_slow_one_gets_what_there_was_before_it_hears_of_the_cut() -> None:
    it = CachedRelay()
    slow, _ = it.ask(room=10), it.ask()
    it.feed(HEAD)
    play(it, *WHOLE[:4])
    it.call.rst()
    assert not slow.finished
    slow.resume()
    assert slow.ended
    assert slow.received.startswith(b"".join(WHOLE[:4]))
    assert len(error_events(slow.received)) == 1
    assert it.at_rest()


def test_a_stream_that_ends_with_the_provider_s_error_event_is_passed_on_and_not_kept() -> None:
    it = CachedRelay()
    clients = [it.ask() for _ in range(2)]
    error = b'data: {"error":{"message":"no","type":"server_error","param":null,"code":null}}\n\n'
    it.feed(HEAD)
    finish(it, *TEXT, error)
    assert bodies(*clients) == {b"".join([*TEXT, error])}
    assert [it.row(one).outcome for one in clients] == ["upstream_error"] * 2
    assert it.cache.stored == 0
    assert it.at_rest()


class Gate(Filter):
    """Refuses the first so many."""

    def __init__(self, refused: int) -> None:
        self.name = "gate"
        self.left = refused
        self.seen = 0
        self.over = 0

    def on_request(self, ex: Exchange) -> None:
        self.seen += 1
        if self.left:
            self.left -= 1
            raise RateLimitError("not you", retry_after=1)

    def on_done(self, ex: Exchange) -> None:
        self.over += 1


def test_who_is_refused_below_the_cache_is_refused_alone_and_the_next_one_leads() -> None:
    gate = Gate(2)
    it = CachedRelay(below=[gate])
    first = it.ask(BODY)
    assert first.status == 429
    assert it.row(first).cache == "miss"
    second, third = it.ask(BODY), it.ask(BODY)
    assert (second.status, third.status) == (429, None)
    assert gate.seen == 3
    it.feed(json_response(chat_completion()))
    assert third.status == 200
    assert it.row(third).cost_usd == COST
    assert gate.over == 3
    assert it.at_rest()


def test_filters_above_see_every_exchange_and_those_below_the_call_alone() -> None:
    above, below = Gate(0), Gate(0)
    it = CachedRelay(above=[above], below=[below])
    for _ in range(3):
        it.ask(BODY)
    it.feed(json_response(chat_completion()))
    it.ask(BODY)
    assert (above.seen, above.over) == (4, 4)
    assert (below.seen, below.over) == (1, 1)


class Upper(Filter):
    """Writes events in capitals."""

    def on_event(self, ex: Exchange, event: Event) -> Event:
        event.raw = event.raw.replace(b"word", b"WORD")
        return event

    def on_answer(self, ex: Exchange, head: object, body: bytes) -> bytes:
        return body.replace(b"Hello", b"HELLO")


@pytest.mark.parametrize("place", ["above", "below"])
def test_filters_that_rewrite_do_so_wherever_they_stand(place: str) -> None:
    upper = Upper()
    upper.name = "upper"
    it = CachedRelay(above=[upper]) if place == "above" else CachedRelay(below=[upper])
    clients = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    finish(it, *WHOLE)
    clients.append(it.ask())
    assert bodies(*clients) == {SHOWN.replace(b"word", b"WORD")}
    wholes = [it.ask(BODY), it.ask(BODY)]
    it.feed(json_response(chat_completion()))
    wholes.append(it.ask(BODY))
    assert all(b"HELLO there." in one.received for one in wholes)
    assert it.at_rest()


# -- deadlines, and the end of the process


def test_each_has_a_deadline_of_its_own() -> None:
    it = CachedRelay()
    leader, patient = it.ask(headers=[(b"x-headgate-timeout-ms", b"5000")]), it.ask()
    hasty = it.ask(headers=[(b"x-headgate-timeout-ms", b"10000")])
    it.relay.clock.advance(5.2)
    assert (leader.status, patient.status, hasty.status) == (504, None, None)
    assert not it.call.cancelled
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    it.relay.clock.advance(5.2)
    assert len(error_events(hasty.received)) == 1
    finish(it, *WHOLE[3:])
    assert bodies(patient) == {SHOWN}
    assert sum(row.cost_usd or 0.0 for row in it.rows()) == COST
    assert it.row(leader).cost_usd == COST
    assert it.at_rest()


def test_one_alone_whose_deadline_is_over_gives_the_call_up() -> None:
    it = CachedRelay()
    alone = it.ask(headers=[(b"x-headgate-timeout-ms", b"5000")])
    it.relay.clock.advance(5.2)
    assert alone.status == 504
    assert it.call.cancelled
    assert it.at_rest()


def test_a_gateway_that_stops_cuts_every_client_and_the_call() -> None:
    it = CachedRelay()
    begun = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    waiting = [it.ask(BODY) for _ in range(2)]
    gone = begun[0]
    gone.leave()
    for run in list(it.relay.engine.live):
        run.cut(ShuttingDownError("stops"))
    assert [one.status for one in waiting] == [503] * 2
    assert all(len(error_events(one.received)) == 1 for one in begun[1:])
    assert all(call.cancelled for call in it.calls)
    assert len(it.rows()) == 5
    assert it.at_rest()


@pytest.mark.parametrize("leaves", [False, True])
def test_nothing_of_a_flight_is_left_to_the_collector(leaves: bool) -> None:
    it = CachedRelay()
    kinds = (Flight, Leading, Replay, Tape, Run)
    gc.collect()
    gc.disable()
    try:
        others = [one for one in gc.get_objects() if isinstance(one, kinds)]  # an error of another test's holds them
        clients = [it.ask() for _ in range(3)]
        it.feed(HEAD)
        play(it, *WHOLE[:3])
        if leaves:
            clients[0].leave()
        finish(it, *WHOLE[3:])
        it.ask()
        it.ask(BODY).leave()
        assert [one for one in gc.get_objects() if isinstance(one, kinds) and one not in others] == []
    finally:
        gc.enable()


# -- bodies that are no streams of events

SPEECH = b'{"model":"tts","input":"hi","voice":"v"}'
AUDIO = response_head(200, [("content-type", "audio/mpeg"), ("content-length", "9000")])


def speaking(**settings: Any) -> CachedRelay:
    return CachedRelay(operations=["speech"], **settings)


def test_a_body_that_is_relayed_as_it_is_goes_to_all_and_is_given_again() -> None:
    it = speaking()
    clients = [it.ask(SPEECH, path="/v1/audio/speech") for _ in range(3)]
    it.feed(AUDIO, b"a" * 4000)
    clients.append(it.ask(SPEECH, path="/v1/audio/speech"))
    it.feed(b"b" * 5000)
    clients.append(it.ask(SPEECH, path="/v1/audio/speech"))
    assert {one.received for one in clients} == {b"a" * 4000 + b"b" * 5000}
    assert [one.length for one in clients] == [9000] * 5
    assert {one.header(b"content-type") for one in clients} == {b"audio/mpeg"}
    assert (len(it.calls), it.cache.hits) == (1, 1)
    assert it.at_rest()


def test_such_a_body_that_is_cut_closes_every_connection() -> None:
    it = speaking()
    clients = [it.ask(SPEECH, path="/v1/audio/speech") for _ in range(3)]
    it.feed(AUDIO, b"a" * 4000)
    it.call.rst()
    assert all(one.aborted for one in clients)
    assert it.cache.stored == 0
    assert it.at_rest()


def test_a_filter_above_that_would_have_to_read_it_refuses_what_it_cannot() -> None:
    upper = Upper()
    upper.name = "upper"
    it = speaking(above=[upper])
    clients = [it.ask(SPEECH, path="/v1/audio/speech") for _ in range(2)]
    it.feed(response_head(200, [("content-type", "application/x-odd"), ("content-length", "4")]), b"abcd")
    assert [one.status for one in clients] == [403] * 2
    assert it.at_rest()


# -- bugs, and answers that come to nothing


class Broken(Filter):
    """A bug, in one moment, for the first so many."""

    def __init__(self, moment: str, times: int = 1) -> None:
        self.name = "broken"
        self.moment = moment
        self.left = times

    def _break(self, moment: str) -> None:
        if moment == self.moment and self.left:
            self.left -= 1
            raise RuntimeError("a bug")

    def on_request(self, ex: Exchange) -> None:
        self._break("on_request")

    def on_response(self, ex: Exchange, head: object) -> None:
        self._break("on_response")

    def on_event(self, ex: Exchange, event: Event) -> Event:
        self._break("on_event")
        return event


@pytest.mark.parametrize("moment", ["on_response", "on_event"])
def test_a_bug_above_the_cache_breaks_one_client_and_no_other(moment: str) -> None:
    it = CachedRelay(above=[Broken(moment)])
    clients = [it.ask() for _ in range(4)]
    it.feed(HEAD)
    finish(it, *WHOLE)
    assert bodies(*clients[1:]) == {SHOWN}
    assert clients[0].status == 500 or clients[0].aborted
    assert it.relay.engine.stats.internal_errors == 1
    assert len(it.calls) == 1
    assert it.at_rest()


def test_a_bug_below_the_cache_before_a_call_is_its_client_s_alone() -> None:
    it = CachedRelay(below=[Broken("on_request")])
    assert it.ask().status == 500
    other = it.ask()
    it.feed(HEAD)
    finish(it, *WHOLE)
    assert bodies(other) == {SHOWN}
    assert it.at_rest()


@pytest.mark.parametrize(("moment", "status"), [("on_response", 500), ("on_event", 500)])
def test_a_bug_below_the_cache_in_an_answer_is_an_error_for_all(moment: str, status: int) -> None:
    it = CachedRelay(below=[Broken(moment, times=99)])
    clients = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    assert [one.status for one in clients] == [status] * 3
    assert it.relay.engine.stats.internal_errors == 1
    assert it.cache.stored == 0
    assert it.at_rest()


def test_a_bug_in_mid_stream_cuts_all_of_them() -> None:
    broken = Broken("on_event", times=0)
    it = CachedRelay(below=[broken])
    clients = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    play(it, *WHOLE[:3])
    broken.left = 99
    play(it, WHOLE[3])
    assert all(len(error_events(one.received)) == 1 for one in clients)
    assert [row.outcome for row in it.rows()] == ["truncated"] * 3
    assert it.at_rest()


class Refuser(Filter):
    """Lets no answer pass from its third event on."""

    name = "refuser"

    def __init__(self) -> None:
        self.seen = 0

    def on_event(self, ex: Exchange, event: Event) -> Event:
        self.seen += 1
        if self.seen > 2:
            raise AnswerRefusedError("not this")
        return event


def test_an_answer_that_a_filter_below_stops_is_stopped_for_all_and_not_kept() -> None:
    it = CachedRelay(below=[Refuser()])
    clients = [it.ask() for _ in range(3)]
    it.feed(HEAD)
    play(it, *WHOLE[:4])
    assert all(error_events(one.received)[0]["code"] == "guard_blocked" for one in clients)
    assert (it.cache.stored, it.cache.unfit) == (0, 1)
    assert it.at_rest()


def test_the_last_answer_of_a_provider_says_once_that_nobody_should_try_again() -> None:
    it = CachedRelay(providers=2)
    clients = [it.ask(BODY) for _ in range(3)]
    for n in range(3):
        for provider in it.relay.providers:
            if provider.calls and not provider.last.over:
                provider.last.feed(json_response({"error": {"message": f"down {n}"}}, 500))
        it.relay.clock.advance(0.4)
    assert [one.status for one in clients] == [500] * 3
    assert [[value for name, value in one.headers if name == b"x-should-retry"] for one in clients] == [
        [b"false"],
        [],
        [],
    ]
    assert {it.row(one).error_code for one in clients} == {"upstream_error"}
    assert it.at_rest()


def test_a_stream_with_nothing_to_say_is_whole_for_all() -> None:
    it = CachedRelay()
    clients = [it.ask() for _ in range(2)]
    it.feed(HEAD)
    finish(it, FINISH, event(DONE))
    clients.append(it.ask())
    assert bodies(*clients) == {FINISH + event(DONE)}
    assert it.at_rest()


async def test_a_filter_below_that_takes_its_time_is_cancelled_with_the_last_client() -> None:
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(Filter):
        name = "slow"

        async def on_request(self, ex: Exchange) -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    it = CachedRelay(below=[Slow()])
    clients = [it.ask() for _ in range(2)]
    await waiting.wait()
    clients[0].leave()
    assert not cancelled.is_set()
    clients[1].leave()
    await cancelled.wait()
    assert it.calls == []
    assert len(it.rows()) == 2
    assert it.at_rest()
