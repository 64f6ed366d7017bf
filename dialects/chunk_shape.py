"""The shape that the chunks of one stream have in common, so that most of them need no decoding.

Chunk after chunk a provider writes the same JSON around another piece of text (OpenAI also pads each with a string
called `obfuscation`). A shape is the bytes around these strings, taken from a chunk that was decoded. It is tried
before it is believed: with other strings in their places, the decoder must find the new text where the old one was and
all else unchanged. Then every chunk that fits means what the first one meant, with its own text; for what is put in is
plain ASCII without quote, backslash or control character, which JSON takes as it stands.

Not here: what a chunk means (openai.py), and chunks that do not fit, which are decoded as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = bytes(byte if 0x20 <= byte < 0x7F and byte not in b'"\\' else byte ^ 0xFF for byte in range(256))
"""Leaves alone what stands for itself in a JSON string, and nothing else."""
_PADDING: Final = b'"obfuscation":"'
_PROBE: Final = b"zq zq"
_OTHER_PROBE: Final = b"qzz"
SHORTEST: Final = 2
"""A shorter text than this is found in too many places; another chunk will do."""


class Shape:
    """`before` text `after`, or `before` text `between` padding `after`; `measure` says how long the text is."""

    __slots__ = ("_after", "_around", "_before", "_between")

    def __init__(self, before: bytes, between: bytes, after: bytes) -> None:
        self._before = before
        self._between = between
        self._after = after
        self._around = len(before) + len(after)

    def measure(self, event: bytes) -> int:
        """Bytes of the text in an event of this shape; -1 for one of another."""
        inner = event.removeprefix(self._before).removesuffix(self._after)
        size = len(inner)
        if size + self._around != len(event):
            return -1
        if not self._between:
            return size if inner.translate(_PLAIN) == inner else -1
        text, between, padding = inner.partition(self._between)
        return len(text) if between and is_plain(text) and is_plain(padding) else -1


def is_plain(text: bytes) -> bool:
    """Whether JSON takes it as it stands."""
    return text.translate(_PLAIN) == text


def find_shape(event: bytes, key: bytes, text: str, proves: Callable[[bytes, str], bool]) -> Shape | None:
    """The shape of an event in which `key` has the value `text`; None where that is not certain.

    `proves(event, text)` decodes another event and says whether it differs from this one in that text alone.
    """
    value = text.encode()
    if len(value) < SHORTEST or not is_plain(value):
        return None
    start = event.find(value, event.find(b'"%b"' % key) + len(key) + 2)
    if start < 0:
        return None
    end = start + len(value)
    between, after = b"", event[end:]
    padding = event.find(_PADDING, end)
    if padding >= 0:
        padding += len(_PADDING)
        close = event.find(b'"', padding)
        if not is_plain(event[padding:close]):
            return None
        between, after = event[end:padding], event[close:]
    before = event[:start]
    probe = b"".join((before, _PROBE, between, _OTHER_PROBE if between else b"", after))
    return Shape(before, between, after) if proves(probe, _PROBE.decode()) else None
