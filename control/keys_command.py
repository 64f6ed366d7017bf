"""`headgate keys`: what was asked for, done to the file that the config names, and said in a few lines.

Scopes are checked as the config checks those of a key that is written there.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ..config import ConfigError, Problem
from ..config.pepper import pepper_file
from ..filters.keys_file import KeysFileError
from .arguments import DEFAULT_FILE
from .keys import SCOPES, BadKeyError, KeyExistsError, KeyRing, NoSuchKeyError, make_pepper, make_template
from .process.source import ConfigSource

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..config import AuthConfig
    from ..filters.keys_file import KeyRecord

COLUMNS = ("name", "id", "owner", "team", "roles", "models", "paths", "created", "expires")
DONE, FAILED, USAGE = 0, 1, 2


def keys(arguments: Namespace, file: str | None, wall: Callable[[], float]) -> int:
    """Returns the exit code: 1 where it could not be done, 2 where what was asked for is wrong. Raises ConfigError."""
    source = ConfigSource(file)
    name = getattr(arguments, "name", "")
    try:
        if arguments.action == "create" and (pepper := pepper_file(source.read())) is not None:
            make_pepper(pepper)  # else the config that names it does not load
        auth = source.load().auth
        if auth is None or auth.keys_file is None:
            where = "filters:\n  - auth: {keys_file: ./headgate-keys.db}"
            if source.path is None:
                return _fail(f"there is no ./{DEFAULT_FILE} here; name the one that has the keys: --config FILE", USAGE)
            return _fail(f"{source.name} names no file for keys; write there:\n{where}", USAGE)
        ring = KeyRing(auth.keys_file, auth.pepper, wall)
        match arguments.action:
            case "create":
                try:
                    template = _template(arguments, auth, wall)
                except ConfigError as error:
                    print(error, file=sys.stderr)
                    return USAGE
                _show(ring.create(template), name, auth.keys_file)
            case "rotate":
                _show(ring.rotate(name, arguments.overlap, _expires(arguments, wall)), name, auth.keys_file)
            case "revoke":
                count = ring.revoke(name)
                print(f"{name}: {count} key{'s' if count != 1 else ''} revoked; gateways refuse within 5 s")
            case _:
                print(as_json(ring.records()) if arguments.json else as_table(ring.records(), wall()))
    except KeyExistsError:
        return _fail(f"there is a key '{name}' already; for another one: headgate keys rotate {name}")
    except BadKeyError as error:
        return _fail(f"--{error.field}: {error}", USAGE)
    except NoSuchKeyError:
        return _fail(f"there is no key '{name[:64]}'; see: headgate keys list")
    except (KeysFileError, OSError) as error:
        return _fail(str(error))
    return DONE


def _template(arguments: Namespace, auth: AuthConfig, wall: Callable[[], float]) -> KeyRecord:
    """What the arguments say, checked. Raises ConfigError."""
    scopes = {name: getattr(arguments, name) for name in SCOPES}
    try:
        return make_template(arguments.name, scopes, auth, _expires(arguments, wall))
    except BadKeyError as error:
        raise ConfigError([Problem("keys create", 0, 0, f"--{error.field}", str(error))]) from None


def _expires(arguments: Namespace, wall: Callable[[], float]) -> float | None:
    return None if arguments.expires is None else arguments.expires(wall())


def _show(key: str, name: str, file: Path) -> None:
    """The key alone on stdout, for `KEY=$(headgate keys create …)`."""
    print(f"The key '{name}', shown this once; {file} keeps only its digest:", file=sys.stderr)
    print(key)


def _fail(message: str, code: int = FAILED) -> int:
    print(f"headgate: {message}", file=sys.stderr)
    return code


def as_json(records: Sequence[KeyRecord]) -> str:
    """A list of objects; `id` is the beginning of the digest."""
    return msgspec.json.encode([_shown(record) for record in records]).decode()


def _shown(record: KeyRecord) -> dict[str, object]:
    shown: dict[str, object] = msgspec.to_builtins(record)
    shown["id"] = str(shown.pop("digest"))[:8]
    return shown


def as_table(records: Sequence[KeyRecord], now: float) -> str:
    """One line for each key."""
    rows = [COLUMNS, *(_row(record, now) for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _row(record: KeyRecord, now: float) -> tuple[str, ...]:
    expires = record.expires
    return (
        record.name,
        record.digest[:8],
        record.owner or "-",
        record.team or "-",
        ",".join(record.roles) or "-",
        ",".join(record.models) if record.models is not None else "*",
        ",".join(record.paths) if record.paths is not None else "*",
        _time(record.created),
        "-" if expires is None else _time(expires) if expires > now else f"{_time(expires)} (over)",
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")
