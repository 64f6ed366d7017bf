"""A provider that keeps what it made: files, batches, vector stores, responses, conversations, stored chats.

    up, up2 = Keeper("a"), Keeper("b")
    async with FakeUpstream(up) as first, FakeUpstream(up2) as second: ...

Its ids carry its name (`file-a1`), and what it has not made is 404, as at a real one: so an answer says by itself who
gave it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .answers import (
    LAST_CHUNK,
    chat_completion,
    chunk,
    error_response,
    json_response,
    response_events,
    response_head,
    response_object,
    sse,
)
from .gateway import CLIENT_KEY, config_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .upstream import FakeUpstream, Request, Step

SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
PREFIXES = {
    "files": "file-",
    "batches": "batch_",
    "uploads": "upload_",
    "vector_stores": "vs_",
    "conversations": "conv_",
    "containers": "cntr_",
    "responses": "resp_",
    "chat/completions": "chatcmpl-",
    "fine_tuning/jobs": "ftjob-",
}
_OBJECT = re.compile(r"/v1/((?:chat|fine_tuning)/[a-z]+|[a-z_]+)(?:/([^/]+))?(/.*)?")

RED_KEY = "red-Qm4tV8xL2sKd7WpZ"
BLUE_KEY = "blue-Tn6bR1cY9fHj3GxU"
TEAMS: list[dict[str, Any]] = [
    {"name": "app", "key": CLIENT_KEY},
    {"name": "red", "key": RED_KEY, "team": "red"},
    {"name": "blue", "key": BLUE_KEY, "team": "blue"},
]
"""Keys of three teams, of which the first is that of the keys without one."""


class Keeper:
    """A script for FakeUpstream. `objects` by id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, dict[str, Any]] = {}

    def __call__(self, asked: Request) -> Sequence[Step] | bytes:
        found = _OBJECT.fullmatch(asked.target.partition("?")[0])
        assert found is not None, asked.target
        kind, id_, below = found[1], found[2], found[3] or ""
        if id_ is None:
            return self._all(kind) if asked.method == "GET" else self._make(kind, asked)
        kept = self.objects.get(id_)
        if kept is None:
            return error_response(404, f"{self.name} has no {id_}")
        if below == "/content":
            return json_response({"id": "file-spoofed", "output_file_id": "file-spoofed", "from": self.name})
        if asked.method == "DELETE" and not below:
            del self.objects[id_]
            return json_response({"id": id_, "object": "deleted", "deleted": True})
        if below == "/complete":
            kept["file"] = {"id": self._new("files", {})["id"], "object": "file"}
        if kind == "batches" and asked.method == "GET":
            kept["output_file_id"] = kept["output_file_id"] or self._new("files", {})["id"]
        return json_response(kept)

    def _all(self, kind: str) -> bytes:
        data = [one for one in self.objects.values() if one["kind"] == kind]
        return json_response({"object": "list", "data": data, "has_more": False})

    def _make(self, kind: str, asked: Request) -> Sequence[Step] | bytes:
        is_json = (asked.header("content-type") or "").startswith("application/json")
        sent: dict[str, Any] = json.loads(asked.body) if is_json else {}
        named = [sent.get(name) for name in ("input_file_id", "previous_response_id", "conversation")]
        named += sent.get("file_ids", [])
        for id_ in named:
            if id_ is not None and id_ not in self.objects:
                return error_response(404, f"{self.name} has no {id_}")
        if kind == "responses":
            return self._respond(sent)
        if kind == "chat/completions":
            return self._complete(sent)
        return json_response(self._new(kind, {"object": kind.rstrip("s"), "output_file_id": None, **sent}))

    def _respond(self, sent: dict[str, Any]) -> Sequence[Step] | bytes:
        whole = response_object(model=sent["model"], text=f"from {self.name}")
        id_ = self._new("responses", whole)["id"]
        if sent.get("store") is False:
            del self.objects[id_]
        if not sent.get("stream"):
            return json_response({**whole, "id": id_})
        events = [one.replace(b"resp_test", id_.encode()) for one in response_events()]
        return [SSE, *map(chunk, events), LAST_CHUNK]

    def _complete(self, sent: dict[str, Any]) -> Sequence[Step] | bytes:
        whole = chat_completion(f"from {self.name}", model=sent["model"])
        if sent.get("store"):
            whole = self._new("chat/completions", whole)
        if not sent.get("stream"):
            return json_response(whole)
        base = {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": sent["model"]}
        deltas = ({"role": "assistant", "content": ""}, {"content": "hello"})
        chunks = [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        end = {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        return sse([*chunks, end, b"data: [DONE]\n\n"])

    def _new(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        id_ = f"{PREFIXES[kind]}{self.name}{len(self.objects) + 1}"
        self.objects[id_] = {"created_at": 1, **fields, "id": id_, "kind": kind}
        return self.objects[id_]


def keepers_config(*upstreams: FakeUpstream, keys: Sequence[dict[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    """A config before these providers, `up`, `up2`, …; `keys` none: one key without a team."""
    config = config_for(*upstreams)
    if keys:
        config["filters"] = [{"auth": {"keys": list(keys)}}, "retry"]
    return {**config, **changes}
