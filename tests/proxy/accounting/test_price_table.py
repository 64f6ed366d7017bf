"""price_table: compiled once per version of genai-prices, loaded in milliseconds, never half a table."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
import pytest

import headgate.proxy.accounting.price_table as module
from headgate.proxy.accounting.price_lookup import FlatTable
from headgate.proxy.accounting.price_table import FORMAT, PriceTableError, load_price_table, table_path
from headgate.proxy.accounting.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path


def price_of_gpt_4o(cache: Path | None) -> float | None:
    price = load_price_table(cache, wall=time.time).lookup("https://api.openai.com/v1", "gpt-4o")
    return price.cost(Usage(1_000_000, 0)) if price is not None else None


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with a table that the real subprocess compiled."""
    cache = tmp_path_factory.mktemp("cache") / "made" / "by it"
    assert price_of_gpt_4o(cache) == 2.5
    return cache


@pytest.fixture
def cache(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    place = table_path(tmp_path)
    place.write_bytes(table_path(compiled).read_bytes())
    return tmp_path


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_compile", lambda path: pytest.fail(f"compiles {path}"))


def spoil(cache: Path, data: bytes) -> None:
    table_path(cache).write_bytes(data)


def test_the_file_is_named_by_version_and_private(compiled: Path) -> None:
    (place,) = compiled.iterdir()
    assert place.name == f"prices-{version('genai-prices')}-{FORMAT}.msgpack"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


@pytest.mark.usefixtures("no_compiling")
def test_a_compiled_table_is_loaded_in_milliseconds(compiled: Path) -> None:
    best = 1.0
    for _ in range(5):
        before = time.perf_counter()
        assert price_of_gpt_4o(compiled) == 2.5
        best = min(best, time.perf_counter() - before)
    assert best < 0.05


def test_the_loading_process_never_imports_genai_prices(compiled: Path) -> None:
    code = (
        "import sys, time; from headgate.proxy.accounting.price_table import load_price_table;"
        f"table = load_price_table({str(compiled)!r}, wall=time.time); assert table.lookup('api.openai.com', 'gpt-4o');"
        "print([name for name in sys.modules if name.split('.')[0] in ('genai_prices', 'pydantic', 'httpx2', 'yaml')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("at", [0, 10, 31, 32, 33, 1000, -1])
def test_a_file_cut_anywhere_is_compiled_again(cache: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table_path(cache).read_bytes()
    spoil(cache, whole[:at])
    monkeypatch.setattr(module, "_compile_into", lambda path: (path.write_bytes(whole), module._read(path))[1])
    assert price_of_gpt_4o(cache) == 2.5
    assert table_path(cache).read_bytes() == whole


def test_a_flipped_bit_is_noticed(cache: Path) -> None:
    data = bytearray(table_path(cache).read_bytes())
    data[len(data) // 2] ^= 1
    spoil(cache, bytes(data))
    assert price_of_gpt_4o(cache) == 2.5  # by the real subprocess, in place
    assert table_path(cache).read_bytes() != bytes(data)


def test_a_file_of_another_shape_is_no_table(cache: Path) -> None:
    payload = msgspec.msgpack.encode(["something", "else"])
    spoil(cache, hashlib.sha256(payload).digest() + payload)
    assert module._read(table_path(cache)) is None


def test_a_directory_that_cannot_be_written_is_done_without(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table_path(compiled).read_bytes()
    used: list[Path] = []

    def compile_into(path: Path) -> FlatTable | None:
        used.append(path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.write_bytes(whole)
        return module._read(path)

    monkeypatch.setattr(module, "_compile_into", compile_into)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert price_of_gpt_4o(blocked / "below a file") == 2.5
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != read_only)
    assert price_of_gpt_4o(read_only) == 2.5
    assert list(read_only.iterdir()) == []
    assert [path.exists() for path in used] == [False, False]


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ("import sys; sys.exit('no such model list')", "cannot compile the price table: no such model list"),
        ("import sys; sys.exit(3)", "cannot compile the price table: exit status 3"),
        ("pass", "is not readable right after it was compiled"),
    ],
)
def test_a_compile_that_fails_is_an_error_and_not_an_older_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: str, message: str
) -> None:
    real = subprocess.run
    stubbed = [sys.executable, "-c", stub]
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real(stubbed, **options))
    with pytest.raises(PriceTableError, match=message):
        load_price_table(tmp_path, wall=time.time)


def test_an_interpreter_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(PriceTableError, match=r"cannot compile the price table: .*nowhere"):
        load_price_table(tmp_path, wall=time.time)


def test_the_table_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert table_path().parent == tmp_path / "headgate"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for not_absolute in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", not_absolute)
        assert table_path().parent == tmp_path / "home" / ".cache" / "headgate"


def test_a_user_without_a_home_has_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(NotADirectoryError):
        table_path().parent.mkdir(parents=True)
    assert price_of_gpt_4o(None) == 2.5


def test_an_unfinished_file_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headgate.proxy.accounting.compile_prices import write

    target = tmp_path / "prices.msgpack"
    target.mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        write(target, FlatTable(1, "0", ()))
    assert list(tmp_path.iterdir()) == [target]
