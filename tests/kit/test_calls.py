"""FakeCall: raw bytes cut anywhere become the callbacks of the seam, and every kind of end its own."""

from __future__ import annotations

import pytest

from headgate.proxy.errors import BrokenAnswerError, GatewayError, ProtocolError, ResetError
from headgate.proxy.upstream.call import Call, CallReceiver, ResponseHead, UpstreamRequest
from tests_support.answers import chat_chunks, json_response, sse
from tests_support.calls import FakeCall, FakeEndpoint

REQUEST = UpstreamRequest(b"POST", b"/chat/completions", [], b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


class Receiver(CallReceiver):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self.data = b""
        self.ends: list[bool | type[GatewayError]] = []

    def on_sent(self, call: Call) -> None: ...

    def on_head(self, call: Call, head: ResponseHead) -> None:
        self.heads.append(head)

    def on_data(self, call: Call, data: bytes) -> None:
        self.data += data

    def on_end(self, call: Call, clean: bool) -> None:
        self.ends.append(clean)

    def on_error(self, call: Call, error: GatewayError) -> None:
        self.ends.append(type(error))


def started() -> tuple[FakeCall, Receiver]:
    receiver = Receiver()
    return FakeEndpoint().start(REQUEST, receiver), receiver


def test_a_whole_answer_ends_clean_wherever_it_is_cut() -> None:
    for at in range(len(CHUNKED) + 1):
        call, receiver = started()
        call.feed(CHUNKED[:at])
        call.feed(CHUNKED[at:])
        call.fin()
        assert (receiver.data, receiver.ends, len(receiver.heads)) == (b"hello", [True], 1)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_cut_is_an_error_at_every_byte(how: str) -> None:
    for at in range(len(CHUNKED)):
        call, receiver = started()
        call.feed(CHUNKED[:at])
        getattr(call, how)()
        assert receiver.ends == [BrokenAnswerError if at else ResetError]


def test_the_end_of_the_connection_is_never_clean() -> None:
    call, receiver = started()
    call.feed(b"".join(sse(chat_chunks(), chunked=False)))
    call.fin()
    assert receiver.ends == [False]


def test_a_continue_is_skipped_and_garbage_is_no_http() -> None:
    call, receiver = started()
    call.feed(b"HTTP/1.1 100 Continue\r\n\r\n" + json_response({}))
    assert [head.status for head in receiver.heads] == [200]
    call, receiver = started()
    call.feed(b"SSH-2.0-OpenSSH\r\n")
    assert receiver.ends == [ProtocolError]


def test_nothing_arrives_after_cancel() -> None:
    call, receiver = started()
    call.feed(CHUNKED[:20])
    call.cancel()
    call.feed(CHUNKED[20:])
    call.fin()
    assert (receiver.heads, receiver.data, receiver.ends) == ([], b"", [])
