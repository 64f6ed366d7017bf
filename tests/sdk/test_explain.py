"""The openai SDK asks; `headgate explain` and the admin listener say why it was answered so, with 1 worker and 2."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import environment, gateway_process
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from tests_support.process import GatewayProcess

VIEWER_KEY = "hg-viewer-canary-2Vb7nM4kJh9GfDsA"
MESSAGES: Any = [{"role": "user", "content": "hello"}]


async def explained(gateway: GatewayProcess, config: dict[str, Any], id_: str, *options: str) -> tuple[int, str]:
    """What the command says, with a config that names the port that the system chose."""
    file = gateway.folder / "explain.yaml"
    listeners = {"admin": {"port": gateway.admin_port}}
    events = {"path": str(gateway.folder / "events.db"), "spool": {"path": str(gateway.folder / "spool")}}
    file.write_text(json.dumps({**config, "listeners": listeners, "events": events}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "explain", id_, "--config", str(file), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(),
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_answer_is_explained_whichever_worker_gave_it(workers: int) -> None:
    async with (
        FakeUpstream([error_response(500, "down")]) as first,
        FakeUpstream(json_response(chat_completion())) as second,
    ):
        config = config_for(first, second)
        config["filters"][0]["auth"]["keys"].append({"name": "ops", "key": VIEWER_KEY, "roles": ["viewer"]})
        async with gateway_process(config, workers=workers) as gateway:
            async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
                create = client.chat.completions.with_raw_response.create
                ids = []
                for _ in range(6):
                    raw = await create(model="gpt-4o-mini", messages=MESSAGES, extra_headers={"connection": "close"})
                    ids.append(raw.headers["x-headgate-decision-id"])
                raw = await create(
                    model="gpt-4o-mini",
                    messages=MESSAGES,
                    extra_headers={"authorization": f"Bearer {VIEWER_KEY}", "x-headgate-explain": "1"},
                )
            said = json.loads(raw.headers["x-headgate-explain"])
            assert [one["provider"] for one in said["attempts"]] == ["up", "up2"]
            for id_ in ids:
                answer = await gateway.admin.send("GET", f"/admin/decisions/{id_}", key=VIEWER_KEY)
                found = answer.json()
                assert (answer.status, found["id"], found["outcome"], len(found["attempts"])) == (200, id_, "ok", 2)
            assert (await gateway.admin.send("GET", f"/admin/decisions/{ids[0]}", key=CLIENT_KEY)).status == 403
            unknown = await gateway.admin.send("GET", "/admin/decisions/hg_0", key=VIEWER_KEY)
            assert (unknown.status, unknown.error["code"]) == (404, "not_found")

            code, text = await explained(gateway, config, ids[0])
            assert (code, "Attempt 2 at up2/gpt-4o-mini answered 200." in text) == (0, True)
            code, text = await explained(gateway, config, ids[1], "--json")
            assert (code, json.loads(text)["id"]) == (0, ids[1])
            code, text = await explained(gateway, config, "hg_0")
            assert (code, "no exchange 'hg_0' is known: no worker remembers its reasons, and the" in text) == (1, True)

            await gateway.rows(7)
            await gateway.terminate()
            code, text = await explained(gateway, config, ids[0])
            assert (code, f"{ids[0]}: 200 ok; why is no longer kept" in text) == (0, True)
