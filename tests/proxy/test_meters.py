"""meters: usage of what passes unread is found in its ends, and only where it is the document's own."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.openai import OpenAI
from headgate.proxy.meters import END_BYTES, WHOLE_BYTES, DocumentMeter, Meter, open_meter
from headgate.proxy.upstream.call import ResponseHead
from tests_support.answers import chat_chunks, event

if TYPE_CHECKING:
    from headgate.proxy.dialect import AnswerFacts, RequestFacts

OPERATIONS = OpenAI().operations
EMBEDDINGS, CHAT = OPERATIONS["embeddings"], OPERATIONS["chat"]
USAGE = {"prompt_tokens": 8, "total_tokens": 8}
VECTOR = "A" * 1000


def ask(**more: Any) -> RequestFacts:
    return CHAT.read(json.dumps({"model": "m", "messages": [], **more}).encode(), max_depth=64)


def opened(kind: str, encoding: str | None = None, operation: Any = CHAT, **asked: Any) -> Meter | None:
    headers = [(b"content-type", kind.encode())]
    if encoding is not None:
        headers.append((b"content-encoding", encoding.encode()))
    return open_meter(ResponseHead(200, headers), operation, ask(**asked))


def fed(meter: Meter | None, data: bytes, step: int = 5000) -> AnswerFacts:
    assert meter is not None
    for at in range(0, len(data), step):
        meter.feed(data[at : at + step])
    while meter.behind:
        meter.feed(b"")
    return meter.facts()


def document(**members: Any) -> bytes:
    return json.dumps(members).encode()


DATA = [{"object": "embedding", "index": index, "embedding": VECTOR} for index in range(60)]


@pytest.mark.parametrize(
    "body",
    [
        document(object="list", data=DATA, model="m", usage=USAGE),
        document(object="list", data=DATA, usage=USAGE, model="m", more={"usage": {}}),
        document(object="list", usage=USAGE, data=DATA),
        document(usage=USAGE, data=DATA),
        b' { "data": %b , "usage" : %b } \n' % (json.dumps(DATA).encode(), json.dumps(USAGE).encode()),
        document(data=[], usage=USAGE),
    ],
    ids=["last", "near the end", "early", "first", "spaced", "small"],
)
@pytest.mark.parametrize("step", [1000, 16_000, 1_000_000])
def test_the_usage_of_a_large_document_is_found_at_either_end(body: bytes, step: int) -> None:
    usage = fed(DocumentMeter(EMBEDDINGS), body, step).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.source) == (8, 0, "reported")


@pytest.mark.parametrize(
    "body",
    [
        document(data=[*DATA, {"usage": USAGE}]),
        document(data=DATA, more={"usage": USAGE}),
        document(data=[{"usage": USAGE}, *DATA]),
        document(more={"x": 1, "usage": USAGE}, data=DATA),
        document(data=DATA, text=json.dumps({"usage": USAGE})),
        document(data=DATA, usage="none"),
        document(data=[*DATA[:30], {"x": 1}], usage=USAGE, more=DATA),
        document(data=DATA, model="m", usage=USAGE)[:-1],
        document(data=DATA, model="m", usage=USAGE) + b"}",
        b"",
    ],
    ids=[
        "item",
        "member",
        "first item",
        "first member",
        "text",
        "no object",
        "middle",
        "cut",
        "one brace more",
        "none",
    ],
)
def test_what_is_not_the_documents_own_does_not_count(body: bytes) -> None:
    assert fed(DocumentMeter(EMBEDDINGS), body).usage is None


def test_little_is_held_of_a_large_document() -> None:
    meter = DocumentMeter(EMBEDDINGS)
    for _ in range(300):
        meter.feed(b"x" * 100_000)
        assert len(meter._end) + len(meter._head) <= 4 * END_BYTES
    meter = DocumentMeter(EMBEDDINGS, whole=WHOLE_BYTES)
    for _ in range(300):
        meter.feed(b"x" * 100_000)
        assert len(meter._end) <= WHOLE_BYTES + 100_000
    assert len(meter._end) <= 4 * END_BYTES


@pytest.mark.parametrize("size", [10, 100_000, WHOLE_BYTES])
def test_an_encoded_document_is_read(size: int) -> None:
    answer: dict[str, Any] = {"choices": [{"message": {"content": "x" * size}}]}
    answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 4}
    facts = fed(opened("application/json", "gzip"), gzip.compress(json.dumps(answer).encode()))
    assert facts.usage is not None
    assert facts.usage.completion_tokens == 4
    del answer["usage"]
    facts = fed(opened("application/json", "gzip"), gzip.compress(json.dumps(answer).encode()))
    assert facts.usage is None
    assert facts.text_bytes == (size if size < WHOLE_BYTES else 0)


def test_an_encoded_stream_is_read_event_by_event() -> None:
    chunks = [
        *chat_chunks(["Hello", " there"], done=False),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]
    data = gzip.compress(b"".join(map(event, chunks)) + b"data: [DONE]\n\n")
    facts = fed(opened("text/event-stream; charset=utf-8", "gzip", stream=True), data + b"behind", 3)
    assert facts.usage is not None
    assert facts.usage.completion_tokens == 4
    cut = fed(opened("text/event-stream", "gzip", stream=True), data[: len(data) // 2], 3)
    assert cut.usage is None


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        ("audio/mpeg", None), ("application/x-ndjson", "gzip"), ("text/event-stream", None),
        ("application/json", "zstd"), ("", None),
    ],
)  # fmt: skip
def test_of_other_bodies_nothing_can_be_known(kind: str, encoding: str | None) -> None:
    assert opened(kind, encoding) is None


def test_a_document_in_its_own_bytes_is_seen_at_its_ends() -> None:
    body = document(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4})
    assert fed(opened("application/json"), body).usage is not None
    assert fed(opened("application/json", "identity"), body).usage is not None


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.just(USAGE),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["usage", "data", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "data", "usage", "z"]), JSON, max_size=4), st.integers(0, 3))
def test_what_is_found_is_what_reading_the_whole_finds(members: dict[str, Any], at: int) -> None:
    """The middle is out of sight, so it may find nothing; it never finds anything else."""
    items = list(members.items())
    items.insert(at, ("large", "x" * 3 * END_BYTES))
    body = json.dumps(dict(items)).encode()
    found, whole = fed(DocumentMeter(EMBEDDINGS), body).usage, EMBEDDINGS.read_answer(body).usage
    assert found is None or found == whole
