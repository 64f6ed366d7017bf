"""frames: whatever is fed in whatever pieces, the same bytes and messages come out, and nothing of a broken frame."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_CODE,
    PING,
    PONG,
    TEXT,
    FrameScanner,
    encode_close,
    encode_frame,
    masked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MASK = b"\x01\x02\xfe\xff"


class Messages:
    """Puts the text messages together."""

    def __init__(self) -> None:
        self.whole: list[bytes] = []
        self.under_way = b""

    def piece(self, data: bytes, start: int, end: int) -> None:
        assert start < end
        self.under_way += data[start:end]

    def end(self) -> None:
        self.whole.append(self.under_way)
        self.under_way = b""


class Scanned(NamedTuple):
    """What became of some bytes."""

    passed: bytes
    messages: list[bytes]
    closed: bool
    code: int
    error: str | None
    between_frames: bool


def scan(pieces: Iterable[bytes], *, from_client: bool = False) -> Scanned:
    """Feed all of it."""
    messages = Messages()
    scanner = FrameScanner(masked=from_client, messages=None if from_client else messages)
    passed = b"".join([scanner.feed(piece) for piece in pieces])
    return Scanned(passed, messages.whole, scanner.closed, scanner.close_code, scanner.error, scanner.between_frames)


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """A frame, perhaps one of several of its message."""
    encoded = encode_frame(opcode, payload, mask)
    return encoded if fin else bytes((encoded[0] & 0x7F,)) + encoded[1:]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces, cut at `places`."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


lengths = st.one_of(st.integers(0, 140), st.sampled_from((125, 126, 127, 65535, 65536, 70000)))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Valid frames of a server, and the text messages in them."""
    data, texts = b"", []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from((TEXT, BINARY)))
        parts = [bytes((draw(st.integers(0, 255)),)) * draw(lengths) for _ in range(draw(st.integers(1, 3)))]
        for at, part in enumerate(parts):
            data += frame(CONTINUATION if at else kind, part, fin=at == len(parts) - 1)
            if draw(st.booleans()):
                data += frame(draw(st.sampled_from((PING, PONG))), b"p" * draw(st.integers(0, 125)))
        if kind == TEXT:
            texts.append(b"".join(parts))
    return data, texts


@given(conversation=conversations(), places=st.lists(st.integers(0, 1 << 20), max_size=20))
def test_any_split_gives_the_same_bytes_and_messages(
    conversation: tuple[bytes, list[bytes]], places: list[int]
) -> None:
    data, texts = conversation
    assert scan(cut(data, places)) == Scanned(data, texts, False, NO_CODE, None, True)


@given(conversation=conversations())
def test_byte_by_byte_gives_the_same_too(conversation: tuple[bytes, list[bytes]]) -> None:
    data, texts = conversation
    short = data[:3000]
    assert scan(bytes((byte,)) for byte in short) == scan([short])
    assert scan([data]).messages == texts


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=8), from_client=st.booleans())
def test_noise_is_judged_alike_in_any_pieces_and_nothing_is_made_up(
    data: bytes, places: list[int], from_client: bool
) -> None:
    whole = scan([data], from_client=from_client)
    assert scan(cut(data, places), from_client=from_client) == whole
    assert data.startswith(whole.passed)


@given(payload=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
def test_masking_is_the_xor_of_the_rfc(payload: bytes, mask: bytes) -> None:
    assert masked(payload, mask) == bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def test_a_clients_frames_pass_masked_as_they_came() -> None:
    data = frame(TEXT, b"hello", mask=MASK) + frame(PING, b"", mask=MASK) + frame(BINARY, b"x" * 70000, mask=MASK)
    assert scan([data], from_client=True) == Scanned(data, [], False, NO_CODE, None, True)


def test_a_header_and_a_control_frame_are_held_until_they_are_whole() -> None:
    scanner = FrameScanner(masked=False)
    first, second = frame(TEXT, b"x" * 300), frame(PING, b"abc")
    assert scanner.feed(first[:3]) == b""
    assert scanner.between_frames
    assert scanner.feed(first[3:10]) == first[:10]
    assert not scanner.between_frames
    assert scanner.feed(first[10:] + second[:4]) == first[10:]
    assert scanner.between_frames
    assert scanner.feed(second[4:]) == second


@pytest.mark.parametrize("mask", [None, MASK])
def test_after_a_close_nothing_passes(mask: bytes | None) -> None:
    data = frame(TEXT, b"x", mask=mask) + encode_close(4001, "töö late", mask)
    found = scan([data + frame(TEXT, b"y", mask=mask), b"z"], from_client=mask is not None)
    assert (found.passed, found.closed, found.code, found.error) == (data, True, 4001, None)


def test_a_close_without_a_code_is_a_close() -> None:
    found = scan([encode_close(NO_CODE, "")])
    assert (found.closed, found.code) == (True, NO_CODE)


def test_a_long_reason_is_cut_between_characters() -> None:
    encoded = encode_close(1011, "ü" * 100)
    assert scan([encoded]).closed
    assert encoded[4:].decode() == "ü" * 61


BROKEN: dict[str, tuple[bytes, str]] = {
    "rsv1": (b"\xc1\x00", "extension"),
    "rsv3": (b"\x91\x00", "extension"),
    "opcode 3": (b"\x83\x00", "opcode"),
    "opcode 11": (b"\x8b\x00", "opcode"),
    "masked by a server": (frame(TEXT, b"x", mask=MASK), "masked"),
    "a ping in two parts": (b"\x09\x00", "control"),
    "a ping of 126 bytes": (b"\x89\x7e\x00\x7e", "control"),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), "continuation"),
    "a message in a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), "within"),
    "125 in two bytes": (b"\x82\x7e\x00\x7d" + b"x" * 125, "length"),
    "65535 in eight bytes": (b"\x82\x7f" + (65535).to_bytes(8), "length"),
    "a length above 2^63": (b"\x82\x7f\x80" + b"\x00" * 7, "length"),
    "half a code": (frame(CLOSE, b"\x03"), "code"),
    "code 1005": (frame(CLOSE, (1005).to_bytes(2)), "code"),
    "code 999": (frame(CLOSE, (999).to_bytes(2)), "code"),
    "a reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), "UTF-8"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_frame_is_named_and_not_passed(broken: str) -> None:
    data, word = BROKEN[broken]
    good = frame(BINARY, b"good")
    found = scan([good + data + good])
    assert found.error is not None
    assert word in found.error
    assert not found.closed
    before = frame(TEXT, b"x", fin=False) if word == "within" else b""
    assert found.passed == good + before
    assert found.between_frames


def test_what_a_client_does_not_mask_is_refused() -> None:
    assert scan([frame(TEXT, b"x")], from_client=True).error == "a frame that is not masked"


def test_an_unfinished_message_is_told_to_nobody() -> None:
    pieces: Sequence[bytes] = [frame(TEXT, b"one", fin=False), frame(CONTINUATION, b"two")[:-1]]
    found = scan(pieces)
    assert found.messages == []
    assert not found.between_frames
