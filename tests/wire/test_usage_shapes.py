"""Every row of the endpoint table that reports usage is metered and priced, whole and streamed, in each shape that
providers report it in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headgate.control.endpoints import FACES
from tests_support.answers import chat_chunks, chat_completion, event, json_response, sse, typed_event
from tests_support.gateway import CHAT_BODY, config_for, running_gateway
from tests_support.upstream import FakeUpstream

CHAT = {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}
TOKENS = {"input_tokens": 30, "output_tokens": 20, "total_tokens": 50}
SECONDS = {"type": "duration", "seconds": 1800}
BOUNDARY = "0123456789abcdef"
FORM = [("content-type", f"multipart/form-data; boundary={BOUNDARY}")]
BODY = b'{"model":"m","input":"x","prompt":"x","query":"x","documents":[],"messages":[]}'
STREAMED = BODY[:-1] + b',"stream":true}'
BOTH = (30 * 1 + 20 * 2) / 1e6
INPUT = 30 * 1 / 1e6
HOUR = 0.36


def form(**fields: str) -> bytes:
    parts = {"model": "m", **fields, "file": "x"}
    return (
        b"".join(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in parts.items()
        )
        + f"--{BOUNDARY}--\r\n".encode()
    )


def answer(**members: Any) -> bytes:
    return json_response(members)


def events(kind: str, **members: Any) -> Any:
    return sse([typed_event(kind, **members)])


SHAPES = [
    ("chat", "/v1/chat/completions", CHAT_BODY, json_response(chat_completion(usage=CHAT)), BOTH),
    ("chat", "/v1/chat/completions", STREAMED,
     sse([*map(event, chat_chunks(done=False)), event({"choices": [], "usage": CHAT}), b"data: [DONE]\n\n"]), BOTH),
    ("chat", "/openai/deployments/m/chat/completions", BODY, json_response(chat_completion(usage=CHAT)), BOTH),
    ("completions", "/v1/completions", BODY, answer(choices=[{"text": "a"}], usage=CHAT), BOTH),
    ("completions", "/v1/completions", STREAMED,
     sse([event({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": CHAT}), b"data: [DONE]\n\n"]), BOTH),
    ("responses", "/v1/responses", BODY, answer(output=[], usage=TOKENS), BOTH),
    ("responses", "/v1/responses", STREAMED, events("response.completed", response={"usage": TOKENS}), BOTH),
    ("responses", "/openai/responses", BODY, answer(output=[], usage=TOKENS), BOTH),
    ("embeddings", "/v1/embeddings", BODY, answer(data=[], usage={"prompt_tokens": 30, "total_tokens": 30}), INPUT),
    ("rerank", "/v1/rerank", BODY, answer(results=[], usage={"total_tokens": 30}), INPUT),
    ("images", "/v1/images/generations", BODY, answer(data=[], usage=TOKENS), BOTH),
    ("images", "/v1/images/generations", STREAMED, events("image_generation.completed", usage=TOKENS), BOTH),
    ("image_edits", "/v1/images/edits", form(), answer(data=[], usage=TOKENS), BOTH),
    ("image_edits", "/v1/images/edits", form(stream="true"), events("image_edit.completed", usage=TOKENS), BOTH),
    ("image_edits", "/v1/images/edits", BODY, answer(data=[], usage=TOKENS), BOTH),
    ("image_variations", "/v1/images/variations", form(), answer(data=[], usage=TOKENS), BOTH),
    ("speech", "/v1/audio/speech", BODY[:-1] + b',"stream_format":"sse"}',
     events("speech.audio.done", usage=TOKENS), BOTH),
    ("transcriptions", "/v1/audio/transcriptions", form(), answer(text="a", usage={"type": "tokens", **TOKENS}), BOTH),
    ("transcriptions", "/v1/audio/transcriptions", form(stream="true"),
     events("transcript.text.done", usage={"type": "tokens", **TOKENS}), BOTH),
    ("transcriptions", "/v1/audio/transcriptions", form(), answer(text="a", usage=SECONDS), HOUR / 2),
    ("transcriptions", "/v1/audio/transcriptions", form(stream="true"),
     events("transcript.text.done", usage=SECONDS), HOUR / 2),
    ("translations", "/v1/audio/translations", form(), answer(text="a", usage={"type": "tokens", **TOKENS}), BOTH),
    ("translations", "/v1/audio/translations", form(), answer(text="a", duration=1800.0), HOUR / 2),
    ("files", "/v1/files/file-1/anything", b"{}", answer(usage=TOKENS), BOTH),
]  # fmt: skip
SILENT = {"moderations", "realtime"}
"""Providers report nothing; and what is reported in sessions is tested with them."""


@pytest.mark.parametrize(
    ("endpoint", "path", "body", "script", "cost"),
    SHAPES,
    ids=[f"{path}-{at}" for at, (_, path, *_) in enumerate(SHAPES)],
)
async def test_usage_is_metered_and_priced(
    endpoint: str, path: str, body: bytes, script: Any, cost: float, tmp_path: Any
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(json.dumps({"*": {"input": 1, "output": 2, "audio_hour": HOUR}}))
    async with FakeUpstream(script) as upstream:
        config = {**config_for(upstream), "prices": {"file": str(prices)}}
        async with running_gateway(config) as gateway:
            got = await gateway.post(body, FORM if body.startswith(b"--") else (), target=path)
            [row] = await gateway.rows(1)
    assert got.status == 200, got.body
    assert (row.endpoint, row.outcome, row.usage_source, row.cost_source) == (endpoint, "ok", "reported", "file")
    assert row.cost_usd == pytest.approx(cost)


def test_no_row_of_the_table_is_forgotten() -> None:
    metered = {face.name for face in FACES if face.metered and not face.passes}
    assert metered == {endpoint for endpoint, *_ in SHAPES if endpoint != "files"} | SILENT
