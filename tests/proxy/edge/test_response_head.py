"""response_head: exactly the lines that were asked for, and none that a value brought along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.edge.response_head import response_head, whole_answer

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.text("abcdefgh-", min_size=1, max_size=10).map(str.encode)
VALUES = st.binary(max_size=20)


def test_a_head_with_a_length() -> None:
    assert response_head(200, [(b"a", b"1"), (b"b", b"2")], 5, chunked=False) == (
        b"HTTP/1.1 200 OK\r\na: 1\r\nb: 2\r\ncontent-length: 5\r\n\r\n"
    )


def test_a_head_without_fields() -> None:
    assert response_head(204, [], None, chunked=False) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_a_head_of_a_stream() -> None:
    assert response_head(200, [], None, chunked=True, connection=b"connection: close\r\n") == (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )


def test_a_status_without_a_phrase() -> None:
    assert response_head(529, [], 0, chunked=False).startswith(b"HTTP/1.1 529 \r\n")


@pytest.mark.parametrize("status", [99, 100, 199, 1000])
def test_what_is_no_final_status_is_refused(status: int) -> None:
    with pytest.raises(KeyError):
        response_head(status, [], 0, chunked=False)


@given(st.sampled_from([200, 404, 529, 100]), st.lists(st.tuples(NAMES, VALUES), max_size=6), st.binary(max_size=9))
def test_a_whole_answer_is_its_head_and_its_body(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    def outcome(make: Callable[[], bytes]) -> bytes | type[Exception]:
        try:
            return make()
        except (ValueError, KeyError) as error:
            return type(error)

    expected = outcome(lambda: response_head(status, headers, len(body), chunked=False) + body)
    assert outcome(lambda: whole_answer(status, headers, body)) == expected


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_no_value_can_add_a_line(headers: list[tuple[bytes, bytes]]) -> None:
    bad = any(set(b"\r\n\0") & set(value) for _, value in headers)
    try:
        head = response_head(200, headers, 0, chunked=False)
    except ValueError:
        assert bad
        return
    assert not bad
    lines = head.split(b"\r\n")
    assert lines[1:-3] == [name + b": " + value for name, value in headers]


def test_a_client_reads_it() -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.receive_data(response_head(200, [(b"x-a", b"1")], 0, chunked=False))
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert list(event.headers) == [(b"x-a", b"1"), (b"content-length", b"0")]
