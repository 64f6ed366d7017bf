"""Secrets that are looked for in everything that leaves a process: whole, in pieces, in every coding they might wear.

    canaries = Canaries({"the client's key": CLIENT_KEY, …})
    assert canaries.found(log) == []

A piece is any WINDOW characters of a secret in a row, in any case; of its base64, its hex or its URL-encoding as many
as WINDOW characters of the secret come to. A stride through a text meets a *gram* of four characters of every piece in
it, so only where such a gram stands is looked at closely.
"""

from __future__ import annotations

import base64
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

WINDOW = 8
GRAM = 4


class Canaries:
    """By name. A secret of several lines (a key in PEM) is each of its lines."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = dict(secrets)
        self._pieces: dict[int, dict[bytes, str]] = {}
        self._grams: dict[int, set[bytes]] = {}
        for name, secret in secrets.items():
            for line in secret.split():
                assert len(line) >= WINDOW, f"{name} is too short to be looked for"
                for spelling, length in _spellings(line):
                    self._add(name, spelling.lower(), length)

    def _add(self, name: str, spelling: bytes, length: int) -> None:
        pieces = self._pieces.setdefault(length, {})
        for at in range(len(spelling) - length + 1):
            pieces.setdefault(spelling[at : at + length], name)
        grams = self._grams.setdefault(length, set())
        grams.update(spelling[at : at + GRAM] for at in range(len(spelling) - GRAM + 1))

    def found(self, text: bytes, allowed: Collection[str] = ()) -> list[str]:
        """The names of those in `text` that are not `allowed` there."""
        text = text.lower()
        hits: set[str] = set()
        for length, pieces in self._pieces.items():
            grams, stride = self._grams[length], length - GRAM + 1
            for at in range(0, len(text), stride):
                if text[at : at + GRAM] in grams:
                    near = range(max(0, at - stride + 1), at + 1)
                    hits.update(pieces[piece] for n in near if (piece := text[n : n + length]) in pieces)
        return sorted(hits.difference(allowed))


def _spellings(secret: str) -> Iterator[tuple[bytes, int]]:
    """How it might be written, and how much of that gives WINDOW characters away."""
    plain = secret.encode()
    yield plain, WINDOW
    for pad in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The first and the last characters hold bits of what stands beside it.
            yield encode(b"x" * pad + plain)[4 if pad else 0 :].rstrip(b"=")[:-1], WINDOW * 4 // 3 + 1
    yield plain.hex().encode(), WINDOW * 2
    yield b"".join(b"%%%02x" % byte for byte in plain), WINDOW * 3
    safe = (string.ascii_letters + string.digits).encode()
    if any(byte not in safe for byte in plain):
        quoted = b"".join(bytes((byte,)) if byte in safe else b"%%%02x" % byte for byte in plain)
        yield quoted, WINDOW + 2
