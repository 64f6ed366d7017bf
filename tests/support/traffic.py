"""The recorded traffic of ../shared/data: which rows are of which endpoint, and what a client must get from a replay.

What is here to compare with is written apart from the product: events are split by a plain search for blank lines, and
every one is parsed by `json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "traffic" / "recorded.jsonl"
STREAM_REQUEST = b'{"model":"recorded","stream":true,"messages":[{"role":"user","content":"?"}]}'

CHAT = "/v1/chat/completions"

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n")
_OURS = re.compile(rb": headgate \{[^\n]*\}\n\n")
_OTHERS = ("/v1/completions", "/responses", "/embeddings")
_FRAMING = {"content-encoding", "content-length", "transfer-encoding", "connection"}


@dataclass(frozen=True)
class Row:
    """One recorded exchange. `sent` is the client's body."""

    id: str
    provider: str
    stream: bool
    sent: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    path: str = CHAT
    asked_at: str = CHAT
    """Path and query as the recorded client wrote them, where it was the provider's own."""

    @property
    def asked_for_usage(self) -> bool:
        """The client wants the usage event."""
        options = json.loads(self.sent).get("stream_options") or {}
        return bool(options.get("include_usage"))

    @property
    def expected(self) -> bytes:
        """What the client must get, our comment block aside."""
        return self.body if not self.stream or self.asked_for_usage else without_usage_events(self.body)

    def __repr__(self) -> str:
        return self.id


@cache
def chat_rows() -> tuple[Row, ...]:
    """Every row that is chat in the OpenAI dialect; none where the data is not there."""
    if not RECORDED.is_file():
        return ()
    with RECORDED.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(_row(row) for row in rows if _is_chat(row))


@cache
def other_rows() -> tuple[Row, ...]:
    """Every row of the other endpoints of the OpenAI dialect that take JSON."""
    if not RECORDED.is_file():
        return ()
    with RECORDED.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = ((_other_path(row), row) for row in rows)
    return tuple(replace(_row(row), path=path) for path, row in found if path is not None)


@cache
def unread_rows() -> tuple[tuple[str, str], ...]:
    """Id and path of every row that neither of the two has; the path is empty where no request was recorded."""
    if not RECORDED.is_file():
        return ()
    with RECORDED.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    left = [row for row in rows if not _is_chat(row) and _other_path(row) is None]
    return tuple((row["id"], urlsplit(row["request"]["url"]).path if row["request"] else "") for row in left)


def _other_path(row: dict[str, Any]) -> str | None:
    if row["request"] is None:
        return "/v1/responses" if '"type":"response.created"' in row["response"]["body"] else None
    url = urlsplit(row["request"]["url"])
    return url.path if url.path.startswith("/v1/") and url.path.endswith(_OTHERS) else None


def _is_chat(row: dict[str, Any]) -> bool:
    if row["request"] is None:
        return bool('"object":"chat.completion.chunk"' in row["response"]["body"])
    return bool(urlsplit(row["request"]["url"]).path.endswith("/chat/completions"))


def _row(row: dict[str, Any]) -> Row:
    response, recorded = row["response"], row["request"]
    url = urlsplit(recorded["url"] if recorded is not None else CHAT)
    headers = [(name.lower(), value) for name, value in response["headers"]]
    return Row(
        id=row["id"],
        provider=row["provider"],
        stream=row["stream"],
        sent=STREAM_REQUEST if recorded is None else recorded["body"].encode(),
        status=response["status"],
        headers=tuple((name, value) for name, value in headers if name not in _FRAMING),
        body=response["body"].encode(),
        asked_at=f"{url.path}?{url.query}" if url.query else url.path,
    )


def events(stream: bytes) -> list[bytes]:
    """The events of a stream, each with its blank line; what follows the last blank line is an item of its own."""
    found, start = [], 0
    for match in _BLANK_LINE.finditer(stream):
        found.append(stream[start : match.end()])
        start = match.end()
    return [*found, stream[start:]] if start < len(stream) else found


def data_of(one: bytes) -> Any:
    """What an event carries, parsed; None for comments, `[DONE]` and what is not JSON."""
    text = b"\n".join(line[5:].strip() for line in one.splitlines() if line.startswith(b"data:"))
    try:
        return json.loads(text)
    except ValueError:
        return None


def is_usage_event(one: bytes) -> bool:
    """`choices: []` and a usage object: what `include_usage` adds."""
    data = data_of(one)
    return isinstance(data, dict) and data.get("choices") == [] and isinstance(data.get("usage"), dict)


def without_usage_events(stream: bytes) -> bytes:
    """The stream as a client sees it that did not ask for usage."""
    return b"".join(one for one in events(stream) if not is_usage_event(one))


def without_ours(stream: bytes) -> bytes:
    """The stream without our one comment block; fails where there is more than one."""
    stripped, count = _OURS.subn(b"", stream)
    assert count <= 1, f"{count} comment blocks"
    return stripped


def error_events(stream: bytes) -> list[dict[str, Any]]:
    """The error objects of a stream."""
    parsed = (data_of(one) for one in events(stream))
    return [data["error"] for data in parsed if isinstance(data, dict) and isinstance(data.get("error"), dict)]


def finish_reasons(stream: bytes) -> list[str]:
    """Every finish_reason, in order."""
    return [
        choice["finish_reason"]
        for data in map(data_of, events(stream))
        if isinstance(data, dict)
        for choice in data.get("choices") or ()
        if choice.get("finish_reason")
    ]


def has_done(stream: bytes) -> int:
    """How many `[DONE]`s."""
    return sum(one.strip() == b"data: [DONE]" for one in events(stream))


def ids(rows: Iterable[Row]) -> list[str]:
    """Test ids."""
    return [row.id.replace("/", ".").replace("#", "-") for row in rows]
