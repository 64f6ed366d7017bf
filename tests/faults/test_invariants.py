"""Every way a provider can fail, streamed and not, against what must hold each time (faults §3.3).

1 an answer within the deadline; 2 nothing made up; 3 few attempts, none after the first byte down; 4 one row; 5 nothing
left under way; 6 the next request succeeds; 7 no traceback, host or secret in the body; 8 counted once.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
    sse,
)
from tests_support.gateway import PROVIDER_KEY, RunningGateway, config_for, running_gateway
from tests_support.leaks import leak_check
from tests_support.traffic import error_events, finish_reasons, has_done, without_ours
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Request, Sleep, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.proxy.accounting.record import Done
    from tests_support.raw import Answer

TIMEOUTS = {"connect": "500ms", "first_token": "500ms", "idle": "500ms", "total": "1500ms"}
ANSWERED_BY = 1.5 + 0.5 + 1.0
"""Seconds: the longest deadline, the half second of invariant 1, and one for a machine that does much else."""
JSON = ("content-type", "application/json")
SSE = ("content-type", "text/event-stream")
CHUNKED = ("transfer-encoding", "chunked")
EVENTS = [event(one) for one in chat_chunks(done=False)]
WHOLE = json_response(chat_completion())
STREAM = [response_head(200, [SSE, CHUNKED]), *map(chunk, EVENTS)]
BEGUN = STREAM[:4]
"""Head, role, two pieces of text."""

HEADS: dict[str, list[Step]] = {
    "close before a word": [FIN],
    "reset before a word": [RST],
    "reset in the head": [b"HTTP/1.1 200 OK\r\ncontent-ty", RST],
    "close in the head": [b"HTTP/1.1 200 OK\r\ncontent-ty", FIN],
    "a dripping head": [
        step
        for byte in b"HTTP/1.1 200 OK\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"
        for step in (bytes([byte]), Sleep(0.05))
    ],
    "garbage": [b"\x00\x01\x02\x03 garbage\r\n\r\n", FIN],
    "another protocol": [b"220 smtp.example ESMTP\r\n", FIN],
    "no status": [b"HTTP/1.1 \r\n\r\n", FIN],
    "a status of words": [b"HTTP/1.1 two hundred\r\n\r\n", FIN],
    "100 and 103 before 200": [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", WHOLE],
    "fifty 103": [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 50, WHOLE],
    "101 unasked": [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"\x81\x05hello",
        FIN,
    ],
    "a field of 128 KiB": [b"HTTP/1.1 200 OK\r\nx-big: " + b"y" * 131072 + b"\r\ncontent-length: 2\r\n\r\n{}"],
    "five hundred fields": [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(500)) + b"content-length: 2\r\n\r\n{}"
    ],
    "a bare CR in a field": [b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}", FIN],
    "a NUL in a field": [b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 2\r\n\r\n{}", FIN],
    "HTTP/2 preface": [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", FIN],
}
BODIES: dict[str, list[Step]] = {
    "length too long": [response_head(200, [JSON, ("content-length", "500")]), b"{}", FIN],
    "length too short": [response_head(200, [JSON, ("content-length", "2")]), b'{}{"more": 1}'],
    "two lengths": [response_head(200, [JSON, ("content-length", "2"), ("content-length", "3")]), b"{}x", FIN],
    "length and chunks": [response_head(200, [JSON, ("content-length", "2"), CHUNKED]), b"2\r\n{}\r\n0\r\n\r\n", FIN],
    "a bad chunk size": [response_head(200, [JSON, CHUNKED]), b"2\r\n{}\r\nxyz\r\n", FIN],
    "a negative chunk size": [response_head(200, [JSON, CHUNKED]), b"-1\r\n{}\r\n", FIN],
    "an endless chunk size": [response_head(200, [JSON, CHUNKED]), b"f" * 40, FIN],
    "no last chunk": [response_head(200, [JSON, CHUNKED]), chunk(b'{"a":1}'), FIN],
    "a chunk extension of 1 MB": [
        response_head(200, [JSON, CHUNKED]),
        b"2;x=" + b"y" * 1_000_000 + b"\r\n{}\r\n0\r\n\r\n",
        FIN,
    ],
    "trailers": [response_head(200, [JSON, CHUNKED]), chunk(b"{}"), b"0\r\nx-trailer: 1\r\n\r\n"],
    "FIN early": [WHOLE[:-20], FIN],
    "RST early": [WHOLE[:-20], Sleep(0.02), RST],
    "bytes after the end": [WHOLE, b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"b": 42}'],
    "a wrong charset": [
        response_head(200, [("content-type", "application/json; charset=utf-16"), ("content-length", "2")]),
        b"{}",
    ],
    "not JSON": [response_head(200, [JSON, ("content-length", "5")]), b"hello"],
    "an empty 200": [response_head(200, [("content-length", "0")])],
    "a 204": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "a redirect": [response_head(302, [("location", "http://169.254.169.254/"), ("content-length", "0")])],
}
RUNE = chat_chunk({"content": "\u6f22"})
STREAMS: dict[str, list[Step]] = {
    "no [DONE]": [*STREAM, LAST_CHUNK],
    "[DONE] twice": [*STREAM, chunk(DONE), chunk(DONE), LAST_CHUNK],
    "split in a rune": [*BEGUN, *(chunk(bytes([byte])) for byte in event(RUNE)), chunk(DONE), LAST_CHUNK],
    "split in data:": [*BEGUN, chunk(b"da"), Sleep(0.01), chunk(EVENTS[3][2:]), chunk(DONE), LAST_CHUNK],
    "line ends of all kinds": [
        *BEGUN,
        chunk(EVENTS[2].replace(b"\n", b"\r\n") + EVENTS[3].replace(b"\n", b"\r") + EVENTS[4] + DONE),
        LAST_CHUNK,
    ],
    "an event of 5 MB": [
        *BEGUN,
        chunk(event(chat_chunk({"content": "y" * 5_000_000}))),
        *STREAM[4:],
        chunk(DONE),
        LAST_CHUNK,
    ],
    "5 MB of an event, then FIN": [*BEGUN, chunk(b'data: {"x":"' + b"y" * 5_000_000), FIN],
    "an invalid event": [*BEGUN, chunk(b"data: {\n\n"), *STREAM[4:], chunk(DONE), LAST_CHUNK],
    "an error event": [*BEGUN, chunk(event({"error": {"message": "overloaded"}})), LAST_CHUNK],
    "an error event first": [STREAM[0], chunk(event({"error": {"message": "overloaded"}})), LAST_CHUNK],
    "stall in mid-stream": [*BEGUN, STALL],
    "stall in mid-event": [*BEGUN, chunk(EVENTS[4][:9]), STALL],
    "drip": [*BEGUN, *(step for one in STREAM[4:] for step in (Sleep(0.2), one)), chunk(DONE), LAST_CHUNK],
    "comments without end": [*BEGUN, *(step for _ in range(60) for step in (Sleep(0.1), chunk(b": x\n\n")))],
    "an hour in a second": [*BEGUN, *(step for _ in range(60) for step in (Sleep(0.05), STREAM[3]))],
    "FIN in mid-stream": [*BEGUN, FIN],
    "RST in mid-stream": [*BEGUN, Sleep(0.02), RST],
    "nothing but the head": [STREAM[0], LAST_CHUNK],
    "length instead of chunks": [response_head(200, [SSE, ("content-length", str(len(b"".join(EVENTS))))]), *EVENTS],
    "the end of the connection": [response_head(200, [SSE]), *EVENTS, chunk(DONE)[3:-2], FIN],
}
STALLS: dict[str, list[Step]] = {
    "stall before the head": [STALL],
    "stall in the head": [b"HTTP/1.1 200 OK\r\n", STALL],
    "stall in the body": [response_head(200, [JSON, ("content-length", "9")]), b"{", STALL],
}
SCRIPTS = {**HEADS, **BODIES, **STREAMS, **STALLS}
HEALTHY = "healthy"


def script(asked: Request) -> list[Step]:
    name = asked.header("x-script") or HEALTHY
    if name != HEALTHY:
        return SCRIPTS[name]
    return sse(chat_chunks()) if asked.json()["stream"] else [WHOLE]  # type: ignore[return-value]  # a list of bytes


class Tried:
    """One gateway whose provider follows the script each request names; `dead`, `lost` and `deaf` cannot be reached."""

    def __init__(self, gateway: RunningGateway, upstream: FakeUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.rows = 0

    async def __call__(self, name: str, stream: bool, model: str = "m") -> tuple[Answer, Done]:
        """Ask, and hold what must hold whatever the script was."""
        counted = self.counted
        before = len(self.upstream.requests)
        started = time.monotonic()
        body = b'{"model":"%b","stream":%b}' % (model.encode(), b"true" if stream else b"false")
        answer = await self.gateway.post(body, [("x-script", name.encode().decode("latin-1"))])
        assert time.monotonic() - started < ANSWERED_BY
        self.rows += 1
        row = (await self.gateway.rows(self.rows))[-1]
        assert row.attempts <= 3
        attempts = len(self.upstream.requests) - before
        # A kept connection that closes before a word of the answer may have been closed already: it is replaced once.
        assert attempts <= row.attempts + 1
        if answer.status == 200 and stream:
            assert attempts <= 1
        for secret in (b"Traceback", PROVIDER_KEY.encode(), b"127.0.0.1", b"tests/"):
            assert secret not in answer.body
        assert self.counted == counted + 1
        assert not self.gateway.half.engine.live
        return answer, row

    @property
    def counted(self) -> int:
        """Exchanges in the metrics."""
        return sum(self.gateway.half.engine.stats.exchanges.values())


def filled_backlog() -> list[socket.socket]:
    """A port that answers no more connections: its backlog is full."""
    deaf = socket.create_server(("127.0.0.1", 0), backlog=0)
    callers = []
    for _ in range(4):
        caller = socket.socket()
        caller.setblocking(False)
        caller.connect_ex(deaf.getsockname())
        callers.append(caller)
    return [deaf, *callers]


@pytest.fixture(scope="module")
async def tried() -> AsyncIterator[Tried]:
    sockets = filled_backlog()
    async with leak_check(), FakeUpstream(script) as upstream:
        config = config_for(upstream, timeouts=TIMEOUTS)
        for name, url in {
            "dead": "http://127.0.0.1:9/v1",
            "lost": "http://no-such-host.invalid/v1",
            "deaf": f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1",
        }.items():
            config["providers"][name] = {"base_url": url, "timeouts": TIMEOUTS}
        async with running_gateway(config) as gateway:
            yield Tried(gateway, upstream)
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_every_fault_keeps_every_invariant(tried: Tried, name: str, stream: bool) -> None:
    answer, row = await tried(name, stream)
    sent = b"".join(step for step in SCRIPTS[name] if isinstance(step, bytes))
    assert has_done(answer.body) <= min(1, sent.count(b"[DONE]"))
    assert len(finish_reasons(answer.body)) <= sent.count(b'"finish_reason":"stop"')
    if answer.status >= 500:
        assert row.outcome == "failed"
        assert set(answer.error) >= {"message", "type", "param", "code"}
        assert row.status == answer.status
    elif row.outcome == "truncated":
        if answer.whole:
            assert len(error_events(answer.body)) == 1
    else:
        assert answer.whole
        assert row.outcome in ("ok", "upstream_error")
    healthy, _ = await tried(HEALTHY, stream)
    assert healthy.status == 200
    assert without_ours(healthy.body) == (b"".join([*EVENTS, DONE]) if stream else WHOLE.split(b"\r\n\r\n")[1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("name", "status"), [("dead", 502), ("lost", 502), ("deaf", 504)])
async def test_a_provider_that_cannot_be_reached_keeps_them_too(
    tried: Tried, name: str, status: int, stream: bool
) -> None:
    answer, row = await tried(HEALTHY, stream, f"{name}/m")
    assert (answer.status, row.outcome) == (status, "failed")
    assert b"no-such-host" not in answer.body


PASS = {
    "100 and 103 before 200",
    "trailers",
    "bytes after the end",
    "length too short",
    "not JSON",
    "a wrong charset",
}


@pytest.mark.parametrize("name", sorted(PASS))
async def test_what_is_whole_passes(tried: Tried, name: str) -> None:
    answer, row = await tried(name, stream=False)
    assert (answer.status, row.outcome) == (200, "ok")


FLAGGED = {*HEADS, *BODIES} - PASS - {"an empty 200", "a 204", "a redirect", "fifty 103"}


@pytest.mark.parametrize("name", sorted(FLAGGED | set(STALLS)))
async def test_what_is_broken_is_never_a_success(tried: Tried, name: str) -> None:
    answer, row = await tried(name, stream=False)
    assert (answer.status, row.outcome) in ((502, "failed"), (504, "failed"))


async def test_bytes_after_an_answer_spoil_the_connection_and_not_the_next_answer(tried: Tried) -> None:
    for _ in range(3):
        await tried("bytes after the end", stream=False)
        answer, _ = await tried(HEALTHY, stream=False)
        assert b'"b": 42' not in answer.body
