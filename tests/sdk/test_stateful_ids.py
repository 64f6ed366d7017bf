"""The `openai` SDK and two providers behind one base_url: an object is found where it was made, by its team alone."""

from __future__ import annotations

import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from tests_support.gateway import CLIENT_KEY, RunningGateway, running_gateway
from tests_support.keeper import BLUE_KEY, RED_KEY, TEAMS, Keeper, keepers_config
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FILE: Any = ("a.jsonl", io.BytesIO(b"{}\n"))
AT_UP2 = {"x-headgate-provider": "up2"}


class Scene:
    """A gateway before two keepers, `up` ("a") and `up2` ("b")."""

    def __init__(self, gateway: RunningGateway, up: FakeUpstream, up2: FakeUpstream) -> None:
        self.gateway = gateway
        self.up = up
        self.up2 = up2

    def client(self, key: str = CLIENT_KEY) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.gateway.base_url, api_key=key, max_retries=0)


@asynccontextmanager
async def scene(**changes: Any) -> AsyncIterator[Scene]:
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        running_gateway(keepers_config(up, up2, **changes)) as gateway,
    ):
        yield Scene(gateway, up, up2)


async def test_a_file_is_read_and_deleted_where_it_was_made() -> None:
    async with scene() as here, here.client() as client:
        made = await client.files.create(file=FILE, purpose="batch", extra_headers=AT_UP2)
        assert made.id == "file-b1"
        assert (await client.files.retrieve(made.id)).id == made.id
        assert (await client.files.content(made.id)).json()["from"] == "b"
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.ConflictError, match="Several providers could have made 'file-b1'"):
            await client.files.retrieve(made.id)
        assert here.up.requests == []


async def test_a_batch_goes_where_its_file_is_and_its_results_are_found() -> None:
    async with scene() as here, here.client() as client:
        made = await client.files.create(file=FILE, purpose="batch", extra_headers=AT_UP2)
        batch = await client.batches.create(
            input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert batch.id == "batch_b2"
        batch = await client.batches.retrieve(batch.id)
        assert batch.output_file_id == "file-b3"
        assert (await client.files.content(batch.output_file_id)).json()["from"] == "b"
        assert here.up.requests == []


async def test_the_file_of_an_upload_and_a_vector_store_over_it_stay_together() -> None:
    async with scene() as here, here.client() as client:
        upload = await client.uploads.create(
            bytes=3, filename="a", mime_type="text/plain", purpose="assistants", extra_headers=AT_UP2
        )
        done = await client.uploads.complete(upload.id, part_ids=[])
        assert done.file is not None
        store = await client.vector_stores.create(file_ids=[done.file.id])
        assert store.id.startswith("vs_b")
        assert (await client.vector_stores.retrieve(store.id)).id == store.id
        job = await client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=done.file.id)
        assert (await client.fine_tuning.jobs.retrieve(job.id)).id == job.id
        assert here.up.requests == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_response_goes_on_where_the_one_before_it_is(streamed: bool) -> None:
    async with scene() as here, here.client() as client:
        if streamed:
            stream = await client.responses.create(model="m", input="hi", stream=True, extra_headers=AT_UP2)
            seen = [event async for event in stream]
            assert seen[0].type == "response.created"
            id_ = seen[0].response.id
        else:
            id_ = (await client.responses.create(model="m", input="hi", extra_headers=AT_UP2)).id
        assert id_ == "resp_b1"
        # Without the earlier one, `up` would be asked first.
        assert (await client.responses.create(model="m", input="hi")).output_text == "from a"
        after = await client.responses.create(model="m", input="more", previous_response_id=id_)
        assert after.output_text == "from b"
        assert (await client.responses.retrieve(after.id)).id == after.id
        await client.responses.delete(id_)
        assert len(here.up.requests) == 1


async def test_a_conversation_and_a_stored_chat_are_found_again() -> None:
    async with scene() as here, here.client() as client:
        talk = await client.conversations.create(extra_headers=AT_UP2)
        answer = await client.responses.create(model="m", input="hi", conversation=talk.id)
        assert answer.output_text == "from b"
        messages: Any = [{"role": "user", "content": "hi"}]
        kept = await client.chat.completions.create(model="m", messages=messages, store=True, extra_headers=AT_UP2)
        assert (await client.chat.completions.retrieve(kept.id)).id == kept.id
        stream = await client.chat.completions.create(
            model="m", messages=messages, store=True, stream=True, extra_headers=AT_UP2
        )
        ids = {one.id async for one in stream}
        assert (await client.chat.completions.retrieve(ids.pop())).id
        assert here.up.requests == []


async def test_what_is_not_stored_is_not_remembered() -> None:
    async with scene() as here, here.client() as client:
        answer = await client.responses.create(model="m", input="hi", store=False, extra_headers=AT_UP2)
        with pytest.raises(openai.ConflictError):
            await client.responses.create(model="m", input="hi", previous_response_id=answer.id)
        with pytest.raises(openai.ConflictError):
            await client.chat.completions.retrieve("chatcmpl-test")


async def test_an_id_that_nobody_knows_is_not_guessed_and_not_retried() -> None:
    async with scene() as here, here.client() as client:
        with pytest.raises(openai.ConflictError) as refused:
            await client.files.retrieve("file-elsewhere")
        assert refused.value.code == "unknown_issuer"
        assert refused.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.ConflictError):
            await client.files.list()
        assert [one.id async for one in client.files.list(extra_headers=AT_UP2)] == []
        assert len(here.up2.requests) == 1


async def test_pinned_means_no_fallback() -> None:
    """The issuer fails; the other provider serves the model, and is not asked."""
    async with scene() as here, here.client() as client:
        first = await client.responses.create(model="m", input="hi", extra_headers=AT_UP2)
        here.up2.script = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="m", input="more", previous_response_id=first.id)
        assert (await client.responses.create(model="m", input="more")).output_text == "from a"
        assert len(here.up.requests) == 1


async def test_an_object_exists_for_its_team_only() -> None:
    async with (
        scene(keys=TEAMS) as here,
        here.client(RED_KEY) as red,
        here.client(BLUE_KEY) as blue,
        here.client() as app,
    ):
        made = await red.files.create(file=FILE, purpose="batch", extra_headers=AT_UP2)
        assert (await red.files.retrieve(made.id)).id == made.id
        before = len(here.up2.requests)
        for other in (blue, app):
            for use in (
                other.files.retrieve(made.id),
                other.files.content(made.id),
                other.files.delete(made.id),
                other.files.retrieve(made.id, extra_headers=AT_UP2),
                other.batches.create(input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"),
                other.responses.create(
                    model="m",
                    input=[{"role": "user", "content": [{"type": "input_file", "file_id": made.id}]}],
                ),
            ):
                with pytest.raises(openai.NotFoundError, match=f"No such object: '{made.id}'") as refused:
                    await use
                assert refused.value.code == "not_found"
        assert len(here.up2.requests) == before
        first = await red.responses.create(model="m", input="hi")
        with pytest.raises(openai.NotFoundError) as refused:
            await blue.responses.create(model="m", input="more", previous_response_id=first.id)
        assert refused.value.param == "previous_response_id"


async def test_lists_and_ids_made_elsewhere_are_for_keys_that_name_their_path() -> None:
    key = "ops-Wd5kP7zN3vBq9MsE"
    opened = {"name": "ops", "key": key, "team": "ops", "paths": ["/v1/files", "/v1/files/**"]}
    async with scene(keys=[*TEAMS, opened]) as here, here.client(RED_KEY) as red, here.client(key) as ops:
        made = await red.files.create(file=FILE, purpose="batch", extra_headers=AT_UP2)
        with pytest.raises(openai.PermissionDeniedError, match="shows what every team has made"):
            await red.files.list(extra_headers=AT_UP2)
        with pytest.raises(openai.PermissionDeniedError, match="was not made through this gateway") as refused:
            await red.files.retrieve("file-elsewhere")
        assert refused.value.code == "not_issued"
        assert [one.id async for one in ops.files.list(extra_headers=AT_UP2)] == [made.id]
        with pytest.raises(openai.NotFoundError, match="b has no file-elsewhere"):
            await ops.files.retrieve("file-elsewhere", extra_headers=AT_UP2)
        with pytest.raises(openai.NotFoundError, match="No such object"):
            await ops.files.retrieve(made.id)
        with pytest.raises(openai.PermissionDeniedError, match="its paths do not name it"):
            await ops.batches.retrieve("batch_b1")


async def test_with_one_provider_and_one_team_nothing_is_asked_and_everything_passes() -> None:
    async with FakeUpstream(Keeper("a")) as up, running_gateway(keepers_config(up)) as gateway:
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
            made = await client.files.create(file=FILE, purpose="batch")
            assert [one.id async for one in client.files.list()] == [made.id]
            with pytest.raises(openai.NotFoundError, match="a has no file-elsewhere"):
                await client.files.retrieve("file-elsewhere")
        assert gateway.half.engine.issuers.asked == 0


async def test_one_provider_and_two_teams_are_told_apart_all_the_same() -> None:
    async with (
        FakeUpstream(Keeper("a")) as up,
        running_gateway(keepers_config(up, keys=TEAMS)) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key=RED_KEY, max_retries=0) as red,
        AsyncOpenAI(base_url=gateway.base_url, api_key=BLUE_KEY, max_retries=0) as blue,
    ):
        made = await red.files.create(file=FILE, purpose="batch")
        assert (await red.files.content(made.id)).json()["from"] == "a"
        # What stands in a file is not believed.
        with pytest.raises(openai.PermissionDeniedError):
            await red.files.retrieve("file-spoofed")
        with pytest.raises(openai.NotFoundError, match="No such object"):
            await blue.files.retrieve(made.id)
        with pytest.raises(openai.PermissionDeniedError):
            await blue.files.list()
        assert (await blue.files.create(file=FILE, purpose="batch")).id == "file-a2"
