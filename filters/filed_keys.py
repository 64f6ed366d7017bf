"""Whose each key of a `keys_file` is, without making a principal of every line.

What is kept of the file is its lines, by the digest that each holds; a principal is made of its line when somebody
calls with the key. Of another version of the file only the lines that are new are looked into: of 100 000 keys one is
made or revoked in a tenth of the time that reading all takes, in every worker.

Immutable: a version that has an error in it leaves the one before as it was. Blocking; read it in a thread.

Not here: what a line holds and where the pepper is (keys_file.py).
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from ..proxy.exchange import Principal
from ..proxy.model_names import ModelNames
from ..proxy.path_globs import PathGlobs
from .keys_file import KeyRecord, KeysFileError, checked, decode, pepper_path, read_lines, read_pepper

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import AuthConfig

MOST_SCOPES: Final = 1_024
"""Lists of models, paths, tags that are made once for all keys that have them."""
_paths = lru_cache(MOST_SCOPES)(PathGlobs)
_models = lru_cache(MOST_SCOPES)(ModelNames)
_words = lru_cache(MOST_SCOPES)(frozenset[str])


class Keys(Protocol):
    """Whose key has a digest."""

    def get(self, digest: bytes, /) -> Principal | None:
        """None: nobody's."""


class KeyTable(NamedTuple):
    """What a key is digested under, and whose each digest is."""

    pepper: bytes
    keys: Keys


def read_table(settings: AuthConfig, before: KeyTable | None = None) -> KeyTable | None:
    """The keys of `settings.keys_file`; None where there is none, or nothing in it and no pepper either.

    Raises KeysFileError, also where there are keys and their pepper is gone.
    """
    file = settings.keys_file
    if file is None:
        return None
    known = before.keys if before is not None else None
    keys = FiledKeys.read(file, known if isinstance(known, FiledKeys) else None)
    pepper = read_pepper(file, settings.pepper)
    if pepper is None:
        if len(keys):
            where = pepper_path(file) if settings.pepper is None else "auth.pepper"
            raise KeysFileError(f"{file} holds keys, but their pepper is gone: {where} is not there or empty")
        return None
    return KeyTable(pepper, keys)


class FiledKeys:
    """The lines of one version of the file."""

    __slots__ = ("_by_digest", "_lines")

    def __init__(self, lines: list[bytes], by_digest: dict[bytes, bytes]) -> None:
        self._lines = lines
        self._by_digest = by_digest

    def __len__(self) -> int:
        return len(self._by_digest)

    def get(self, digest: bytes) -> Principal | None:
        """Whose key has this digest."""
        line = self._by_digest.get(digest)
        return _principal(decode(line)) if line is not None else None

    @classmethod
    def read(cls, path: Path, before: Self | None = None) -> Self:
        """What stands in the file now; where that is not `before`, as far as it differs. Raises KeysFileError."""
        lines = read_lines(path, before._lines if before is not None else ())
        if before is not None and len(before._lines) == len(before._by_digest):
            made = before._changed_to(path, lines)
            if len(made._lines) == len(made._by_digest):
                return made
        return cls(lines, _digests(path, lines, 0))  # a digest that stands there twice is its last line's

    def _changed_to(self, path: Path, lines: list[bytes]) -> Self:
        known = self._lines
        shorter = min(len(known), len(lines))
        head = next((n for n in range(shorter) if known[n] is not lines[n]), shorter)
        tail = next((n for n in range(shorter - head) if known[-1 - n] is not lines[-1 - n]), shorter - head)
        gone, new = known[head : len(known) - tail], lines[head : len(lines) - tail]
        added = _digests(path, new, head)
        by_digest = self._by_digest.copy()
        for digest in _digests(path, gone, head):
            del by_digest[digest]
        by_digest |= added
        return type(self)(lines, by_digest)


def _digests(path: Path, lines: list[bytes], before: int) -> dict[bytes, bytes]:
    """The line of each digest, once it is certain that it can be used; `before`: how many lines stand above them."""
    found = {}
    for number, line in enumerate(lines, before + 1):
        if line.strip():
            record = checked(line, path, number)
            _scopes(record)
            found[bytes.fromhex(record.digest)] = line
    return found


def _scopes(record: KeyRecord) -> tuple[PathGlobs | None, ModelNames | None]:
    return (
        _paths(record.paths) if record.paths is not None else None,
        _models(record.models) if record.models is not None else None,
    )


def _principal(record: KeyRecord) -> Principal:
    paths, models = _scopes(record)
    return Principal(
        record.name,
        team=record.team,
        owner=record.owner,
        roles=_words(record.roles),
        paths=paths,
        models=models,
        tags=_words(record.tags),
        allow_tags=_words(record.allow_tags),
        expires=record.expires if record.expires is not None else inf,
    )
