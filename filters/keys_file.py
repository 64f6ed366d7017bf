"""The keys of a `keys_file`, as they lie on the disk.

One line of JSON for each key. The key itself is nowhere: what stands there is its HMAC-SHA-256 under the pepper, which
lies in another file, so neither file alone is worth stealing. The file is replaced whole (control/keys.py), never
edited in place, so whoever opens it sees all of one version.

Blocking: read it in a thread. Not here: whose a key is (filed_keys.py), and which keys there are (auth.py).
"""

from __future__ import annotations

import hmac
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..config import Secret

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


decode = msgspec.json.Decoder(KeyRecord).decode


def digest(pepper: bytes, key: bytes) -> bytes:
    """HMAC-SHA-256."""
    return hmac.digest(pepper, key, "sha256")


def read_records(path: Path) -> list[KeyRecord]:
    """Every key of the file; none where there is no file. Raises KeysFileError."""
    return [checked(line, path, number) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def read_lines(path: Path, known: Sequence[bytes] = ()) -> list[bytes]:
    """Of the file, with their ends, blank ones too; none where there is no file. Raises KeysFileError.

    Those of `known` that stand there still are not made anew: a second copy of all would fragment the memory that the
    first leaves behind."""
    with _opened(path) as file:
        if file is None:
            return []
        alike = 0
        for one, line in zip(known, file, strict=False):  # asked last, the file loses no line
            if line != one:
                same = {one: one for one in known[alike:]}
                return [*known[:alike], same.get(line, line), *[same.get(other, other) for other in file]]
            alike += 1
        return [*known[:alike], *file]


def checked(line: bytes, path: Path, number: int) -> KeyRecord:
    """What stands in a line. Raises KeysFileError."""
    try:
        record = decode(line)
        bytes.fromhex(record.digest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise KeysFileError(f"{path}:{number}: not a key as headgate keys writes it") from error
    return record


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


def _read(path: Path) -> bytes | None:
    """None where there is no file."""
    with _opened(path) as file:
        return file.read() if file is not None else None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """A regular file; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        os.close(descriptor)
        raise KeysFileError(f"{path}: not a regular file of at most {MAX_BYTES >> 20} MiB")
    with open(descriptor, "rb") as file:
        yield file
