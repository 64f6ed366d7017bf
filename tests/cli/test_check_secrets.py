"""check: whatever is wrong with a file, and wherever a secret stands in it, no complaint repeats the secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests_support.secret_config import ENVIRONMENT, bad_files, leaks

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.command import InProcess


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_no_secret_comes_out_of_a_refused_config(
    every: int, tmp_path: Path, headgate: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "gateway.yaml"
    said, refused = [], 0
    for name, text in list(bad_files(tmp_path))[::every]:
        file.write_text(text)
        done = headgate("check", str(file))
        refused += done.code != 0
        said.append((name, f"{done.out}{done.err}".encode()))
    assert refused > 600 // every
    assert leaks(said) == []
