"""The keys of a `keys_file`, as they lie on the disk and as `auth` looks them up.

One line of JSON for each key. The key itself is nowhere: what stands there is its HMAC-SHA-256 under the pepper, which
lies in another file, so neither file alone is worth stealing. The file is replaced whole (control/keys.py), never
edited in place, so whoever opens it sees all of one version.

Blocking, and a second's work at 100 000 keys: read it in a thread. Many keys have the same few scopes, which are
therefore made once.
"""

from __future__ import annotations

import hmac
import os
import stat
from functools import cache
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..proxy.exchange import Principal
from ..proxy.model_names import ModelNames
from ..proxy.path_globs import PathGlobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..config import AuthConfig, Secret

PEPPER_FILE = "headgate-pepper"
"""Beside the keys_file, unless `pepper` says otherwise."""
MAX_BYTES = 512 * 1024 * 1024
MIN_PEPPER = 16


class KeysFileError(Exception):
    """The keys cannot be had; the message says why, and shows none."""


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line. Times are Unix seconds; `expires` None: never; `models`, `paths` None: all."""

    name: str
    digest: str
    created: float
    expires: float | None = None
    owner: str | None = None
    team: str | None = None
    roles: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    allow_tags: tuple[str, ...] = ()


class KeyTable(NamedTuple):
    """What a key is digested under, and whose each digest is."""

    pepper: bytes
    principals: Mapping[bytes, Principal]


_decode = msgspec.json.Decoder(KeyRecord).decode


def digest(pepper: bytes, key: bytes) -> bytes:
    """HMAC-SHA-256."""
    return hmac.digest(pepper, key, "sha256")


def read_records(path: Path) -> list[KeyRecord]:
    """Every key of the file; none where there is no file. Raises KeysFileError."""
    data = _read(path)
    records: list[KeyRecord] = []
    for number, line in enumerate((data or b"").splitlines(), 1):
        if line.strip():
            try:
                record = _decode(line)
                bytes.fromhex(record.digest)
            except (msgspec.MsgspecError, ValueError) as error:
                raise KeysFileError(f"{path}:{number}: not a key as headgate keys writes it") from error
            records.append(record)
    return records


def read_pepper(keys_file: Path, pepper: Secret | None) -> bytes | None:
    """What keys are digested under; None where it has not been made. `pepper` is what the config says of it.

    Raises KeysFileError."""
    if pepper is not None:
        return pepper.reveal().encode() or None
    path = pepper_path(keys_file)
    data = (_read(path) or b"").strip()
    if 0 < len(data) < MIN_PEPPER:
        raise KeysFileError(f"{path}: shorter than {MIN_PEPPER} bytes")
    return data or None


def pepper_path(keys_file: Path) -> Path:
    """Where it lies, unless `pepper` says otherwise."""
    return keys_file.with_name(PEPPER_FILE)


def read_table(settings: AuthConfig) -> KeyTable | None:
    """The keys of `settings.keys_file`; None where there is none, or nothing in it and no pepper either.

    Raises KeysFileError, also where there are keys and their pepper is gone.
    """
    file = settings.keys_file
    if file is None:
        return None
    records = read_records(file)
    pepper = read_pepper(file, settings.pepper)
    if pepper is None:
        if records:
            where = pepper_path(file) if settings.pepper is None else "auth.pepper"
            raise KeysFileError(f"{file} holds keys, but their pepper is gone: {where} is not there or empty")
        return None
    paths, models = cache(PathGlobs), cache(ModelNames)
    words: Callable[[tuple[str, ...]], frozenset[str]] = cache(frozenset)
    return KeyTable(
        pepper,
        {
            bytes.fromhex(record.digest): Principal(
                record.name,
                team=record.team,
                owner=record.owner,
                roles=words(record.roles),
                paths=paths(record.paths) if record.paths is not None else None,
                models=models(record.models) if record.models is not None else None,
                tags=words(record.tags),
                allow_tags=words(record.allow_tags),
                expires=record.expires if record.expires is not None else inf,
            )
            for record in records
        },
    )


def _read(path: Path) -> bytes | None:
    """A regular file; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise KeysFileError(f"{path}: not a regular file of at most {MAX_BYTES >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
