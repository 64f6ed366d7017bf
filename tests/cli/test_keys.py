"""keys: from a config without any file to a key that is shown once, listed, replaced and revoked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.command import InProcess

AUTH = """\
filters:
  - auth:
      keys_file: keys.db
      keys: [{name: own, key: hg-4f1c9a7be2d05863}]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headgate.proxy.clock.wall_time", lambda: 1_800_000_000.0)
    file = tmp_path / "gateway.yaml"
    file.write_text(AUTH)
    return file


@pytest.mark.usefixtures("config")
def test_a_key_is_shown_once_alone_on_stdout(headgate: InProcess) -> None:
    made = headgate("keys", "create", "--name", "app", "--owner", "ann", "--models", "gpt-*, o3", "--expires", "90d")
    assert made.code == 0
    key = made.out.strip()
    assert key.startswith("hg-")
    assert "shown this once" in made.err
    assert key not in made.err
    listed = headgate("keys", "list")
    assert key not in listed.out
    assert "app" in listed.out
    assert "gpt-*,o3" in listed.out
    assert "2027-04-15T08:00Z" in listed.out
    [entry] = json.loads(headgate("keys", "list", "--json").out)
    assert entry["owner"] == "ann"
    assert "digest" not in entry


@pytest.mark.usefixtures("config")
def test_a_name_is_replaced_and_revoked(headgate: InProcess) -> None:
    headgate("keys", "create", "--name", "app")
    again = headgate("keys", "create", "--name", "app")
    assert (again.code, again.out) == (1, "")
    assert "headgate keys rotate app" in again.err
    assert headgate("keys", "rotate", "app", "--overlap", "2h", "--expires", "2030-06-30").out.startswith("hg-")
    lines = headgate("keys", "list").out.splitlines()
    assert lines[1].endswith("2027-01-15T10:00Z")
    assert lines[2].endswith("2030-06-30T23:59Z")
    assert "2 keys revoked" in headgate("keys", "revoke", "app").out
    gone = headgate("keys", "revoke", "app")
    assert (gone.code, gone.out) == (1, "")
    assert "there is no key 'app'" in gone.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b"], "--name: must be 1 to 64"),
        (["--name", "own"], "--name: auth.keys has a key 'own'"),
        (["--name", "a", "--roles", "root"], "--roles"),
        (["--name", "a", "--models", "a*b"], "--models: must be 1 to 256"),
        (["--name", "a", "--models", ","], "--models: must name a model"),
        (["--name", "a", "--paths", "v1"], "--paths: must be paths that begin with /"),
        (["--name", "a", "--expires", "soon"], "must be like 90d, or a date"),
        (["--name", "a", "--expires", "2026-12-31"], "--expires: must be in the future"),
    ],
)
@pytest.mark.usefixtures("config")
def test_what_makes_no_sense_makes_no_key(
    headgate: InProcess, arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = headgate("keys", "create", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "keys.db").exists()


def test_without_a_config_it_says_how_to_name_one(headgate: InProcess, config: Path) -> None:
    config.unlink()
    done = headgate("keys", "list")
    assert (done.code, done.out) == (2, "")
    assert "there is no ./gateway.yaml here" in done.err
    assert "--config FILE" in done.err


def test_a_pepper_that_the_config_names_is_made_with_the_first_key(headgate: InProcess, config: Path) -> None:
    config.write_text('filters: [auth: {keys_file: keys.db, pepper: "${file:./pep}"}]\n')
    assert headgate("check").code == 2
    assert headgate("keys", "list").code == 2
    assert headgate("keys", "create", "--name", "app").out.startswith("hg-")
    pepper = config.with_name("pep")
    assert pepper.stat().st_mode & 0o777 == 0o600
    assert headgate("check").code == 0
    pepper.unlink()
    assert headgate("check").code == 2


def test_keys_without_their_pepper_are_a_refused_config(headgate: InProcess, config: Path) -> None:
    assert "headgate keys create" in headgate("check").out
    headgate("keys", "create", "--name", "app")
    assert "headgate keys create" not in headgate("check").out
    config.with_name("headgate-pepper").unlink()
    done = headgate("check")
    assert done.code == 2
    assert "pepper is gone" in done.err
    for arguments in (["create", "--name", "b"], ["rotate", "app"]):
        assert "put it back" in headgate("keys", *arguments).err


def test_without_a_keys_file_it_says_what_to_write(headgate: InProcess, config: Path) -> None:
    config.write_text("")
    done = headgate("keys", "create", "--name", "app")
    assert done.code == 2
    assert "auth: {keys_file: ./headgate-keys.db}" in done.err


def test_a_pepper_without_a_file_is_refused(headgate: InProcess, config: Path) -> None:
    config.write_text("filters: [auth: {pepper: hg-4f1c9a7be2d05863}]\n")
    assert "there is none" in headgate("check").err
