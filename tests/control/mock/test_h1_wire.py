"""h1_wire: steps in the framing that their head announced."""

from __future__ import annotations

import pytest

from headgate.control.mock.h1_wire import H1Encoder
from headgate.control.mock.steps import Data, Head, Interim, Raw, Say


def encode(*steps: Say) -> bytes:
    encoder = H1Encoder()
    return b"".join(encoder.encode(step) for step in steps) + encoder.end()


@pytest.mark.parametrize(
    ("steps", "wire"),
    [
        (
            [Head(200, ((b"x", b"1"),), 2), Data(b"{"), Data(b"}")],
            b"HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 2\r\n\r\n{}",
        ),
        (
            [Head(200, ()), Data(b"abc"), Data(b""), Data(b"y" * 16)],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n" + b"y" * 16 + b"\r\n0\r\n\r\n",
        ),
        ([Head(204, ())], b"HTTP/1.1 204 No Content\r\n\r\n"),
        ([Head(529, (), 0)], b"HTTP/1.1 529 Overloaded\r\ncontent-length: 0\r\n\r\n"),
        ([Interim(100), Interim(103, ((b"link", b"</x>"),))],
         b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
        ([Raw(b"any\x00thing")], b"any\x00thing"),
    ],
)  # fmt: skip
def test_steps_become_bytes(steps: list[Say], wire: bytes) -> None:
    assert encode(*steps) == wire


def test_one_answer_does_not_frame_the_next() -> None:
    encoder = H1Encoder()
    encoder.encode(Head(200, ()))
    assert encoder.end() == b"0\r\n\r\n"
    assert encoder.end() == b""
    encoder.encode(Head(200, (), 1))
    assert encoder.encode(Data(b"x")) == b"x"
