"""The openai package of this checkout as one more client of the SSE matrix, with outcomes as in sse_clients.mjs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import openai

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headgate.clients.transport import GatewayTransport

    from .sse_rows import Row

PATIENCE = 8.0
"""Seconds for a whole stream."""
NAME = "openai-python"
IN_PROCESS = "openai-python + GatewayTransport"


async def outcomes(
    base_url: str, matrix: Iterable[Row], transport: GatewayTransport | None = None
) -> dict[tuple[str, str], dict[str, Any]]:
    """(row, client) -> what it made of it. With a transport, the gateway runs in the client."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    http = httpx2.AsyncClient(transport=transport) if transport is not None else None
    async with openai.AsyncOpenAI(base_url=base_url, api_key="k", max_retries=0, http_client=http) as client:
        for row in matrix:
            out: dict[str, Any] = {
                "text": "", "reasoning": "", "tools": {}, "finish": None, "usage": None, "error": None, "comment": False
            }  # fmt: skip
            try:
                async with asyncio.timeout(PATIENCE):
                    await (_chat if row.api == "chat" else _responses)(client, row.name, out)
            except Exception as error:  # whatever the SDK raises is what its user sees
                out["error"] = f"{type(error).__name__}: {error}"
            found[row.name, NAME if transport is None else IN_PROCESS] = out
    return found


async def _chat(client: openai.AsyncOpenAI, model: str, out: dict[str, Any]) -> None:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.usage:
            out["usage"] = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
        for choice in chunk.choices or ():
            out["text"] += choice.delta.content or ""
            fields = choice.delta.model_extra or {}
            out["reasoning"] += fields.get("reasoning_content") or fields.get("reasoning") or ""
            for call in choice.delta.tool_calls or ():
                said = call.function
                so_far = out["tools"].get(call.index, "")
                out["tools"][call.index] = so_far + ((said.name or "") + (said.arguments or "") if said else "")
            out["finish"] = choice.finish_reason or out["finish"]


async def _responses(client: openai.AsyncOpenAI, model: str, out: dict[str, Any]) -> None:
    async for event in await client.responses.create(model=model, input="?", stream=True):
        if event.type == "response.output_text.delta":
            out["text"] += event.delta
        elif event.type == "error":
            out["error"] = event.message
        elif event.type in ("response.completed", "response.incomplete", "response.failed"):
            usage = event.response.usage
            out["finish"], out["usage"] = event.type, [usage.input_tokens, usage.output_tokens] if usage else None
