"""The numbers of HTTP/2 (RFC 9113, sections 4, 6 and 7) and the bytes of the frames we send.

Plain integers, not enumerations: each is compared for every frame of every stream. Error codes, which are rare and are
read by people, come from the `h2` package.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE: Final = 9
MAX_STREAM_ID: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME_SIZE: Final = 16384

HEADER: Final = Struct(">HBBBL")
"""The length's upper 16 and lower 8 bits, type, flags, reserved bit and stream id."""

_LONG = Struct(">L")
_SETTING = Struct(">HL")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame; `payload` must fit the peer's maximum."""
    length = len(payload)
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def field_section(stream_id: int, block: bytes, max_frame: int, *, ends: bool) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as it needs."""
    flags = END_STREAM if ends else 0
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + max_frame] for at in range(0, len(block), max_frame)]
    frames = [frame(HEADERS, flags, stream_id, pieces[0])]
    frames += [frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(frames)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(code, value) for code, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Code and value of each setting in order; `payload` is a multiple of six bytes."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    """More room for what the peer sends: on one stream, or (0) on the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _LONG.pack(increment))


def reset(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, _LONG.pack(code))


def goaway(code: int, detail: str = "") -> bytes:
    """Our last word. We accept no streams, so the last one we have seen is 0."""
    return frame(GOAWAY, 0, 0, _LONG.pack(0) + _LONG.pack(code) + detail.encode("ascii", "replace")[:100])


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def read_long(payload: bytes, at: int = 0) -> int:
    """An unsigned 32-bit number."""
    return int.from_bytes(payload[at : at + 4], "big")
