"""Makes, replaces and revokes the keys of a `keys_file`: what `headgate keys` and `/admin/keys` do.

A key is shown to whoever makes it and to nobody after; what is kept is its digest (filters/keys_file.py). Each change
writes the file anew, under a lock, and puts it in the old one's place: a gateway that looks meanwhile sees the one or
the other, and a crash leaves the one or the other. Gateways notice by themselves.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from ..config import Key, Secret
from ..config.complaints import message_of
from ..filters.keys_file import KeyRecord, KeysFileError, digest, pepper_path, read_pepper, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..config import AuthConfig

PREFIX = "hg-"
"""So that scanners of repositories and logs know one when they see it."""
KEY_BYTES = 32
REMEMBERED_SECONDS = 30 * 86400.0
"""How long one that has expired stays in the file, for its holder to be told so."""

OVER = "must be in the future, or nobody could use the key"

SCOPES = ("owner", "team", "roles", "models", "paths", "tags", "allow_tags")


class BadKeyError(ValueError):
    """What was asked for is no key; `field` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class KeyExistsError(Exception):
    """There is a key of this name."""


class NoSuchKeyError(Exception):
    """There is none of this name."""


def make_template(name: str, scopes: Mapping[str, Any], auth: AuthConfig, expires: float | None) -> KeyRecord:
    """A record without its key, checked as the config checks a key that is written there. Raises BadKeyError."""
    try:
        key = Key(name=name, key=Secret(""), **scopes)
    except ValidationError as invalid:
        error = invalid.errors()[0]
        raise BadKeyError(str(error["loc"][0]), message_of(error)) from None
    if any(key.name == written.name for written in auth.keys):
        raise BadKeyError("name", f"auth.keys has a key '{key.name}'")
    return KeyRecord(key.name, "", 0.0, expires=expires, **{one: getattr(key, one) for one in SCOPES})


class KeyRing:
    """The keys of one file. `pepper` as the config has it; `wall` is Unix time. Everything blocks.

    Raises KeysFileError where the files cannot be read, OSError where they cannot be written.
    """

    def __init__(self, path: Path, pepper: Secret | None, wall: Callable[[], float]) -> None:
        self._path = path
        self._pepper = pepper
        self._wall = wall

    def create(self, template: KeyRecord) -> str:
        """A new key with the name and scopes of `template`; returns it, for the only time. Raises KeyExistsError,
        BadKeyError where it would be over already."""
        with self._locked():
            records = self._living()
            if any(record.name == template.name for record in records):
                raise KeyExistsError(template.name)
            key, record = self._make(template, records)
            self._write([*records, record])
        return key

    def rotate(self, name: str, overlap: float, expires: float | None = None) -> str:
        """Another key of this name and its scopes; those before it are good for `overlap` seconds more, at the most.

        It expires as its predecessor, unless `expires` says when. Raises NoSuchKeyError, BadKeyError where it would be
        over already.
        """
        end = self._wall() + overlap
        with self._locked():
            records = self._living()
            last = next((record for record in reversed(records) if record.name == name), None)
            if last is None:
                raise NoSuchKeyError(name)
            until = last.expires if expires is None else expires
            key, record = self._make(msgspec.structs.replace(last, expires=until), records)
            self._write([*(_ending(one, end) if one.name == name else one for one in records), record])
        return key

    def revoke(self, name: str) -> int:
        """Every key of this name is gone; returns how many there were. Raises NoSuchKeyError."""
        with self._locked():
            records = self._living()
            left = [record for record in records if record.name != name]
            if len(left) == len(records):
                raise NoSuchKeyError(name)
            self._write(left)
        return len(records) - len(left)

    def records(self) -> list[KeyRecord]:
        """All that the file holds, in the order they were made."""
        return read_records(self._path)

    def _living(self) -> list[KeyRecord]:
        oldest = self._wall() - REMEMBERED_SECONDS
        return [one for one in self.records() if one.expires is None or one.expires > oldest]

    def _make(self, template: KeyRecord, others: Sequence[KeyRecord]) -> tuple[str, KeyRecord]:
        pepper = read_pepper(self._path, self._pepper)
        if pepper is None:
            if others:
                raise KeysFileError(f"{self._path} holds keys, but their pepper is gone: put it back")
            pepper = make_pepper(pepper_path(self._path))
        now = self._wall()
        if template.expires is not None and template.expires <= now:
            raise BadKeyError("expires", OVER)
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        made = digest(pepper, key.encode()).hex()
        return key, msgspec.structs.replace(template, digest=made, created=now)

    def _write(self, records: Sequence[KeyRecord]) -> None:
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        _write_private(self._path.resolve(), lines, put=os.replace)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._path.with_name(self._path.name + ".lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def make_pepper(path: Path) -> bytes:
    """What stands in the file, which is made where it is not there."""
    with suppress(FileExistsError):
        _write_private(path, secrets.token_hex(32).encode() + b"\n", put=os.link)
    return path.read_bytes().strip()


def _write_private(path: Path, data: bytes, *, put: Callable[[Path, Path], None]) -> None:
    """A file that is whole or not there, and for its owner alone. `put` gives it its name."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        put(new, path)
    finally:
        new.unlink(missing_ok=True)


def _ending(record: KeyRecord, end: float) -> KeyRecord:
    sooner = end if record.expires is None else min(record.expires, end)
    return msgspec.structs.replace(record, expires=sooner)
