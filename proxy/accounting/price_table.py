"""The price table of this installation: genai-prices, compiled once per version into a flat file.

The file lies in the user's cache directory, or in a private temporary one where that cannot be written. It begins
with a digest of itself, so a file that is cut, edited or of another version is not a price list but a reason to
compile again. There is no older table to fall back to: a table that cannot be made is an error that boot has to name.

Not here: the compiling (compile_prices.py, the only importer of genai-prices), the prices of the operator
(price_file.py).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from .price_lookup import FlatTable, PriceTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from .price_file import PriceFile

# Of the flat form; part of the file's name. Raise it with every change of the structs in price_lookup.py and prices.py.
FORMAT: Final = 3
COMPILE_SECONDS: Final = 60.0
_DIGEST: Final = hashlib.sha256().digest_size


class PriceTableError(Exception):
    """There is no price table and none could be compiled."""


def load_price_table(
    cache_dir: str | os.PathLike[str] | None = None, *, wall: Callable[[], float], file: PriceFile | None = None
) -> PriceTable:
    """The price table, compiled first where there is none; `cache_dir` defaults to the user's.

    Blocks: a few milliseconds, or one or two seconds where it compiles. Raises PriceTableError.
    """
    path = table_path(cache_dir)
    table = _read(path)
    if table is None:
        table = _compile(path)
    return PriceTable(table, wall=wall, file=file)


def table_path(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the flat file of the installed genai-prices belongs."""
    directory = Path(cache_dir) if cache_dir is not None else _user_cache()
    return directory / f"prices-{version('genai-prices')}-{FORMAT}.msgpack"


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path there is to be ignored.
    if os.path.isabs(base):
        return Path(base) / "headgate"
    try:
        return Path.home() / ".cache" / "headgate"
    except RuntimeError:  # a container's user without a name and without HOME
        return Path(os.devnull) / "headgate"  # cannot be written


def _read(path: Path) -> FlatTable | None:
    """The table in `path`; None when it is not there or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = memoryview(data)[_DIGEST:]
    if hashlib.sha256(payload).digest() != data[:_DIGEST]:
        return None
    try:
        return msgspec.msgpack.decode(payload, type=FlatTable)
    except msgspec.MsgspecError:
        return None


def _compile(path: Path) -> FlatTable:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if writable:
        return _compile_into(path)
    # Nobody else can have put a file into a directory made now; it is gone again when the table is in memory.
    with tempfile.TemporaryDirectory(prefix="headgate-prices-") as private:
        return _compile_into(Path(private) / path.name)


def _compile_into(path: Path) -> FlatTable:
    module = f"{__package__}.compile_prices"
    command = [sys.executable, "-P", "-m", module, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)  # noqa: S603 - our own interpreter, our own module
    except (OSError, subprocess.SubprocessError) as error:
        raise PriceTableError(f"cannot compile the price table: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PriceTableError(f"cannot compile the price table: {last}")
    table = _read(path)
    if table is None:
        raise PriceTableError(f"the price table in {path} is not readable right after it was compiled")
    return table
