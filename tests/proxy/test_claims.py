"""claims: no client has ever seen an id that is not written down, whatever the answer and however it is cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests_support.answers import (
    chat_chunks,
    chat_completion,
    json_response,
    response_events,
    response_object,
    sse,
    typed_event,
)
from tests_support.downstream import CHAT, FakeDownstream
from tests_support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Sequence

RESPONSES = "/v1/responses"
STREAMED = b'{"model":"m","stream":true,"store":true,"input":"hi","messages":[]}'
PLAIN = STREAMED.replace(b"true", b"false", 1)
TOOL = typed_event("response.output_item.added", item={"type": "code_interpreter_call", "container_id": "cntr_1"})


class Watching(FakeDownstream):
    """Looks into the spool at the first byte that shows an id."""

    __slots__ = ("_relay", "known")

    def __init__(self, relay: Relay, path: str, **options: Any) -> None:
        super().__init__(path=path, **options)
        self._relay = relay
        self.known: dict[str, bool] = {}

    def write(self, data: bytes) -> bool:
        """As the client would see it: whole, or in parts that make sense together."""
        more = super().write(data)
        written = {record.id for record in self._relay.lines.issued}
        for id_ in ("resp_test", "chatcmpl-test", "cntr_1"):
            if id_.encode() in self.received:
                self.known.setdefault(id_, id_ in written)
        return more


def stream_of_response() -> list[bytes]:
    first, *others = response_events()
    return sse([first, TOOL, *others])


ANSWERS: dict[str, tuple[str, bytes, Sequence[bytes], set[str]]] = {
    "response": (RESPONSES, PLAIN, [json_response(response_object())], {"resp_test"}),
    "streamed response": (RESPONSES, STREAMED, stream_of_response(), {"resp_test", "cntr_1"}),
    "chat": (CHAT, PLAIN, [json_response(chat_completion())], {"chatcmpl-test"}),
    "streamed chat": (CHAT, STREAMED, sse(chat_chunks()), {"chatcmpl-test"}),
}


@pytest.mark.parametrize("answer", ANSWERS)
@settings(max_examples=30)
@given(size=st.integers(1, 400), late=st.booleans())
def test_no_byte_shows_an_id_that_is_not_on_disk(answer: str, size: int, late: bool) -> None:
    path, body, pieces, ids = ANSWERS[answer]
    relay = Relay()
    downstream = Watching(relay, path)
    relay.ask(body, downstream)
    [call] = relay.calls
    call.sent()
    data = b"".join(pieces)
    for at in range(0, len(data), size):
        call.feed(data[at : at + size])
        if late:
            relay.clock.advance(0.05)  # what is held too long goes down before its first content
    assert downstream.ended
    assert downstream.known == dict.fromkeys(ids, True)
    assert {(record.id, getattr(record, "provider", "")) for record in relay.lines.issued} == {
        (id_, "up0") for id_ in ids
    }


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_not_to_be_stored_leaves_nothing(answer: str) -> None:
    path, body, pieces, _ = ANSWERS[answer]
    relay = Relay()
    relay.ask(body.replace(b'"store":true', b'"store":false'), FakeDownstream(path=path))
    [call] = relay.calls
    call.sent()
    call.feed(b"".join(pieces))
    assert relay.lines.issued == []


def test_what_a_failed_attempt_has_made_is_not_claimed() -> None:
    """Its id was held back with the rest of what it said, and nobody has seen it."""
    relay = Relay(providers=2)
    exchange = relay.ask(STREAMED, FakeDownstream(path=RESPONSES))
    first = relay.providers[0].last
    first.sent()
    first.feed(b"".join(stream_of_response()[:2]))
    first.rst()
    relay.clock.advance(0.3)
    second = relay.providers[1].last
    second.sent()
    second.feed(json_response({**response_object(), "id": "resp_2"}))
    assert json.loads(exchange.downstream.received)["id"] == "resp_2"
    assert [(record.id, record.provider) for record in relay.lines.issued] == [("resp_2", "up1")]


def test_a_provider_error_makes_nothing() -> None:
    relay = Relay(retry=None)
    relay.ask(PLAIN, FakeDownstream(path=RESPONSES))
    [call] = relay.calls
    call.sent()
    call.feed(json_response({"id": "resp_test", "error": {"message": "no"}}, 400))
    assert relay.lines.issued == []
