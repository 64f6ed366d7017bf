"""The command's face: every `-h` is enough, mistakes name what was meant, and exit codes say whose fault it was."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from headgate import __main__ as cli
from headgate import __version__
from headgate.control.arguments import _age, make_parser, worker_command
from headgate.control.process.source import ConfigSource

if TYPE_CHECKING:
    import argparse

    from tests_support.command import InProcess

COMMANDS = ("serve", "check", "schema", "usage", "explain", "keys", "mock", "version")


def commands() -> argparse.ArgumentParser:
    """The parser; what it parses runs nothing."""
    parser, names = make_parser(dict.fromkeys((*COMMANDS, "_worker"), lambda _: 0))
    assert names == (*COMMANDS, "_worker")
    return parser


def test_help_lists_every_command_with_what_it_does(headgate: InProcess) -> None:
    said = headgate("-h")
    assert said.code == 0
    assert re.findall(r"^    (\w+) ", said.out, re.MULTILINE) == list(COMMANDS)
    assert "_worker" not in said.out


def test_without_arguments_it_shows_the_help_and_fails(headgate: InProcess) -> None:
    said = headgate()
    assert (said.code, said.out) == (2, "")
    assert "Start with: headgate serve" in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_what_each_option_is_and_gives_an_example_that_parses(
    name: str, headgate: InProcess
) -> None:
    said = headgate(name, "-h")
    assert said.code == 0
    [example] = re.findall(r"Example: headgate (.+)", re.sub(r"\s+", " ", said.out))
    words = shlex.split(example.partition(">")[0])
    assert words[0] == name
    commands().parse_args(words)  # which exits where they do not parse
    options = said.out.partition("\noptions:")[2].partition("\n\n")[0]
    described = re.findall(r"^  (--[\w-]+)[^\n]*?(?:  |\n {8,})(\w)", options, re.MULTILINE)
    assert len(described) == len(re.findall(r"^  --", options, re.MULTILINE))


@pytest.mark.parametrize(
    ("typed", "meant"), [("serv", "serve"), ("chekc", "check"), ("usages", "usage"), ("versions", "version")]
)
def test_a_command_that_does_not_exist_names_the_nearest(typed: str, meant: str, headgate: InProcess) -> None:
    said = headgate(typed)
    assert (said.code, said.err) == (2, f"headgate: there is no command '{typed}', did you mean '{meant}'?\n")


def test_the_version_may_be_asked_for_as_an_option(headgate: InProcess) -> None:
    assert headgate("--version") == headgate("version")


def test_a_command_like_no_other_lists_what_there_is(headgate: InProcess) -> None:
    said = headgate("xyzzy" * 1000, "--workers", "2")
    assert said.code == 2
    assert said.err.endswith("there are serve, check, schema, usage, explain, keys, mock, version\n")
    assert len(said.err) < 200


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["serve", "--workers", "0"], "must be a whole number from 1 to 256"),
        (["serve", "--workers", "257"], "must be a whole number from 1 to 256"),
        (["serve", "--workers", "²"], "must be a whole number"),
        (["serve", "--workers", "9" * 5000], "must be a whole number"),
        (["serve", "--log-level", "loud"], "invalid choice"),
        (["mock", "--port", "65536"], "must be a whole number from 0 to 65535"),
        (["mock", "--port", "-1"], "must be a whole number"),
        (["mock", "--delay", "-5"], "must be milliseconds"),
        (["mock", "--delay", "nan"], "must be milliseconds"),
        (["mock", "--delay", "soon"], "must be milliseconds"),
        (["usage", "--by", "colour"], "invalid choice"),
        (["usage", "--since", "7"], "like 90m, 12h or 7d"),
        (["usage", "--since", "d"], "like 90m, 12h or 7d"),
        (["usage", "--since", "-1d"], "expected one argument"),
        (["usage", "--since", "9999999d"], "like 90m, 12h or 7d"),
        (["check", "a.yaml", "b.yaml"], "unrecognized arguments: b.yaml"),
        (["--frobnicate"], "required: COMMAND"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_refused_with_what_would_be_right(
    arguments: list[str], why: str, headgate: InProcess
) -> None:
    said = headgate(*arguments)
    assert (said.code, said.out) == (2, "")
    assert why in said.err
    assert "Traceback" not in said.err


def test_ages_are_read_in_minutes_hours_and_days() -> None:
    assert [_age(text) for text in ("90m", "12h", "7d")] == [5400, 43_200, 604_800]


def test_the_log_level_comes_from_the_environment_where_it_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    for value in ("debug", "verbose"):
        monkeypatch.setenv("HEADGATE_LOG", value)
        levels.append(commands().parse_args(["serve"]).log_level)
    assert levels == ["debug", "info"]


def test_version_is_the_packages(headgate: InProcess) -> None:
    said = headgate("version")
    assert (said.code, said.out) == (0, f"headgate {__version__}\n")


def test_a_worker_is_started_by_the_line_it_reads() -> None:
    command = worker_command(ConfigSource("my gateway.yaml", workers=2), "debug")("1", 7, 8)
    read = commands().parse_args(command[command.index("_worker") :])
    assert (read.name, read.control_fd, read.data_fd) == ("1", 7, 8)
    assert (read.file, read.workers, read.log_level) == ("my gateway.yaml", 2, "debug")


def test_ctrl_c_ends_a_command_without_a_traceback(headgate: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_version_text", interrupted)
    assert (headgate("version").code, headgate("version").err) == (130, "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`headgate schema | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "headgate", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
