"""H1Connection without a socket: an answer may be cut anywhere, a receiver may do anything from inside a callback."""

from __future__ import annotations

import asyncio
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.proxy.upstream.h1 import HEAD_SECONDS, H1Call, H1Connection
from tests_support.answers import LAST_CHUNK, chunk
from tests_support.caller import Recorder
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.upstream.call import Call, ResponseHead
    from headgate.proxy.upstream.h1 import Carrier

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"content-length: 5\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that writes down what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.writes = 0
        self.aborted = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data
        self.writes += 1

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Owner:
    """Counts what comes back."""

    def __init__(self) -> None:
        self.given_back = 0
        self.dropped = 0

    def give_back(self, connection: H1Connection) -> None:
        self.given_back += 1

    def expire(self, connection: H1Connection) -> None:
        connection.close()

    def drop(self, connection: H1Connection) -> None:
        self.dropped += 1


class TakesWholes(Recorder):
    """Remembers which answers were told at once."""

    takes_wholes = True

    def __init__(self, on: Any = None) -> None:
        super().__init__(on)
        self.wholes: list[bytes] = []

    def on_whole(self, call: Call, head: ResponseHead, body: bytes) -> None:
        self.wholes.append(body)
        super().on_whole(call, head, body)


R = TypeVar("R", bound=Recorder)


class OneCall(H1Call):
    """A call that goes straight to its receiver."""

    def __init__(self, receiver: Recorder, connection: H1Connection, body: bytes = b"") -> None:
        self.head = b"HEAD"
        self.request = None
        self.body = body
        self.source = None
        self.content_expected = True
        self.announced = False
        self.upgrade = False
        self.receiver = receiver
        self.connection = connection
        receiver.call = self

    def pause(self) -> None:
        self.connection.pause()

    def resume(self) -> None:
        self.connection.resume()

    def cancel(self) -> None:
        self.connection.close()

    def on_over(self) -> None: ...

    def on_failed(self, error: GatewayError, carrier: Carrier) -> None:
        self.receiver.on_error(self, error)


class Bench:
    """A connected connection and its surroundings."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.owner = Owner()
        self.wire = Wire()
        self.connection = H1Connection(self.owner, self.clock)
        self.connection.connection_made(self.wire)

    @overload
    def send(self, receiver: R, body: bytes = b"") -> R: ...

    @overload
    def send(self, receiver: None = None, body: bytes = b"") -> Recorder: ...

    def send(self, receiver: Recorder | None = None, body: bytes = b"") -> Recorder:
        receiver = receiver or Recorder()
        call = OneCall(receiver, self.connection, body)
        self.connection.send(call)
        return receiver

    def feed(self, data: bytes) -> None:
        if not self.wire.aborted:
            self.connection.data_received(data)

    def outcome(self, heard: Recorder) -> tuple[object, ...]:
        return (heard.outcome, heard.status, heard.body, self.wire.aborted, self.owner.given_back, self.owner.dropped)


ANSWERS = [
    LENGTH + b"hello",
    LENGTH + b"helloX",
    LENGTH + b"hello" + LENGTH + b"HELLO",
    CHUNKED + chunk(b"hel") + chunk(b"lo") + LAST_CHUNK,
    CHUNKED + b"5;ext=1\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n",
    CHUNKED + chunk(b"hello") + b"zz",
    b"HTTP/1.1 103 Hints\r\na: b\r\n\r\n" + LENGTH + b"hello",
    b"HTTP/1.1 101 Switch\r\n\r\n",
    OK + b"\r\nhello",
    OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
    OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 299 x\r\ntransfer-encoding: gzip\r\n\r\nhello",
    b"garbage",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answer=st.sampled_from(ANSWERS), cuts=st.lists(st.integers(0, 200), max_size=12), eof=st.booleans())
async def test_an_answer_cut_anywhere_has_the_same_outcome(answer: bytes, cuts: list[int], eof: bool) -> None:
    places = sorted({cut for cut in cuts if cut < len(answer)} | {0, len(answer)})
    outcomes = []
    apart = [answer[a:b] for a, b in pairwise(places)]
    for pieces, receiver in product(([answer], apart), (Recorder, TakesWholes)):
        bench = Bench()
        heard = bench.send(receiver())
        for piece in pieces:
            bench.feed(piece)
        if eof and not bench.wire.aborted:
            bench.connection.eof_received()
        given_back_then_closed = bench.owner.given_back == bench.owner.dropped == 1
        outcome = bench.outcome(heard)
        # Bytes behind the end close a connection either before it is given back or as soon as they come.
        outcomes.append(outcome[:3] if given_back_then_closed or bench.wire.aborted else outcome)
    assert outcomes == outcomes[:1] * 4


async def test_a_plain_answer_that_came_at_once_is_told_at_once_when_the_connection_is_free() -> None:
    bench = Bench()
    second = TakesWholes({"end": lambda _: None})
    first = TakesWholes({"head": lambda _: bench.send(second)})  # `head` is the first of what `on_whole` says here
    bench.send(first)
    bench.feed(LENGTH + b"hello")
    assert (first.wholes, first.events) == ([b"hello"], ["sent", "head", "data", "end"])
    assert (bench.owner.given_back, second.events) == (1, ["sent"])
    bench.feed(LENGTH + b"HELLO")
    assert second.wholes == [b"HELLO"]
    third = bench.send(TakesWholes())
    bench.feed(CHUNKED + chunk(b"hello") + LAST_CHUNK)
    assert (third.wholes, third.body) == ([], b"hello")


async def test_an_answer_that_outruns_its_request_is_not_told_as_a_whole() -> None:
    bench = Bench()
    heard = bench.send(TakesWholes(), body=b"x" * 1_000_000)
    bench.connection.pause_writing()
    await asyncio.sleep(0)
    bench.feed(LENGTH + b"hello")
    assert (heard.wholes, heard.events) == ([], ["head", "data", "end"])
    assert (bench.wire.aborted, bench.owner.given_back) == (True, 0)


async def test_many_answers_pass_through_one_connection() -> None:
    bench = Bench()
    for answer in ANSWERS[:1] * 3 + ANSWERS[3:5] * 3 + ANSWERS[6:7] + ANSWERS[11:12] * 2 + ANSWERS[:1]:
        heard = bench.send()
        bench.feed(answer)
        assert heard.outcome == "clean"
    assert bench.owner.given_back == 13
    assert not bench.wire.aborted


async def test_a_head_is_measured_without_the_content_that_came_with_it() -> None:
    bench = Bench()
    heard = bench.send()
    bench.feed(OK + b"content-length: 200000\r\n\r\n" + b"x" * 200_000)
    assert heard.outcome == "clean"
    assert len(heard.body) == 200_000


async def test_the_trailers_of_one_answer_are_not_the_fields_of_the_next() -> None:
    bench = Bench()
    first = bench.send()
    bench.feed(CHUNKED + chunk(b"a") + b"0\r\nx-trailer: 1\r\n\r\n")
    second = bench.send()
    bench.feed(LENGTH + b"hello")
    assert first.head is not None
    assert second.head is not None
    assert first.head.headers == [(b"transfer-encoding", b"chunked")]
    assert second.head.headers == [(b"content-length", b"5")]


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    bench = Bench()
    bench.send()
    bench.feed(LENGTH + b"hello")
    bench.feed(LENGTH + b"HELLO")
    assert bench.wire.aborted
    assert bench.owner.dropped == 1


async def test_a_small_request_is_one_write_and_is_announced_at_once() -> None:
    bench = Bench()
    heard = bench.send(body=b"body")
    assert (bench.wire.sent, bench.wire.writes, heard.events) == (b"HEADbody", 1, ["sent"])


async def test_a_large_request_is_sent_as_fast_as_the_provider_takes_it_and_announced_at_its_end() -> None:
    bench = Bench()
    body = bytes(range(256)) * 4096
    heard = bench.send(body=body)
    bench.connection.pause_writing()
    await asyncio.sleep(0)
    first = len(bench.wire.sent)
    assert 0 < first < len(body) // 2
    bench.connection.resume_writing()
    assert bench.wire.sent == b"HEAD" + body
    assert heard.events == ["sent"]


async def test_an_answer_that_ends_before_the_request_is_sent_closes_the_connection() -> None:
    bench = Bench()
    heard = bench.send(body=b"x" * 1_000_000)
    bench.connection.pause_writing()
    await asyncio.sleep(0)
    bench.feed(LENGTH + b"hello")
    assert heard.outcome == "clean"
    assert heard.events == ["head", "data", "end"]
    assert (bench.wire.aborted, bench.owner.given_back) == (True, 0)
    bench.connection.resume_writing()


async def test_an_answer_that_ends_while_the_request_still_leaves_the_machine_closes_the_connection() -> None:
    bench = Bench()
    heard = bench.send(body=b"x" * 1_000_000)
    await asyncio.sleep(0)
    bench.connection.pause_writing()
    bench.feed(LENGTH + b"hello")
    assert heard.events == ["sent", "head", "data", "end"]
    assert (bench.wire.aborted, bench.owner.given_back) == (True, 0)


async def test_an_answer_that_outruns_the_announcement_makes_it_needless() -> None:
    bench = Bench()
    heard = bench.send(body=bytes(20_000))
    bench.feed(LENGTH)
    await asyncio.sleep(0)
    bench.feed(b"hello")
    assert heard.events == ["head", "data", "end"]


@pytest.mark.parametrize("event", ["head", "data"])
async def test_cancelling_from_inside_a_callback_silences_the_rest_of_the_read(event: Any) -> None:
    bench = Bench()
    heard = Recorder({event: lambda _: heard.cancel()})
    bench.send(heard)
    bench.feed(CHUNKED + chunk(b"a") + chunk(b"b") + LAST_CHUNK)
    assert heard.outcome is None
    assert heard.events[-1] == event
    assert (bench.wire.aborted, bench.owner.dropped, bench.owner.given_back) == (True, 1, 0)


async def test_cancelling_at_the_last_byte_and_before_garbage_is_silent_too() -> None:
    for rest in (b"", b"garbage", LENGTH + b"HELLO"):
        bench = Bench()
        heard = Recorder({"data": lambda _: heard.cancel()})  # noqa: B023 - called within this turn
        bench.send(heard)
        bench.feed(LENGTH + b"hello" + rest)
        assert heard.outcome is None
        assert bench.owner.dropped == 1


async def test_a_call_started_from_inside_the_end_of_another_hears_only_its_own_answer() -> None:
    bench = Bench()
    second = Recorder()
    first = Recorder({"end": lambda _: bench.send(second)})
    bench.send(first)
    bench.feed(CHUNKED + chunk(b"first") + LAST_CHUNK)
    assert first.outcome == "clean"
    assert second.events == ["sent"]
    bench.feed(LENGTH + b"hello")
    assert second.body == b"hello"


async def test_pausing_from_inside_a_callback_delivers_what_was_read_and_the_end_resumes_for_the_next_call() -> None:
    bench = Bench()
    heard = Recorder({"head": lambda call: call.pause()})
    bench.send(heard)
    bench.feed(CHUNKED + chunk(b"a") + chunk(b"b"))
    assert heard.body == b"ab"
    assert not bench.wire.reading
    bench.feed(LAST_CHUNK)
    assert heard.outcome == "clean"
    assert bench.wire.reading


async def test_a_receiver_that_raises_ends_its_call_as_an_error_of_ours_and_is_reported() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    bench = Bench()

    def fails(_: object) -> None:
        raise KeyError("a bug")

    heard = bench.send(Recorder({"data": fails}))
    bench.feed(LENGTH + b"hello")
    assert heard.outcome == "GatewayError"
    assert isinstance(reported[0]["exception"], KeyError)
    assert bench.wire.aborted


async def test_a_head_that_has_begun_must_be_whole_in_ten_seconds() -> None:
    bench = Bench()
    heard = bench.send()
    assert bench.connection.deadline > bench.clock.monotonic() + 1e9
    bench.feed(b"HTTP/1.1 200")
    bench.clock.advance(1)
    bench.feed(b" OK\r\n")
    assert bench.connection.deadline == bench.clock.monotonic() - 1 + HEAD_SECONDS
    bench.connection.on_deadline()
    assert heard.outcome == "ProtocolError"


async def test_after_an_interim_answer_the_head_may_take_its_time() -> None:
    bench = Bench()
    bench.send()
    bench.feed(b"HTTP/1.1 100 Con")
    assert bench.connection.deadline < bench.clock.monotonic() + 1e9
    bench.feed(b"tinue\r\n\r\n")
    assert bench.connection.deadline > bench.clock.monotonic() + 1e9


async def test_a_head_that_came_whole_or_is_not_read_has_no_deadline() -> None:
    bench = Bench()
    heard = bench.send()
    bench.feed(LENGTH[:20])
    heard.call.pause()
    assert bench.connection.deadline > bench.clock.monotonic() + 1e9
    heard.call.resume()
    bench.feed(LENGTH[20:])
    assert bench.connection.deadline > bench.clock.monotonic() + 1e9


async def test_the_body_of_a_request_is_let_go_when_the_answer_begins() -> None:
    bench = Bench()
    heard = bench.send(body=b"body")
    bench.feed(LENGTH)
    assert isinstance(heard.call, OneCall)
    assert heard.call.body == b""


async def test_it_says_what_it_is_doing() -> None:
    bench = Bench()
    assert repr(bench.connection) == "<H1Connection idle>"
    bench.send()
    assert repr(bench.connection) == "<H1Connection busy>"
    bench.connection.connection_lost(ConnectionResetError())
    assert repr(bench.connection) == "<H1Connection closed>"
    assert not bench.connection.usable
