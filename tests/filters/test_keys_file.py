"""keys_file: what lies on the disk becomes principals; without its pepper, or in another form, it is refused."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

import msgspec
import pytest

from headgate.config import AuthConfig, ConfigError, Secret
from headgate.control.filter_set import read_keys as config_keys
from headgate.filters.auth import Auth
from headgate.filters.filed_keys import read_table
from headgate.filters.keys_file import KeyRecord, KeysFileError, digest, read_records
from headgate.proxy.errors import ExpiredKeyError, UnauthorizedError

if TYPE_CHECKING:
    from pathlib import Path

PEPPER = b"7d1f0c93a84be265"
KEY = "hg-made-by-the-command-0001"
OWN = "hg-written-in-the-config-01"


def line(key: str = KEY, **fields: object) -> bytes:
    made = digest(PEPPER, key.encode()).hex()
    return msgspec.json.encode(KeyRecord(**{"name": "app", "digest": made, "created": 1.0, **fields})) + b"\n"  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.db"
    (tmp_path / "headgate-pepper").write_bytes(PEPPER + b"\n")
    return path


def auth_over(file: Path) -> Auth:
    own = {"name": "own", "key": Secret(OWN)}
    auth = Auth(AuthConfig.model_validate({"keys_file": file, "keys": [own]}))
    auth.adopt(auth.read())
    return auth


def test_keys_of_the_file_and_of_the_config_are_both_known(file: Path) -> None:
    file.write_bytes(line(team="red", owner="ann", roles=("viewer",), models=("gpt-*",), paths=("/v1/files",)))
    auth = auth_over(file)
    principal = auth.identify(f"Bearer {KEY}".encode(), 0.0)
    assert (principal.name, principal.team, principal.owner) == ("app", "red", "ann")
    assert principal.roles == {"viewer"}
    assert principal.models is not None
    assert principal.models.allow("gpt-4o")
    assert principal.paths is not None
    assert principal.paths.names("/v1/files")
    assert principal.expires == inf
    assert auth.identify(OWN.encode(), 0.0).name == "own"
    with pytest.raises(UnauthorizedError):
        auth.identify(b"hg-somebody-elses-key", 0.0)


def test_a_line_that_expires_does(file: Path) -> None:
    file.write_bytes(line(expires=100.0))
    auth = auth_over(file)
    assert auth.identify(KEY.encode(), 99.0).name == "app"
    with pytest.raises(ExpiredKeyError):
        auth.identify(KEY.encode(), 100.0)


def test_what_is_adopted_later_replaces_what_was_known(file: Path) -> None:
    file.write_bytes(line())
    auth = auth_over(file)
    file.unlink()
    auth.adopt(auth.read())
    with pytest.raises(UnauthorizedError):
        auth.identify(KEY.encode(), 0.0)
    assert auth.identify(OWN.encode(), 0.0).name == "own"


def test_no_file_and_no_pepper_is_closed_to_all_but_the_config(tmp_path: Path) -> None:
    auth = auth_over(tmp_path / "nothing.db")
    assert not auth.is_open
    assert auth.identify(OWN.encode(), 0.0).name == "own"
    with pytest.raises(UnauthorizedError):
        auth.identify(KEY.encode(), 0.0)


def test_keys_without_their_pepper_are_refused(file: Path) -> None:
    file.write_bytes(line())
    file.with_name("headgate-pepper").unlink()
    with pytest.raises(KeysFileError, match="pepper is gone"):
        read_table(AuthConfig(keys_file=file))
    assert read_table(AuthConfig(keys_file=file, pepper=Secret(PEPPER.decode()))) is not None


@pytest.mark.parametrize(
    "data", [b"{}\n", b"not json\n", b'{"name": "a", "digest": "zz", "created": 1}\n', b"\xff\xfe\n", b"[1]\n"]
)
def test_what_is_no_key_is_refused_with_its_line_and_without_its_text(file: Path, data: bytes) -> None:
    file.write_bytes(line() + b"\n" + data)
    with pytest.raises(KeysFileError, match=r"keys\.db:3: not a key") as caught:
        read_records(file)
    assert "zz" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_by_its_place(file: Path) -> None:
    file.mkdir()
    with pytest.raises(ConfigError, match=r"auth\.keys_file: .*not a regular file"):
        config_keys(Auth(AuthConfig(keys_file=file)))


def test_what_is_no_file_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(KeysFileError, match="not a regular file"):
        read_records(tmp_path)
    file.write_bytes(line())
    file.with_name("headgate-pepper").write_bytes(b"short")
    with pytest.raises(KeysFileError, match="shorter than 16 bytes"):
        read_table(AuthConfig(keys_file=file))


@pytest.mark.slow
def test_100_000_keys_load_in_seconds_and_a_look_up_takes_as_long_as_among_ten(file: Path) -> None:
    def best(auth: Auth) -> float:
        took = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(500):
                auth.identify(KEY.encode(), 0.0)
            took.append(time.perf_counter() - start)
        return min(took)

    file.write_bytes(line())
    few = best(auth_over(file))
    file.write_bytes(line() + b"".join(line(f"hg-{number}", name=f"k{number}") for number in range(100_000)))
    start = time.perf_counter()
    auth = auth_over(file)
    assert time.perf_counter() - start < 5.0
    assert best(auth) < 1.5 * few
