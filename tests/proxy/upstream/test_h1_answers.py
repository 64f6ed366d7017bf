"""Answers over real sockets: a good one comes whole, any other is an error and takes its connection along."""

from __future__ import annotations

import pytest

from tests_support.answers import LAST_CHUNK, chunk, response
from tests_support.caller import Caller
from tests_support.upstream import FIN, RST, FakeUpstream, Step

pytestmark = pytest.mark.usefixtures("no_leaks")

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"content-length: 5\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
HELLO = chunk(b"hello") + LAST_CHUNK
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"

WHOLE: dict[str, tuple[list[Step], bool]] = {
    "content-length": ([LENGTH + b"hello"], True),
    "content-length, byte by byte": ([bytes([byte]) for byte in LENGTH + b"hello"], True),
    "chunked": ([CHUNKED + HELLO], True),
    "chunks with extensions": ([CHUNKED + b'3;a=b\r\nhel\r\n2;c="d"\r\nlo\r\n0;e\r\n\r\n'], True),
    "coding in capitals, with space": ([OK + b"Transfer-Encoding:  CHUNKED \r\n\r\n" + HELLO], True),
    "trailers": ([CHUNKED + chunk(b"hello") + b"0\r\nx-a: b\r\nset-cookie: c\r\n\r\n"], True),
    "100 and 103 before": ([b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM, LENGTH + b"hello"], True),
    "ten interim answers": ([INTERIM * 10 + LENGTH + b"hello"], True),
    "no reason phrase": ([b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello"], True),
    "an upgrade offered": ([OK + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\nhello"], True),
    "HTTP/1.0 that keeps alive": (
        [b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello"],
        True,
    ),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"], False),
    "connection: close": ([OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello"], False),
    "closed at once": ([LENGTH + b"hello", FIN], False),
    "reset after the end": ([LENGTH + b"hello", RST], False),
    "too long for its length": ([LENGTH + b"hello, world"], False),
    "another answer behind it": ([LENGTH + b"hello" + LENGTH + b"HELLO"], False),
    "the first byte of another answer behind it": ([LENGTH + b"hello" + b"H"], False),
    "garbage behind the last chunk": ([CHUNKED + HELLO + b"\0"], False),
    "bytes behind the end, a moment later": ([LENGTH + b"hello", b"x"], False),
    "64 KiB of fields": ([OK + b"x-a: " + b"a" * 65_000 + b"\r\ncontent-length: 5\r\n\r\nhello"], True),
    "200 fields": ([OK + b"x-a: b\r\n" * 199 + b"content-length: 5\r\n\r\nhello"], True),
    "chunk extensions of 64 KiB": ([CHUNKED + b"5;" + b"a" * 65_000, b"\r\nhello\r\n" + LAST_CHUNK], True),
}


@pytest.mark.parametrize("case", WHOLE)
async def test_a_whole_answer_comes_whole_and_its_connection_is_kept_only_when_it_is_clean(case: str) -> None:
    steps, reused = WHOLE[case]
    async with FakeUpstream(steps) as upstream, Caller(upstream.base_url) as caller:
        for _ in range(2):
            heard = caller.ask()
            assert await heard.over() == "clean"
            assert (heard.status, heard.body) == (200, b"hello")
            assert heard.head is not None
            assert heard.head.header(b"x-a") in (None, b"b", b"a" * 65_000)
            assert heard.head.header(b"link") is None
            if not reused:
                await upstream.wait_until(lambda: not upstream.open_connections, "the connection to be closed")
        assert len(upstream.connections) == (1 if reused else 2)


BODILESS: dict[str, bytes] = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    "an empty body": OK + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", BODILESS)
async def test_an_answer_without_content_ends_with_its_head(case: str) -> None:
    async with FakeUpstream(BODILESS[case]) as upstream, Caller(upstream.base_url) as caller:
        for _ in range(2):
            heard = caller.ask()
            assert await heard.over() == "clean"
            assert heard.events == ["sent", "head", "end"]
        assert len(upstream.connections) == 1


@pytest.mark.parametrize("behind", [b"", b"hello", HELLO])
async def test_nothing_follows_the_head_of_an_answer_to_head(behind: bytes) -> None:
    for head in (LENGTH, CHUNKED, OK + b"\r\n"):
        async with FakeUpstream(head + behind) as upstream, Caller(upstream.base_url) as caller:
            heard = caller.ask(method=b"HEAD", body=b"")
            assert await heard.over() == "clean"
            assert heard.events == ["sent", "head", "end"]
            await upstream.wait_closed()


BROKEN: dict[str, tuple[str, list[Step]]] = {
    "FIN before a byte": ("ResetError", [FIN]),
    "RST before a byte": ("ResetError", [RST]),
    "FIN in the status line": ("BrokenAnswerError", [b"HTTP/1.1 2", FIN]),
    "RST in the head": ("BrokenAnswerError", [OK + b"content-len", RST]),
    "FIN after an interim answer": ("BrokenAnswerError", [INTERIM, FIN]),
    "FIN right behind the head": ("BrokenAnswerError", [LENGTH, FIN]),
    "FIN before the length": ("BrokenAnswerError", [LENGTH + b"hell", FIN]),
    "RST before the length": ("BrokenAnswerError", [LENGTH + b"hell", RST]),
    "FIN in a chunk": ("BrokenAnswerError", [CHUNKED + b"5\r\nhell", FIN]),
    "FIN between chunks": ("BrokenAnswerError", [CHUNKED + chunk(b"hello"), FIN]),
    "RST between chunks": ("BrokenAnswerError", [CHUNKED + chunk(b"hello"), RST]),
    "FIN in the last chunk": ("BrokenAnswerError", [CHUNKED + chunk(b"hello") + b"0\r\n", FIN]),
    "RST before the end by close": ("BrokenAnswerError", [OK + b"\r\nhel", RST]),
    "another protocol": ("ProtocolError", [b"SSH-2.0-OpenSSH_9.2\r\n"]),
    "no status": ("ProtocolError", [b"HTTP/1.1 \r\n\r\n"]),
    "status of two digits": ("ProtocolError", [b"HTTP/1.1 99 x\r\n\r\n"]),
    "status below 100": ("ProtocolError", [b"HTTP/1.1 099 x\r\ncontent-length: 0\r\n\r\n"]),
    "status above 599": ("ProtocolError", [b"HTTP/1.1 600 x\r\ncontent-length: 0\r\n\r\n"]),
    "101 unasked": ("ProtocolError", [b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello"]),
    "101 with upgrade": (
        "ProtocolError",
        [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"],
    ),
    "fifty interim answers": ("ProtocolError", [INTERIM * 50 + LENGTH + b"hello"]),
    "one field of 128 KiB": ("ProtocolError", [OK + b"x-a: " + b"a" * 131_072 + b"\r\n\r\n"]),
    "one field of 128 KiB, in pieces": ("ProtocolError", [OK + b"x-a: ", *[b"a" * 8192] * 16, b"\r\n\r\n"]),
    "a head of 80 KiB that is read at once": (
        "ProtocolError",
        [OK + b"x-a: " + b"a" * 80_000 + b"\r\ncontent-length: 5\r\n\r\nhello"],
    ),
    "a reason phrase of 128 KiB": ("ProtocolError", [b"HTTP/1.1 200 " + b"a" * 131_072 + b"\r\n\r\n"]),
    "500 fields": ("ProtocolError", [OK + b"x-a: b\r\n" * 500 + b"\r\n"]),
    "two lengths": ("ProtocolError", [OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"]),
    "the same length twice": ("ProtocolError", [OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello"]),
    "a list of lengths": ("ProtocolError", [OK + b"content-length: 5, 5\r\n\r\nhello"]),
    "a signed length": ("ProtocolError", [OK + b"content-length: +5\r\n\r\nhello"]),
    "a length beyond all bounds": ("ProtocolError", [OK + b"content-length: 99999999999999999999\r\n\r\nhello"]),
    "length, then chunked": (
        "ProtocolError",
        [OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + HELLO],
    ),
    "chunked, then length": (
        "ProtocolError",
        [OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + HELLO],
    ),
    "another coding": ("ProtocolError", [OK + b"transfer-encoding: gzip\r\n\r\nhello", FIN]),
    "a coding before chunked": ("ProtocolError", [OK + b"transfer-encoding: gzip, chunked\r\n\r\n" + HELLO]),
    "a coding after chunked": ("ProtocolError", [OK + b"transfer-encoding: chunked, gzip\r\n\r\n" + HELLO]),
    "chunked twice": (
        "ProtocolError",
        [OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + HELLO],
    ),
    "an unknown coding": ("ProtocolError", [OK + b"transfer-encoding: xchunked\r\n\r\n" + HELLO]),
    "no coding": ("ProtocolError", [OK + b"transfer-encoding: identity\r\n\r\nhello", FIN]),
    "chunks in HTTP/1.0": ("ProtocolError", [b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + HELLO]),
    "a chunk size that is no number": ("ProtocolError", [CHUNKED + b"zz\r\nhello\r\n"]),
    "a signed chunk size": ("ProtocolError", [CHUNKED + b"-5\r\nhello\r\n"]),
    "a chunk size beyond all bounds": ("ProtocolError", [CHUNKED + b"f" * 17 + b"\r\nhello\r\n"]),
    "a chunk longer than it says": ("ProtocolError", [CHUNKED + b"5\r\nhello, world\r\n" + LAST_CHUNK]),
    "bare line feeds in chunks": ("ProtocolError", [CHUNKED + b"5\nhello\n0\n\n"]),
    "a chunk extension of 1 MB": ("ProtocolError", [CHUNKED + b"5;" + b"a" * 1_000_000 + b"\r\nhello\r\n"]),
    "trailers of 1 MB": ("ProtocolError", [CHUNKED + chunk(b"hello") + b"0\r\nx-a: " + b"a" * 1_000_000 + b"\r\n\r\n"]),
    "bare line feeds": ("ProtocolError", [b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello"]),
    "a folded field": ("ProtocolError", [OK + b"x-a: b\r\n c\r\ncontent-length: 5\r\n\r\nhello"]),
    "NUL in a value": ("ProtocolError", [OK + b"x-a: b\0c\r\ncontent-length: 5\r\n\r\nhello"]),
    "CR in a value": ("ProtocolError", [OK + b"x-a: b\rc\r\ncontent-length: 5\r\n\r\nhello"]),
    "a space before the colon": ("ProtocolError", [OK + b"content-length : 5\r\n\r\nhello"]),
    "a field without a name": ("ProtocolError", [OK + b": b\r\ncontent-length: 5\r\n\r\nhello"]),
    "a field without a colon": ("ProtocolError", [OK + b"abc\r\ncontent-length: 5\r\n\r\nhello"]),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_answer_is_an_error_and_its_connection_is_closed(case: str) -> None:
    outcome, steps = BROKEN[case]
    async with FakeUpstream(steps) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        assert await heard.over() == outcome
        assert heard.error is not None
        assert "127.0.0.1" not in heard.error.message
        assert b"hello".startswith(heard.body)
        await upstream.wait_until(lambda: not upstream.open_connections, "the connection to be closed")
        assert caller.stats.cx_destroy_with_active_rq == 1
        assert caller.stats.cx_protocol_error == (outcome == "ProtocolError")
        upstream.script = LENGTH + b"hello"
        assert await caller.ask().over() == "clean"


async def test_what_arrived_before_the_break_is_delivered_first() -> None:
    async with (
        FakeUpstream([CHUNKED + chunk(b"hel") + b"5\r\nlo", FIN]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        heard = caller.ask()
        assert await heard.over() == "BrokenAnswerError"
        assert heard.body == b"hello"


async def test_an_end_by_close_is_an_end_but_not_a_clean_one() -> None:
    for head in (OK + b"\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 205 Reset Content\r\n\r\n"):
        async with FakeUpstream([head, b"hello", FIN]) as upstream, Caller(upstream.base_url) as caller:
            heard = caller.ask()
            assert await heard.over() == "closed"
            assert heard.body == b"hello"


async def test_a_redirect_is_an_answer_like_any_other() -> None:
    answer = response(307, b"", [("location", "http://127.0.0.1:1/elsewhere")])
    async with FakeUpstream(answer) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        assert await heard.over() == "clean"
        assert heard.status == 307
        assert len(upstream.requests) == 1
