"""load: both ends of a gateway in one loop. Here mostly without a gateway: the client talks to the provider itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from perf import load as load_module
from perf import traffic
from perf.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def load() -> Iterator[Load]:
    with contextlib.closing(Load()) as load:
        yield load


def request(load: Load, stream: int | None = None) -> bytes:
    return traffic.request(f"127.0.0.1:{load.provider_port}", {}, traffic.chat_body(stream))


def busy() -> float:
    """Reads as a gateway that is always busy."""
    return time.monotonic()


def test_one_exchange_comes_back_whole(load: Load) -> None:
    assert load.once(load.provider_port, request(load), 2.0) == traffic.ANSWER


@pytest.mark.parametrize("path", traffic.ENDPOINTS)
def test_every_endpoint_has_an_answer_of_its_own(load: Load, path: str) -> None:
    body, answer = traffic.ENDPOINTS[path]
    asked = traffic.request(f"127.0.0.1:{load.provider_port}", {}, body, path)
    assert load.once(load.provider_port, asked, 2.0) == answer
    assert traffic.is_complete(answer)


def test_what_is_not_known_is_answered_as_chat(load: Load) -> None:
    assert load.once(load.provider_port, b"GET /v1/models HTTP/1.1\r\n\r\n", 2.0) == traffic.ANSWER


def test_a_stream_holds_every_event_in_order_and_its_end(load: Load) -> None:
    answer = load.once(load.provider_port, request(load, 3), 2.0, events=20)
    assert answer is not None
    places = [answer.find(traffic.marker(n)) for n in range(20)]
    assert -1 not in places
    assert places == sorted(places)
    assert answer.endswith(traffic.DONE)


def test_a_port_where_nobody_listens_is_no_answer(load: Load) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert load.once(unused.getsockname()[1], request(load), 1.0) is None


def test_pressing_counts_what_was_answered(load: Load) -> None:
    sample = load.plain(load.provider_port, request(load), busy, connections=4, warm=0.0, seconds=0.1)
    assert sample.requests > 10
    assert sample.failed == 0
    assert sample.wall == pytest.approx(0.1, abs=0.1)


def test_a_window_in_which_the_gateway_hardly_ran_is_stretched(load: Load) -> None:
    sample = load.plain(load.provider_port, request(load), lambda: 0.0, connections=1, warm=0.0, seconds=0.02)
    assert sample.wall >= load_module.STRETCH * 0.02


def test_streams_send_the_events_they_say(load: Load) -> None:
    requests = [request(load, n) for n in range(4)]
    sample = load.streams(load.provider_port, requests, busy, events=5, warm=0.0, seconds=0.1)
    assert sample.streams > 4
    assert sample.events == pytest.approx(5 * sample.streams, abs=5 * 4)
    assert (sample.failed, sample.stalls) == (0, 0)


def test_a_paced_load_sends_at_its_rate_and_times_each(load: Load) -> None:
    sample = load.paced(load.provider_port, request(load), connections=2, rate=100, seconds=0.2)
    assert sample.requests == len(sample.latencies) == pytest.approx(20, abs=1)
    assert all(0 < latency < 1 for latency in sample.latencies)


def test_an_event_waits_for_the_one_before_to_arrive(load: Load) -> None:
    """Through a gateway that passes at most one event per read, and would be caught passing two."""
    most = 0
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        nonlocal most
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                most = max(most, data.count(b'"content":" w'))
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def gateway() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", load.provider_port)) as provider:
            up = threading.Thread(target=carry, args=(client, provider))
            up.start()
            carry(provider, client)
            up.join()

    thread = threading.Thread(target=gateway)
    thread.start()
    port = listener.getsockname()[1]
    sample = load.streams(port, [request(load, 0)], busy, events=50, warm=0.0, seconds=0.2)
    thread.join(5)
    listener.close()
    assert sample.events > 50
    assert most == 1


def test_a_gateway_that_holds_events_back_is_counted_not_waited_for(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "QUIET", 0.02)
    monkeypatch.setattr(traffic, "content", lambda n: traffic.chunk(b"data: {}\n\n"))
    sample = load.streams(load.provider_port, [request(load, 0)], busy, events=3, warm=0.0, seconds=0.3)
    assert sample.stalls > 3
    assert sample.streams > 1


def test_an_answer_other_than_200_is_a_failure(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "ANSWER", b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
    sample = load.plain(load.provider_port, request(load), busy, connections=1, warm=0.0, seconds=0.05)
    assert sample.failed > 0
    assert sample.requests == 0


@pytest.mark.parametrize(
    ("message", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", True),
    ],
)
def test_a_message_is_complete_when_its_framing_says_so(message: bytes, complete: bool) -> None:
    assert traffic.is_complete(message) is complete
