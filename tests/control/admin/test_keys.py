"""/admin/keys: keys are listed without digests, made and rotated with the key shown once, and revoked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.control.keys import KeyRing
from tests_support.admin import AUTH, config_with, running_admin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests_support.admin import RunningAdmin
    from tests_support.raw import Answer


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[RunningAdmin]:
    async with running_admin(config_with(filters=[with_file(tmp_path / "keys.db")])) as running:
        yield running


def with_file(path: Path) -> dict[str, Any]:
    return {"auth": {**AUTH["auth"], "keys_file": str(path)}}


async def change(admin: RunningAdmin, method: str, path: str = "", body: object = None) -> Answer:
    return await admin.ask(method, f"/admin/keys{path}", key="admin", body=body)


async def listed(admin: RunningAdmin) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await admin.get("/admin/keys", key="viewer")).json()["data"]
    return data


async def whoami(admin: RunningAdmin, key: str) -> int:
    """The status of a request with this key."""
    await admin.gateway.half.read_keys()
    return (await admin.gateway.send("GET", "/v1/models", key=key)).status


async def test_a_key_is_made_shown_once_and_good(admin: RunningAdmin) -> None:
    scopes = {"owner": "ann", "team": "web", "roles": ["viewer"], "models": ["gpt-*"], "tags": ["night"]}
    answer = await change(admin, "POST", body={"name": "made", "expires": "90d", **scopes})
    assert answer.status == 201
    made = answer.json()
    key = made.pop("key")
    assert key.startswith("hg-")
    assert made["expires"] == pytest.approx(made["created"] + 90 * 86400)
    assert {name: made[name] for name in scopes} == scopes
    assert await whoami(admin, key) == 200
    everything = await listed(admin)
    assert [(one["name"], one["from"]) for one in everything] == [
        ("app", "config"),
        ("viewer", "config"),
        ("admin", "config"),
        ("made", "keys_file"),
    ]
    assert everything[3] | {"created": 0} == made | {"created": 0}
    assert not {"key", "digest", "id"} & everything[3].keys()
    assert key not in json.dumps(everything)


async def test_it_is_written_as_the_command_writes_it(admin: RunningAdmin, tmp_path: Path) -> None:
    await change(admin, "POST", body={"name": "made", "expires": "2030-06-30"})
    [record] = KeyRing(tmp_path / "keys.db", None, admin.view.clock.wall).records()
    assert record.name == "made"
    assert record.expires == pytest.approx(1909094400)
    assert (tmp_path / "keys.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "headgate-pepper").stat().st_mode & 0o777 == 0o600


async def test_a_rotated_key_leaves_its_predecessor_for_a_while(admin: RunningAdmin) -> None:
    first = (await change(admin, "POST", body={"name": "made", "team": "web"})).json()["key"]
    answer = await change(admin, "POST", "/made/rotate", {"overlap": "12h"})
    second = answer.json()["key"]
    assert (answer.status, answer.json()["overlap_seconds"]) == (200, 43200)
    assert [await whoami(admin, key) for key in (first, second)] == [200, 200]
    old, new = (await listed(admin))[3:]
    assert (old["team"], new["team"]) == ("web", "web")
    assert old["expires"] == pytest.approx(admin.view.clock.wall() + 43200, abs=60)
    assert new["expires"] is None
    gone = await change(admin, "POST", "/made/rotate", {"overlap": "0s"})
    assert [await whoami(admin, key) for key in (first, second, gone.json()["key"])] == [401, 401, 200]


async def test_a_revoked_key_is_nobody_any_more(admin: RunningAdmin) -> None:
    key = (await change(admin, "POST", body={"name": "made"})).json()["key"]
    answer = await change(admin, "DELETE", "/made")
    assert (answer.status, answer.json()) == (200, {"object": "key", "name": "made", "revoked": 1})
    assert await whoami(admin, key) == 401
    assert len(await listed(admin)) == 3


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "name", "must be 1 to 64"),
        ({"name": "a b"}, "name", "must be 1 to 64"),
        ({"name": 7}, "name", "must be text"),
        ({"name": "admin"}, "name", "auth.keys has a key"),
        ({"name": "x", "roles": ["root"]}, "roles", "viewer"),
        ({"name": "x", "models": []}, "models", "must name a model"),
        ({"name": "x", "paths": ["v1"]}, "paths", "begin with /"),
        ({"name": "x", "expires": "soon"}, "expires", "an age like 90d"),
        ({"name": "x", "expires": 90}, "expires", "an age like 90d"),
        ({"name": "x", "expires": "2020-01-01"}, "expires", "must be in the future"),
        ({"name": "x", "key": "chosen-by-the-caller"}, "key", "are known here"),
        (b"[1]", None, "JSON object"),
        (b'{"name": "\xff"}', None, "JSON object"),
    ],
)
async def test_what_is_no_key_is_refused_and_nothing_is_written(
    admin: RunningAdmin, tmp_path: Path, body: object, param: str | None, words: str
) -> None:
    answer = await change(admin, "POST", body=body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert words in answer.error["message"]
    assert not (tmp_path / "keys.db").exists()


async def test_names_are_unique_and_unknown_ones_are_404(admin: RunningAdmin) -> None:
    await change(admin, "POST", body={"name": "made"})
    again = await change(admin, "POST", body={"name": "made"})
    assert (again.status, again.error["code"], again.error["param"]) == (409, "conflict", "name")
    for method, path in (("DELETE", "/unknown"), ("POST", "/unknown/rotate"), ("DELETE", "/admin")):
        answer = await change(admin, method, path)
        assert (answer.status, answer.error["code"]) == (404, "not_found"), path
    assert (await change(admin, "POST", "/made/rotate", {"overlap": "long"})).error["param"] == "overlap"


async def test_without_a_file_the_answer_says_what_to_write() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        answer = await change(admin, "POST", body={"name": "made"})
        assert len(await listed(admin)) == 3
    assert (answer.status, answer.error["code"]) == (409, "conflict")
    assert "keys_file" in answer.error["message"]
    async with running_admin() as admin:
        assert await listed(admin) == []


async def test_a_file_that_cannot_be_read_is_503_and_its_place_stands_in_the_log_alone(
    admin: RunningAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.db").write_text("no keys\n")
    for answer in (await change(admin, "POST", body={"name": "made"}), await admin.get("/admin/keys", key="viewer")):
        assert (answer.status, answer.error["code"]) == (503, "keys_file_away")
        assert str(tmp_path) not in answer.error["message"]
    assert "keys.db:1: not a key" in capsys.readouterr().out
