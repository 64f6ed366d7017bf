"""filed_keys: what is known after a file has changed is what the file says, however it was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.filters import filed_keys
from headgate.filters.filed_keys import FiledKeys
from headgate.filters.keys_file import KeyRecord, KeysFileError, checked, digest

if TYPE_CHECKING:
    from pathlib import Path

PEPPER = b"p" * 32


def mac(key: str) -> bytes:
    return digest(PEPPER, key.encode())


def line(key: str, **fields: Any) -> bytes:
    record = KeyRecord(fields.pop("name", key), mac(key).hex(), 1.0, **fields)
    return msgspec.json.encode(record) + b"\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def names(keys: FiledKeys, *asked: str) -> list[str | None]:
    """Whose each key is."""
    found = [keys.get(mac(key)) for key in asked]
    return [principal.name if principal is not None else None for principal in found]


def test_of_another_version_only_what_is_new_is_looked_into(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"key-{n}" for n in range(100)]
    file.write_bytes(b"".join(map(line, keys)))
    known = FiledKeys.read(file)
    looked: list[int] = []

    def counted(text: bytes, path: Path, number: int) -> KeyRecord:
        looked.append(number)
        return checked(text, path, number)

    monkeypatch.setattr(filed_keys, "checked", counted)
    file.write_bytes(b"".join([*map(line, keys[:40]), line("new"), *map(line, keys[41:])]))
    changed = FiledKeys.read(file, known)
    assert looked == [41, 41]  # the one that is new, and the one that is gone
    assert names(changed, "key-39", "key-40", "new", "key-41") == ["key-39", None, "new", "key-41"]
    assert names(known, "key-40", "new") == ["key-40", None]


def test_an_error_in_what_is_new_is_told_by_its_line(file: Path) -> None:
    file.write_bytes(line("a") + line("b"))
    known = FiledKeys.read(file)
    file.write_bytes(line("a") + line("b") + b"nonsense\n")
    with pytest.raises(KeysFileError, match=r"keys\.db:3: not a key"):
        FiledKeys.read(file, known)


def test_a_file_that_is_gone_knows_nobody(file: Path) -> None:
    file.write_bytes(line("a"))
    known = FiledKeys.read(file)
    file.unlink()
    assert len(FiledKeys.read(file, known)) == 0


def test_keys_with_the_same_scopes_share_them(file: Path) -> None:
    file.write_bytes(line("a", models=("gpt-*",)) + line("b", models=("gpt-*",)))
    keys = FiledKeys.read(file)
    first, second = keys.get(mac("a")), keys.get(mac("b"))
    assert first is not None
    assert second is not None
    assert first.models is second.models is not None


LINES = st.lists(
    st.sampled_from(
        [line(key, name=name) for key in "abcd" for name in ("one", "two")] + [b"\n", line("e").removesuffix(b"\n")]
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions=st.lists(LINES, min_size=1, max_size=5))
def test_however_it_was_changed_what_is_known_is_what_it_says(file: Path, versions: list[list[bytes]]) -> None:
    known: FiledKeys | None = None
    for lines in versions:
        whole = [one if one.endswith(b"\n") else one + b"\n" for one in lines[:-1]] + lines[-1:]
        file.write_bytes(b"".join(whole))
        known = FiledKeys.read(file, known)
        assert names(known, *"abcde") == names(FiledKeys.read(file), *"abcde")
