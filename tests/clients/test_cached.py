"""The cache inside an application: with the transport and in the middleware calls are shared as in the sidecar."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from headgate import GatewayMiddleware, GatewayTransport
from tests_support.answers import chat_chunks, sse
from tests_support.asgi import Lifespan, ask
from tests_support.embedded import embedded_config, ledger
from tests_support.gateway import CHAT_BODY
from tests_support.traffic import without_ours
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from pathlib import Path

CACHED: dict[str, Any] = {"filters": ["cache", "retry"]}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
WORDS = [f"word {n} " for n in range(30)]


async def test_streams_of_one_application_share_a_call(tmp_path: Path) -> None:
    pause = Pause()
    head, *rest = sse(chat_chunks(WORDS))
    begun = asyncio.Semaphore(0)
    async with FakeUpstream([head, *rest[:3], pause, *rest[3:]]) as upstream:
        transport = GatewayTransport(embedded_config(tmp_path, upstream, changes=CACHED))
        async with openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=transport), api_key="none") as client:

            async def read() -> str:
                text = ""
                async for part in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
                    if not text:
                        begun.release()
                    text += (part.choices[0].delta.content or " ") if part.choices else ""
                return text.strip()

            first = [asyncio.create_task(read()) for _ in range(5)]
            for _ in first:
                await begun.acquire()
            pause.go()
            texts = [*await asyncio.gather(*first), await read()]
    assert set(texts) == {"".join(WORDS).strip()}
    assert len(upstream.requests) == 1
    assert sorted(row["cache"] for row in ledger(tmp_path)) == ["hit", *["joined"] * 4, "miss"]


async def test_an_asgi_application_gives_an_answer_again_byte_for_byte(tmp_path: Path) -> None:
    body = CHAT_BODY.replace(b"{", b'{"stream":true,', 1)
    async with FakeUpstream(sse(chat_chunks(WORDS))) as upstream:

        async def nobody(*_: Any) -> None:
            raise AssertionError("this is the gateway's")

        app = GatewayMiddleware(nobody, embedded_config(tmp_path, upstream, auth=False, changes=CACHED))
        async with Lifespan(app):
            answers = [await ask(app, "POST", "/v1/chat/completions", body) for _ in range(3)]
    assert len({without_ours(answer.body) for answer in answers}) == 1
    assert len(upstream.requests) == 1
