"""Find and replace a top-level member of a JSON object without touching any other byte.

The gateway changes one value of a body and must not change the spelling of the rest: number lexemes, key order, white
space and unknown fields reach the provider as the client wrote them. So the body is validated by a real parser
elsewhere, and here the place of one member is found in bytes that are already known to be one JSON object.

What makes the search exact: inside a JSON string a quote is always escaped, so `"model"` preceded by `{`, `,` or white
space and followed by a colon is a key, at some depth. Which depth is counted only where more than one such key exists.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

import msgspec

_BACKSLASH = 0x5C
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_COLON = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]+")


@lru_cache(maxsize=16)
def _spellings(name: bytes) -> re.Pattern[bytes]:
    r"""A pattern for every way to write the key, `\u006d` for `m` included."""
    letters = b"".join(b"(?:%b|\\\\u00(?i:%02x))" % (re.escape(bytes((letter,))), letter) for letter in name)
    return re.compile(rb'(?<=[{,\s])"' + letters + rb'"[ \t\n\r]*:[ \t\n\r]*')


def deeper_than(text: bytes, limit: int) -> bool:
    """Whether a valid JSON text nests deeper than `limit`; linear, and a byte count for most bodies."""
    if len(text) - len(text.translate(None, b"{[")) <= limit:
        return False
    brackets = _STRING.sub(b"", text).translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        # One pass removes the innermost level everywhere, and no more: what it uncovers is left for the next.
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _level(text: bytes, start: int, end: int) -> int:
    """Brackets opened less brackets closed between two places outside strings."""
    part = _STRING.sub(b"", text[start:end])
    return part.count(b"{") + part.count(b"[") - part.count(b"}") - part.count(b"]")


def find_members(text: bytes, name: bytes) -> list[int]:
    """Where the values of the top-level members called `name` begin, in order.

    `text` must be one valid JSON object that is known to have such a member: so where only one key of that name is
    found at any depth, it is the one, and nothing needs counting.
    """
    quoted = b'"%b"' % name
    if _BACKSLASH in text and b"\\u00" in text:  # a byte is found ten times faster than bytes are
        starts = [(match.start(), match.end()) for match in _spellings(name).finditer(text)]
    else:
        starts = []
        at = text.find(quoted)
        while at >= 0:
            colon = _COLON.match(text, at + len(quoted))
            if colon and text[at - 1] in b"{, \t\n\r":
                starts.append((at, colon.end()))
            at = text.find(quoted, at + len(quoted))
    if len(starts) == 1:
        return [starts[0][1]]
    found: list[int] = []
    level = done = 0
    for key, value in starts:
        level += _level(text, done, key)
        done = key
        if level == 1:
            found.append(value)
    return found


def value_end(text: bytes, start: int) -> int:
    """Where the value that begins at `start` ends; `text` must be valid JSON."""
    if text[start] == 0x22:
        match = _STRING.match(text, start)
        return match.end() if match else len(text)
    if text[start] not in b"{[":
        match = _SCALAR.match(text, start)
        return match.end() if match else len(text)
    level = 0
    for match in _TOKENS.finditer(text, start):
        token = match.group()
        if token in (b"{", b"["):
            level += 1
        elif token in (b"}", b"]"):
            level -= 1
            if level == 0:
                return match.end()
    return len(text)


def is_no_json(text: bytes) -> bool:
    """Whether the bytes are surely not one whole JSON value. Lenient, and not fast: it takes NaN and odd text, which
    some providers send and clients read."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def is_object(text: bytes) -> bool:
    """Whether the bytes are one whole JSON object."""
    try:
        _decode_object(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
