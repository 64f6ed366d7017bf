"""HTTP/2: how calls end, and that an end of one is not the end of another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame

from headgate.proxy.upstream.http_endpoint import MAX_REFUSALS
from tests_support.caller import Caller, Recorder, eventually
from tests_support.h2_upstream import H2Upstream, hello
from tests_support.upstream import Pause

if TYPE_CHECKING:
    from headgate.proxy.upstream.call import Call
    from tests_support.h2_upstream import PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")

CANCEL = int(ErrorCodes.CANCEL)


async def silent(stream: PeerStream) -> None:
    """The request in, and nothing out."""
    await stream.body()


async def open_ended(stream: PeerStream) -> None:
    """An answer that goes on for ever."""
    await stream.body()
    stream.head(200)
    await stream.data(b"hello")


class Turns:
    """Answers the n-th request with the n-th script, and all others well."""

    def __init__(self, *scripts: object) -> None:
        self.scripts = list(scripts)

    async def __call__(self, stream: PeerStream) -> None:
        script = self.scripts.pop(0) if self.scripts else hello
        await script(stream)  # type: ignore[operator]


def goaway(last: int, code: int = 0) -> GoAwayFrame:
    return GoAwayFrame(0, last_stream_id=last, error_code=code)


# Resets


async def test_a_cancel_sends_exactly_one_reset_and_keeps_the_connection() -> None:
    async with H2Upstream(Turns(silent, open_ended)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        waiting, streaming = caller.ask(), caller.ask()
        await streaming.heard("data")
        waiting.cancel()
        streaming.cancel()
        waiting.cancel()
        assert await caller.ask().over() == "clean"
        assert upstream.peers[0].resets == [(1, CANCEL), (3, CANCEL)]
        assert (caller.stats.rq_cancelled, caller.stats.rq_tx_reset, caller.stats.cx_total) == (2, 2, 1)
        assert caller.stats.cx_destroy_with_active_rq == 0


async def test_what_was_under_way_when_a_call_was_cancelled_is_read_and_answered_with_nothing() -> None:
    gone = Pause()

    async def answer(stream: PeerStream) -> None:
        peer = stream.peer
        await stream.body()
        stream.head(200)
        await gone.wait()
        head = HeadersFrame(stream.id, peer.h2.encoder.encode([("x-new", "in the table")]))
        head.flags |= {"END_HEADERS", "END_STREAM"}
        peer.raw(*[DataFrame(stream.id, b"late") for _ in range(50)], head)

    async with H2Upstream(Turns(answer)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        await heard.heard("head")
        heard.cancel()
        gone.go()
        for _ in range(3):
            assert await caller.ask().over() == "clean"
        assert upstream.peers[0].resets == [(1, CANCEL)]
        assert len(upstream.peers) == 1


async def test_a_call_cancelled_before_it_was_sent_takes_its_slot_along() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        for _ in range(200):
            caller.ask().cancel()
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1
        assert upstream.peers[0].open == []


@pytest.mark.parametrize("event", ["head", "data"])
async def test_a_call_may_be_cancelled_from_its_own_callbacks(event: str) -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(Recorder({event: lambda call: call.cancel()}))  # type: ignore[dict-item]
        await heard.heard(event)  # type: ignore[arg-type]
        assert await caller.ask().over() == "clean"
        assert heard.outcome is None


async def test_a_call_over_is_cancelled_without_a_word() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(Recorder({"end": lambda call: call.cancel()}))
        assert await heard.over() == "clean"
        heard.call.cancel()
        assert await caller.ask().over() == "clean"
        assert upstream.peers[0].resets == []


async def test_a_reset_before_the_answer_and_one_within_it_are_told_apart() -> None:
    async def before(stream: PeerStream) -> None:
        await stream.body()
        stream.reset(ErrorCodes.INTERNAL_ERROR)

    async def within(stream: PeerStream) -> None:
        await open_ended(stream)
        stream.reset(ErrorCodes.NO_ERROR)

    async with H2Upstream(Turns(before, within)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        first, second, third = caller.ask(), caller.ask(), caller.ask()
        assert await first.over() == "ResetError"
        assert await second.over() == "BrokenAnswerError"
        assert second.body == b"hello"
        assert await third.over() == "clean"
        assert first.error is not None
        assert first.error.detail == "reset by the provider, INTERNAL_ERROR"
        assert caller.stats.rq_rx_reset == 2
        assert len(upstream.peers) == 1


async def test_an_unknown_reset_code_is_one_all_the_same() -> None:
    async def before(stream: PeerStream) -> None:
        await stream.body()
        stream.reset(4711)

    async with H2Upstream(Turns(before)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert await heard.over() == "ResetError"
        assert heard.error is not None
        assert heard.error.detail == "reset by the provider, code 4711"


async def test_a_refused_request_is_sent_again_unnoticed() -> None:
    async def refuse(stream: PeerStream) -> None:
        stream.reset(ErrorCodes.REFUSED_STREAM)

    async with H2Upstream(Turns(refuse, refuse)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(body=b"once")
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert caller.stats.rq_retry == 2
        assert bytes(upstream.requests[2].received) == b"once"


async def test_a_provider_that_refuses_for_ever_is_believed_in_the_end() -> None:
    async def refuse(stream: PeerStream) -> None:
        stream.reset(ErrorCodes.REFUSED_STREAM)

    async with H2Upstream(refuse) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "ResetError"
        assert len(upstream.requests) == 1 + MAX_REFUSALS


# Goodbyes


async def test_after_goaway_what_was_looked_at_finishes_and_the_rest_goes_elsewhere() -> None:
    both = Pause()

    async def slowly(stream: PeerStream) -> None:
        await open_ended(stream)
        await both.wait()
        await stream.data(b" world", end=True)

    async def says_goodbye(stream: PeerStream) -> None:
        stream.peer.raw(goaway(1))

    async with H2Upstream(Turns(slowly, says_goodbye)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        first = caller.ask()
        await first.heard("data")
        second, third = caller.ask(), caller.ask()
        assert await second.over() == await third.over() == "clean"
        assert second.events == ["sent", "head", "data", "end"]
        assert first.outcome is None
        both.go()
        assert await first.over() == "clean"
        assert first.body == b"hello world"
        assert len(upstream.peers) == 2
        await upstream.until(lambda: upstream.peers[0].lost)
        assert caller.stats.cx_close_notify == 1
        assert caller.stats.rq_retry == 2


async def test_goaway_without_calls_closes_and_the_next_call_opens_another() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        upstream.peers[0].raw(goaway(2**31 - 1))
        await upstream.until(lambda: upstream.peers[0].lost)
        assert caller.stats.cx_active == 0
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 2


async def test_a_second_goaway_may_take_back_what_the_first_one_promised() -> None:
    async def two(stream: PeerStream) -> None:
        stream.peer.raw(goaway(2**31 - 1))
        await stream.body()
        stream.peer.raw(goaway(0))

    async with H2Upstream(Turns(two)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 2


async def test_goaway_that_disowns_an_answer_under_way_breaks_it() -> None:
    async def disown(stream: PeerStream) -> None:
        await open_ended(stream)
        stream.peer.raw(goaway(0, ErrorCodes.INTERNAL_ERROR))

    async with H2Upstream(Turns(disown)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert await heard.over() == "BrokenAnswerError"
        assert heard.body == b"hello"
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_lost_connection_ends_each_call_as_far_as_it_had_come(how: str) -> None:
    async def lose(stream: PeerStream) -> None:
        await stream.body()
        getattr(stream.peer, how)()

    async with H2Upstream(Turns(open_ended, silent, lose)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        begun = caller.ask()
        await begun.heard("data")
        waiting = caller.ask(body=b"2")
        last = caller.ask(body=b"3")
        assert await begun.over() == "BrokenAnswerError"
        # The connection had served before and went within the second: like a keep-alive race, sent once more.
        assert [await waiting.over(), await last.over()] == ["clean", "clean"]
        assert [stream.received for stream in upstream.requests[3:]] == [b"2", b"3"]
        assert caller.stats.cx_destroy_with_active_rq == 1


async def test_a_first_connection_that_is_lost_is_no_race() -> None:
    async def lose(stream: PeerStream) -> None:
        stream.peer.abort()

    async with H2Upstream(lose) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "ResetError"
        assert len(upstream.requests) == 1


# Answers that are none


async def bare(stream: PeerStream, fields: list[tuple[str, str]], *frames: DataFrame, ends: bool = False) -> None:
    """An answer past the state machine."""
    await stream.body()
    head = HeadersFrame(stream.id, stream.peer.h2.encoder.encode(fields))
    head.flags |= {"END_HEADERS", "END_STREAM"} if ends else {"END_HEADERS"}
    stream.peer.raw(head, *frames)


def content(stream: PeerStream, data: bytes, *, ends: bool = True) -> DataFrame:
    one = DataFrame(stream.id, data)
    if ends:
        one.flags.add("END_STREAM")
    return one


OK = (":status", "200")


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ([OK, ("content-length", "5")], b"hell"),
        ([OK, ("content-length", "5")], b"hello!"),
        ([OK, ("content-length", "5"), ("content-length", "6")], b"hello"),
        ([OK, ("content-length", "5, 5")], b"hello"),
        ([OK, ("content-length", "-5")], b"hello"),
        ([OK, ("content-length", "9" * 30)], b"hello"),
        ([(":status", "204")], b"hello"),
        ([OK, ("x-a", "b\r\nset-cookie: c")], b""),
        ([OK, ("x-a", "b\0c")], b""),
        ([OK, ("x-a", "b\nc")], b""),
        ([OK, ("x a", "b")], b""),
        ([OK, ("X-A", "b")], b""),
        ([OK, ("", "b")], b""),
        ([OK, (":path", "/")], b""),
        ([OK, OK], b""),
        ([("x-a", "b"), OK], b""),
        ([("x-a", "b")], b""),
        ([], b""),
        ([(":status", "2000")], b""),
        ([(":status", "abc")], b""),
        ([(":status", "099")], b""),
        ([(":status", "600")], b""),
        ([(":status", "101")], b""),
        ([OK, *[(f"x-{n}", "v") for n in range(300)]], b""),
    ],
)
async def test_an_answer_that_is_none_is_refused_and_its_connection_serves_on(
    fields: list[tuple[str, str]], data: bytes
) -> None:
    async def answer(stream: PeerStream) -> None:
        await bare(stream, fields, content(stream, data))

    async with H2Upstream(Turns(answer)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        other = caller.ask()
        assert await heard.over() == "ProtocolError"
        assert await other.over() == await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1
        assert caller.stats.cx_protocol_error == 0


async def test_interim_answers_without_end_content_before_a_head_and_trailers_that_go_on_are_refused() -> None:
    async def interim(stream: PeerStream) -> None:
        await stream.body()
        for _ in range(12):
            await bare(stream, [(":status", "103")])

    async def interim_end(stream: PeerStream) -> None:
        await bare(stream, [(":status", "103")], ends=True)

    async def no_head(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(content(stream, b"x"))

    async def trailers_go_on(stream: PeerStream) -> None:
        await bare(stream, [OK])
        await bare(stream, [("x-a", "b")])

    async def pseudo_trailers(stream: PeerStream) -> None:
        await bare(stream, [OK])
        await bare(stream, [OK], ends=True)

    scripts = Turns(interim, interim_end, no_head, trailers_go_on, pseudo_trailers)
    async with H2Upstream(scripts) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = [caller.ask() for _ in range(5)]
        assert [await one.over() for one in heard] == ["ProtocolError"] * 5
        assert await caller.ask().over() == "clean"
        await upstream.until(lambda: len(upstream.peers[0].resets) == 5)
        assert {code for _, code in upstream.peers[0].resets} == {int(ErrorCodes.PROTOCOL_ERROR)}


async def test_an_answer_to_head_may_announce_a_length_but_not_hold_one() -> None:
    async def answer(stream: PeerStream) -> None:
        await bare(stream, [OK, ("content-length", "5")], content(stream, b"hello"))

    async with H2Upstream(Turns(answer)) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask(method=b"HEAD", body=b"").over() == "ProtocolError"


# Ends within one read


async def test_calls_started_and_cancelled_from_within_callbacks_do_not_disturb_the_frames_that_follow() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        started: list[Recorder] = []

        def more(_: Call) -> None:
            started.append(caller.ask())
            caller.ask().cancel()

        heard = [caller.ask(Recorder({"head": more, "end": more})) for _ in range(20)]
        assert [await one.over() for one in heard] == ["clean"] * 20
        assert [await one.over() for one in started] == ["clean"] * 40
        await eventually(lambda: upstream.peers[0].open == [])
        await asyncio.sleep(0)
