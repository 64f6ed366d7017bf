"""source: what is read is a bounded regular file, and a text means the same wherever it is parsed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from headgate.config import ConfigError
from headgate.config.yaml_nodes import MAX_BYTES
from headgate.control.process.source import ConfigSource

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "version: 1\nworkers: 3\nfilters: [retry]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good one."""
    path = tmp_path / "gateway.yaml"
    path.write_text(TEXT)
    return path


def test_reads_and_parses_apart(file: Path) -> None:
    source = ConfigSource(file)
    text = source.read()
    file.write_text("filtres: []")
    config = source.parse(text)
    assert (text, config.workers, config.files) == (TEXT, 3, (file,))


def test_no_file_means_an_empty_one() -> None:
    source = ConfigSource(None)
    assert (source.read(), source.name, source.load().files) == ("", "defaults", ())


def test_the_command_line_overrides_the_file_and_is_part_of_the_version(file: Path) -> None:
    written, overridden = ConfigSource(file).load(), ConfigSource(file, workers=2).load()
    assert overridden.workers == 2
    assert overridden.digest != written.digest
    assert overridden.digest == ConfigSource(file, workers=2).parse(TEXT).digest


def test_a_price_file_stands_among_the_files(file: Path) -> None:
    prices = file.with_name("prices.yaml")
    prices.write_text("{}")
    file.write_text(f"prices: {{file: {prices}}}")
    assert ConfigSource(file).load().files == (file, prices)


def refusal(source: ConfigSource) -> str:
    """Why it cannot be read."""
    with pytest.raises(ConfigError) as refused:
        source.read()
    [problem] = refused.value.problems
    return str(problem)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.yaml"
    assert refusal(ConfigSource(missing)) == f"{missing}: no such file or directory"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(ConfigSource(tmp_path))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(ConfigSource(tmp_path / "pipe"))


def test_a_device_without_end_is_refused() -> None:
    assert "not a regular file" in refusal(ConfigSource("/dev/zero"))


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than" in refusal(ConfigSource(file))


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"# \xff")
    assert "not UTF-8 at byte 2" in refusal(ConfigSource(file))


def test_problems_name_the_file(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        ConfigSource(file).parse("filtres: []")
    assert str(refused.value).startswith(f"{file}:1:1: filtres: ")
