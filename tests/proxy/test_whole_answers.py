"""whole answers: one that comes in one read goes straight to its end, and comes to what it comes to in two."""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.proxy.accounting.prices import own_price
from headgate.proxy.decisions import _facts, render
from headgate.proxy.filter import Filter
from tests_support.answers import chat_completion, json_response, response
from tests_support.downstream import FakeDownstream
from tests_support.relay import EVERY_FAILURE, Relay

if TYPE_CHECKING:
    from headgate.proxy.attempt import Attempt
    from headgate.proxy.exchange import Exchange
    from headgate.proxy.upstream.call import ResponseHead

COMPLETION = json.dumps(chat_completion()).encode()
GOOD = json_response(chat_completion("From the second."))
REQUESTS = [
    b'{"model":"m","messages":[]}',
    b'{"model":"m","messages":[],"stream":true}',
    b'{"model":"m","messages":[],"store":true}',
    b'{"model":"m","messages":[],"n":2,"max_tokens":5}',
]
FIELDS = [
    ("content-encoding", "gzip"), ("content-encoding", "identity"), ("x-request-id", "req_1"), ("x-request-id", ""),
    ("retry-after", "2"), ("x-envoy-immediate-health-check-fail", "1"), ("connection", "close"), ("x-own", "1"),
    ("x-headgate-attempts", "9"), ("content-type", "text/html"),
]  # fmt: skip
BODIES = [
    COMPLETION, COMPLETION[:-4], b"", b"{}", b"[]", b"hello", b'{"error":{"message":"no"}}', b'{"usage":7}', b"\xff",
    gzip.compress(COMPLETION), json.dumps(chat_completion(usage=None)).encode(), b" " + COMPLETION + b"\n",
    b'{"id":"chatcmpl-1","choices":7}', COMPLETION + b"}", b"data: [DONE]\n\n",
]  # fmt: skip
KINDS = [
    *["application/json"] * 12, None, "application/json; charset=utf-8", "application/json;charset=latin-1",
    "application/problem+json", "application/jsonl", "text/plain", "text/event-stream", "audio/mpeg",
]  # fmt: skip
_IDS = re.compile(rb"hg_[0-9a-f]{24}")


class Hears(Filter):
    """Notes what it hears, and changes what it may."""

    def __init__(self, *, edits: bool) -> None:
        self.name = "hears"
        self.heard: list[Any] = []
        self._edits = edits

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        """Note it."""
        self.heard.append(("attempt", attempt.number))

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        """Note how."""
        error = attempt.error
        self.heard.append(("end", attempt.status, error and error.code, attempt.cancelled, attempt.request_id))

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """Another status, and one more field."""
        self.heard.append(("response", head.status))
        if self._edits:
            head.headers = [*head.headers, (b"x-edited", b"1")]
            head.status = 299 if head.status == 200 else head.status

    def on_done(self, ex: Exchange) -> None:
        """Note what it has come to."""
        self.heard.append(("done", ex.outcome, ex.status, ex.error and ex.error.code, ex.usage, ex.cost_usd))


class Looks(Hears):
    """Reads whole answers, too."""

    def on_answer(self, ex: Exchange, head: ResponseHead, body: bytes) -> bytes:
        """Shorter."""
        self.heard.append(("answer", head.status, body))
        return body[:-1]

    def on_bytes(self, ex: Exchange, data: bytes) -> None:
        """Note them; how they are cut is the network's."""
        if self.heard[-1][0] != "bytes":
            self.heard.append(("bytes", b""))
        self.heard[-1] = ("bytes", self.heard[-1][1] + _IDS.sub(b"#", data))


def outcome(kind: type[Hears], edits: bool, request: bytes, answer: bytes, cut: int, *, checked: bool) -> Any:
    """All that can be seen of an exchange whose first provider answers so, in two pieces where `cut` says so."""
    link = kind(edits=edits)
    relay = Relay(providers=2, filters=[link], retry=EVERY_FAILURE, price=own_price({"input": 1, "output": 2}),
                  has_credential=True)  # fmt: skip
    alone: list[Any] = []
    relay.engine.leave_alone = lambda *of: alone.append(of)
    relay.clusters[0].checked = checked
    downstream = FakeDownstream(request)
    exchange = relay.ask(request, downstream)
    call = relay.providers[0].last
    call.sent()
    for piece in (answer[:cut], answer[cut:]) if cut else (answer,):
        call.feed(piece)
    relay.clock.advance(3)
    for other in relay.calls[1:]:
        other.sent()
        for at in range(0, len(GOOD), 50):
            other.feed(GOOD[at : at + 50])
    relay.clock.advance(700)
    assert relay.at_rest()
    row = exchange.row
    decision = render(_facts(relay.engine.decisions._latest[-1]))
    told = [(n, one["status"], one["error"], one["cancelled"]) for n, one in enumerate(decision["attempts"])]
    counts = [(one.rq_success, one.rq_error, one.rq_timeout, one.rq_total, one.rq_active) for one in relay.clusters]
    headers = [(name, _IDS.sub(b"#", value)) for name, value in downstream.headers or ()]
    used = row.prompt_tokens, row.completion_tokens, row.usage_source, row.cost_usd, row.bytes_out
    issued = [line for line in relay.lines.written if b'"Issued"' in line]
    return (
        (downstream.status, headers, _IDS.sub(b"#", downstream.received), downstream.ended),
        (row.status, row.outcome, row.error_code, row.attempts, row.upstream_request_id, used),
        link.heard, told, counts, alone, len(issued),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [Hears, Looks])
@settings(max_examples=200)
@given(
    edits=st.booleans(),
    request=st.sampled_from(REQUESTS),
    status=st.sampled_from([*[200] * 20, 201, 204, 304, 307, 400, 401, 404, 429, 500, 503]),
    type_=st.sampled_from(KINDS),
    fields=st.lists(st.sampled_from(FIELDS), max_size=2),
    body=st.sampled_from(BODIES),
    checked=st.booleans(),
    data=st.data(),
)
def test_whatever_is_answered_at_once_comes_to_what_it_does_in_two_pieces(
    kind: type[Hears], edits: bool, request: bytes, status: int, type_: str | None, fields: list[tuple[str, str]],
    body: bytes, checked: bool, data: st.DataObject,
) -> None:  # fmt: skip
    answer = response(status, body, [*([("content-type", type_)] if type_ else []), *fields])
    cut = data.draw(st.integers(1, len(answer) - 1))
    whole, apart = (outcome(kind, edits, request, answer, at, checked=checked) for at in (0, cut))
    assert whole == apart
