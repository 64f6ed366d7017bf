"""Objects at providers, byte by byte: no spelling of a path or a body reaches another team's, and what is large, slow
or odd is still written down, or refused."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy import issuers as issuers_module
from headgate.proxy.accounting.record import Forgotten, Issued
from tests_support.answers import json_response, response_object
from tests_support.caller import eventually
from tests_support.gateway import CLIENT_KEY, RunningGateway, load, running_gateway, spooled, written
from tests_support.keeper import BLUE_KEY, RED_KEY, TEAMS, Keeper, keepers_config
from tests_support.raw import RawClient, request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MIB = 1024 * 1024
FILES = "/v1/files"
FORM = ("content-type", "multipart/form-data; boundary=xx")
JSON = ("content-type", "application/json")
AT_UP2 = ("x-headgate-provider", "up2")
OPS_KEY = "ops-Wd5kP7zN3vBq9MsE"
OPS = {"name": "ops", "key": OPS_KEY, "team": "ops", "paths": ["/v1/**"]}


def form(*parts: tuple[str, bytes]) -> bytes:
    fields = [b'--xx\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), v) for n, v in parts]
    return b"".join([*fields, b"--xx--\r\n"])


@asynccontextmanager
async def teams(**changes: Any) -> AsyncIterator[tuple[RunningGateway, FakeUpstream]]:
    """One provider, keys of four teams."""
    async with (
        FakeUpstream(Keeper("a")) as up,
        running_gateway(keepers_config(up, keys=[*TEAMS, OPS], **changes)) as gateway,
    ):
        yield gateway, up


async def make_file(gateway: RunningGateway, key: str = RED_KEY) -> str:
    answer = await gateway.send("POST", FILES, form(("purpose", b"batch"), ("file", b"{}")), [FORM], key=key)
    assert answer.status == 200
    return str(answer.json()["id"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files/file%2Da1", 404),
        ("/v1/files/%66ile-a1", 404),
        ("/v1/files/file-a1%2Fcontent", 404),
        ("/v1/files/file-a1/content?x=1", 404),
        ("/v1/files/FILE-A1", 403),
        ("/v1/files/file-a1%20", 403),
        ("/v1/files/./file-a1", 404),
        ("/v1/files/x/../file-a1", 404),
        ("/v1/files?after=file-a1", 403),
    ],
)
async def test_no_spelling_of_a_path_reaches_another_teams_file(path: str, status: int) -> None:
    async with teams() as (gateway, up):
        assert await make_file(gateway) == "file-a1"
        assert (await gateway.send("GET", path, key=BLUE_KEY)).status == status
        assert len(up.requests) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
async def test_all_of_a_kind_is_a_list_whatever_the_method(method: str) -> None:
    async with teams() as (gateway, up), RawClient(gateway.port) as client:
        await client.send(request(method, FILES, None, [("authorization", f"Bearer {BLUE_KEY}")]))
        assert (await client.answer(bodiless=method == "HEAD")).status == 403
        assert not up.requests


@pytest.mark.parametrize(
    "headers",
    [
        [JSON],
        [],
        [("content-type", "text/plain")],
        [("content-type", "application/octet-stream")],
        [FORM],
        [FORM, JSON],
        [("content-type", "multipart/form-data")],
        [JSON, ("content-encoding", "gzip")],
        [FORM, ("content-encoding", "gzip")],
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b'{"file_ids":["file-a1"]}',
        rb'{"file\u005fids":["file-a1"]}',
        b'{"file_ids":["file-a1"],"file_ids":[]}',
        '{"file_ids":["file-a1"]}'.encode("utf-16"),
        '{"file_ids":["file-a1"]}'.encode("utf-32-le"),
        b'{"x":"' + b" " * 100_000 + b'","file_ids":["file-a1"]}',
    ],
    ids=["plain", "escaped", "twice", "utf16", "utf32", "large"],
)
async def test_no_spelling_of_a_body_does_either(headers: list[tuple[str, str]], body: bytes) -> None:
    async with teams() as (gateway, up):
        await make_file(gateway)
        answer = await gateway.send("POST", "/v1/vector_stores", body, headers, key=BLUE_KEY)
        if any("multipart" in value or value == "gzip" for _, value in headers):
            assert answer.status in (400, 415)
        elif b"\0" in body:
            assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        else:
            assert (answer.status, answer.error["message"]) == (404, "No such object: 'file-a1'.")
        assert len(up.requests) == 1


@pytest.mark.parametrize("name", [b"file_id", b"file_ids[]", b"FILE_IDS[0]", b" file_id", b"input_file_id"])
async def test_no_form_names_an_object(name: bytes) -> None:
    async with teams() as (gateway, up):
        await make_file(gateway)
        answer = await gateway.send("POST", "/v1/containers", form((name.decode(), b"file-a1")), [FORM], key=BLUE_KEY)
        assert (answer.status, answer.error["message"]) == (400, "Name objects in a JSON body, not in a form.")
        assert len(up.requests) == 1


async def test_a_large_form_that_names_an_object_at_its_end_is_cut_off() -> None:
    async with teams() as (gateway, up):
        await make_file(gateway)
        body = form(("file", b"x" * MIB), ("file_id", b"file-a1"))
        answer = await gateway.send("POST", "/v1/containers", body, [FORM], key=BLUE_KEY)
        assert (answer.status, answer.error["param"]) == (400, "file_id")
        answer = await gateway.send("POST", "/v1/containers", body[:-8], [FORM], key=BLUE_KEY)
        assert answer.status == 400
        assert len(up.requests) == 1


async def test_a_large_upload_still_passes_while_it_arrives_and_json_is_held_to_the_bodys_limit() -> None:
    async with teams(limits={"body": "1MiB"}) as (gateway, up):
        body = form(("purpose", b"batch"), ("file", b"x" * 3 * MIB))
        answer = await gateway.send("POST", FILES, body, [FORM], key=RED_KEY)
        assert (answer.status, up.requests[0].body) == (200, body)
        large = b'{"x":"' + b"x" * 2 * MIB + b'"}'
        answer = await gateway.send("POST", "/v1/vector_stores", large, [JSON], key=RED_KEY)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        small = b'{"file_ids":["file-a1"],"metadata":{"file_id":"anything"}}'
        answer = await gateway.send("POST", "/v1/vector_stores", small, [JSON], key=RED_KEY)
        assert (answer.status, up.requests[1].body) == (200, small)
        assert up.requests[1].header("content-type") == "application/json"


async def test_what_is_refused_is_an_exchange_and_says_why() -> None:
    async with teams() as (gateway, _):
        made = await make_file(gateway)
        answers = [
            await gateway.send("GET", f"{FILES}/{made}", key=BLUE_KEY),
            await gateway.send("GET", f"{FILES}/file-x", key=BLUE_KEY),
            await gateway.send("GET", FILES, key=BLUE_KEY),
        ]
        assert [(one.status, one.error["code"]) for one in answers] == [
            (404, "not_found"), (403, "not_issued"), (403, "not_issued"),
        ]  # fmt: skip
        assert {"message", "type", "param", "code", "request_id"} == set(answers[0].error)
        rows = await gateway.rows(4)
    assert [(row.outcome, row.team, row.error_code) for row in rows[1:]] == [
        ("refused", "blue", "not_found"), ("refused", "blue", "not_issued"), ("refused", "blue", "not_issued"),
    ]  # fmt: skip


async def test_what_a_stranger_shows_is_not_taken_for_ones_own() -> None:
    """`ops` may see what nobody is known to have made; that does not make it theirs."""
    async with teams() as (gateway, up):
        keeper = up.script
        assert isinstance(keeper, Keeper)
        keeper.objects["batch_x"] = {"id": "batch_x", "kind": "batches", "output_file_id": "file-x"}
        answer = await gateway.send("GET", "/v1/batches/batch_x", key=OPS_KEY)
        assert answer.json()["output_file_id"] == "file-x"
        assert not [record for record in spooled(gateway.folder) if isinstance(record, Issued)]


async def test_only_a_deletion_that_happened_is_one() -> None:
    async with (
        FakeUpstream(json_response({"id": "file-1", "object": "file"})) as up,
        running_gateway(keepers_config(up, keys=TEAMS)) as gateway,
    ):
        assert (await gateway.send("POST", FILES, b"{}", [JSON], key=RED_KEY)).status == 200
        for answer in (
            json_response({"id": "file-1", "deleted": False}),
            json_response({"error": {"message": "no", "type": "x", "param": None, "code": None}}, 404),
        ):
            up.script = answer
            await gateway.send("DELETE", f"{FILES}/file-1", key=RED_KEY)
        await gateway.send("DELETE", "/v1/vector_stores/vs/files/file-1", key=RED_KEY)
        assert not [record for record in spooled(gateway.folder) if isinstance(record, Forgotten)]
        up.script = b"HTTP/1.1 204 No Content\r\n\r\n"
        assert (await gateway.send("DELETE", f"{FILES}/file-1", key=RED_KEY)).status == 204
        [gone] = [record for record in spooled(gateway.folder) if isinstance(record, Forgotten)]
        assert (gone.id, gone.provider) == ("file-1", "up")
        assert (await gateway.send("GET", f"{FILES}/file-1", key=RED_KEY)).status == 403


async def test_the_id_of_a_response_too_large_to_be_held_is_known() -> None:
    image = {"type": "image_generation_call", "id": "ig_1", "result": "A" * 9 * MIB}
    answer = response_object(id="resp_large", output=[image])
    async with (
        FakeUpstream(json_response(answer)) as up,
        FakeUpstream(Keeper("b")) as up2,
        running_gateway(keepers_config(up, up2)) as gateway,
    ):
        sent = b'{"model":"m","input":"draw"}'
        assert len((await gateway.send("POST", "/v1/responses", sent)).body) > 9 * MIB
        [issued] = [record for record in spooled(gateway.folder) if isinstance(record, Issued)]
    assert (issued.id, issued.provider, issued.kind, issued.team) == ("resp_large", "up", "responses", "")


async def test_whatever_a_catch_all_passes_belongs_to_its_team_too() -> None:
    route = {"name": "rest", "match": {"path": "/v1/**"}, "provider": "up"}
    async with (
        FakeUpstream(json_response({"id": "asst_1"})) as up,
        running_gateway(keepers_config(up, keys=TEAMS, routes=[route])) as gateway,
    ):
        assert (await gateway.send("POST", "/v1/assistants", b"{}", [JSON], key=RED_KEY)).status == 200
        assert (await gateway.send("POST", "/v1/assistants/asst_1", b"{}", [JSON], key=RED_KEY)).status == 200
        assert (await gateway.send("GET", "/v1/assistants/asst_1", key=BLUE_KEY)).status == 404
        assert (await gateway.send("GET", "/v1/assistants", key=BLUE_KEY)).status == 403
        sent = b'{"assistant_id":"asst_1"}'
        assert (await gateway.send("POST", "/v1/threads/runs", sent, [JSON], key=BLUE_KEY)).status == 404
        assert (await gateway.send("GET", "/v1/organization/users/u", key=BLUE_KEY)).status == 403


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[RunningGateway, list[tuple[int, list[str]]], FakeUpstream]]:
    """Two providers, and a control half that the test plays."""
    asked: list[tuple[int, list[str]]] = []
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        running_gateway(keepers_config(up, up2)) as gateway,
    ):
        gateway.half.engine.issuers.ask = lambda number, ids: asked.append((number, ids))
        yield gateway, asked, up2


async def test_an_upload_waits_for_the_answer_and_then_flows() -> None:
    body = form(("file", b"x" * 2 * MIB))
    async with asking() as (gateway, asked, up2):
        sending = asyncio.create_task(gateway.send("POST", "/v1/uploads/upload_b1/parts", body, [FORM]))
        await eventually(lambda: asked)
        [(number, ids)] = asked
        assert ids == ["upload_b1"]
        issued = Issued(id="upload_b1", at=0.0, provider="up2", team="", kind="uploads")
        gateway.half.engine.issuers.answered(number, [issued])
        assert (await sending).status == 404  # the keeper's: it has no such upload
        assert up2.requests[0].body == body


async def test_a_client_that_leaves_meanwhile_has_its_row_and_nothing_else_happens() -> None:
    async with asking() as (gateway, asked, up2):
        async with RawClient(gateway.port) as client:
            await client.send(request("GET", f"{FILES}/file-b1", None, [("authorization", f"Bearer {CLIENT_KEY}")]))
            await eventually(lambda: asked)
        [row] = await gateway.rows(1)
        assert (row.outcome, row.status) == ("cancelled", 499)
        issued = Issued(id="file-b1", at=0.0, provider="up2", team="", kind="files")
        gateway.half.engine.issuers.answered(asked[0][0], [issued])
        assert not up2.requests
        assert gateway.server.snapshot().counters.engine["internal_errors"] == 0


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers_module, "ASK_SECONDS", 0.1)
    async with asking() as (gateway, _, _):
        answer = await gateway.send("GET", f"{FILES}/file-b1")
        assert (answer.status, answer.error["code"], answer.header("retry-after")) == (503, "issuers_away", "1")
        assert gateway.server.snapshot().counters.engine["issuer_lookups_failed"] == 1


async def test_a_provider_that_is_no_longer_there_is_not_guessed_at() -> None:
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        FakeUpstream(Keeper("c")) as up3,
        running_gateway(keepers_config(up, up2)) as gateway,
    ):
        answer = await gateway.send("POST", FILES, b"{}", [JSON, AT_UP2])
        made = answer.json()["id"]
        config = json.loads(written(keepers_config(up, up2, up3), gateway.folder))
        del config["providers"]["up2"]
        config["models"]["*"]["targets"] = [{"provider": "up"}, {"provider": "up3"}]
        await gateway.server.reload(load(json.dumps(config)))
        answer = await gateway.send("GET", f"{FILES}/{made}")
        assert (answer.status, answer.error["code"]) == (409, "unknown_issuer")


async def test_a_model_that_only_one_provider_serves_needs_no_look_up() -> None:
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(Keeper("b")) as up2:
        config = keepers_config(up, up2)
        config["models"]["only-b"] = {"targets": [{"provider": "up2"}]}
        async with running_gateway(config) as gateway:
            sent = b'{"model":"only-b","input":"hi","previous_response_id":"resp_x"}'
            answer = await gateway.send("POST", "/v1/responses", sent)
            assert (answer.status, answer.error["message"]) == (404, "b has no resp_x")
            assert gateway.half.engine.issuers.asked == 0
            answer = await gateway.send("POST", "/v1/responses", sent.replace(b"only-b", b"other"))
            assert answer.status == 409


CHOOSE = """
from headgate import Filter

class Choose(Filter):
    def on_request(self, ex):
        if ex.model == "auto":
            ex.model = "real"
"""


async def test_a_model_that_a_filter_may_yet_choose_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "choosing_filter.py").write_text(CHOOSE)
    monkeypatch.syspath_prepend(tmp_path)
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(Keeper("b")) as up2:
        config = keepers_config(up, up2)
        targets = [{"provider": "up", "model": "m"}, {"provider": "up2", "model": "m"}]
        config["models"] = {"real": {"targets": targets}}
        config["filters"].append({"use": "choosing_filter:Choose"})
        async with running_gateway(config) as gateway:
            made = await gateway.send("POST", "/v1/responses", b'{"model":"auto","input":"hi"}', [AT_UP2])
            sent = {"model": "auto", "input": "hi", "previous_response_id": made.json()["id"]}
            answer = await gateway.send("POST", "/v1/responses", json.dumps(sent).encode())
            assert (answer.status, answer.header("x-headgate-provider")) == (200, "up2")


async def test_with_one_team_forms_and_media_pass_unread() -> None:
    """Two providers and a route to one of them: at any size, and in any bytes."""
    route = {"name": "rest", "match": {"path": "/v1/**"}, "provider": "up2"}
    body = b"\0\0\0\x18ftypmp42" + b"x" * 2 * MIB
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(json_response({"id": "video_1"})) as up2:
        config = keepers_config(up, up2, routes=[route], limits={"body": "1MiB"})
        async with running_gateway(config) as gateway:
            answer = await gateway.send("POST", "/v1/videos", body, [("content-type", "video/mp4")])
            assert (answer.status, up2.requests[0].body) == (200, body)
            named = form(("file_id", b"file-x"), ("file", b"x" * 2 * MIB))
            assert (await gateway.send("POST", "/v1/containers", named, [FORM])).status == 200
            answer = await gateway.send("POST", "/v1/videos", b'{"file_id":"file-x"}', [JSON])
            assert answer.status == 200  # only one provider could be meant
            assert gateway.half.engine.issuers.asked == 0


async def test_the_mock_is_the_one_while_nobody_else_can_answer() -> None:
    providers = {"openai": {"base_url": "https://api.openai.com/v1", "api_key": ""}, "mock": {"base_url": "mock:"}}
    async with running_gateway({"providers": providers}) as gateway:
        answer = await gateway.send("GET", f"{FILES}/file-x")
        assert (answer.status, answer.header("x-headgate-provider")) == (404, "mock")


@pytest.mark.parametrize("headers", [[], [JSON], [("content-type", "application/x-www-form-urlencoded")]])
async def test_a_batch_finds_its_file_whatever_curl_calls_it(headers: list[tuple[str, str]]) -> None:
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        running_gateway(keepers_config(up, up2)) as gateway,
    ):
        made = (await gateway.send("POST", FILES, form(("file", b"{}")), [FORM, AT_UP2])).json()["id"]
        answer = await gateway.send("POST", "/v1/batches", b'{"input_file_id":"%b"}' % made.encode(), headers)
        assert (answer.status, answer.header("x-headgate-provider")) == (200, "up2")


@pytest.mark.parametrize("keys", [[], TEAMS], ids=["one team", "teams"])
async def test_what_stands_in_a_file_is_not_what_the_request_names(keys: list[dict[str, Any]]) -> None:
    """A small form is held whole, too; its file is still content."""
    line = b'{"custom_id":"1","body":{"file_id":"file-x","previous_response_id":"resp_x"}}'
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        running_gateway(keepers_config(up, up2, keys=keys)) as gateway,
    ):
        answer = await gateway.send("POST", FILES, form(("file", line)), [FORM, AT_UP2])
        assert answer.status == 200
        media = [("content-type", "video/mp4"), AT_UP2]
        answer = await gateway.send("POST", FILES, b"\0\0\0\x18ftyp", media)
        assert answer.status == (400 if keys else 200)
