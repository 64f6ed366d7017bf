"""heard: two recordings of the same requests are equal, or each difference is named; promised rewrites are counted."""

from __future__ import annotations

import re

import pytest

from tests_support.heard import Heard, compare

KEY = "Bearer ours"
NOBODY = re.compile("GET /v1/models")
JSON = ("content-type", "application/json")
SENT = Heard("POST", "/v1/x?a=1", (("host", "here"), ("authorization", "Bearer theirs"), ("x-a", "1"), JSON), b"{}")
ARRIVED = SENT._replace(fields=(("host", "there"), ("authorization", KEY), ("x-a", "1"), JSON))
STREAM = SENT._replace(target="/v1/chat/completions", body=b'{"model":"m","stream":true}')
ASKED = b'{"model":"m","stream_options":{"include_usage":true},"stream":true}'


def differences(sent: Heard, got: Heard | None) -> list[str]:
    through = {} if got is None else {"t#0": got}
    return compare({"t#0": sent}, through, answered_here=NOBODY, credential=KEY).differences


def test_host_credential_and_connection_may_differ() -> None:
    got = ARRIVED._replace(fields=(*ARRIVED.fields, ("connection", "keep-alive"), ("transfer-encoding", "chunked")))
    compared = compare({"t#0": SENT}, {"t#0": got}, answered_here=NOBODY, credential=KEY)
    assert (compared.equal, compared.differences, dict(compared.rewrites)) == (1, [], {})


@pytest.mark.parametrize(
    "got",
    [
        None,
        ARRIVED._replace(method="PUT"),
        ARRIVED._replace(target="/v1/x?a=%31"),
        ARRIVED._replace(body=b"{ }"),
        ARRIVED._replace(fields=ARRIVED.fields[:-1]),
        ARRIVED._replace(fields=(*ARRIVED.fields, ("x-b", "2"))),
        ARRIVED._replace(fields=(*ARRIVED.fields, ("x-a", "1"))),
        ARRIVED._replace(fields=(*ARRIVED.fields, ("authorization", "Bearer theirs"))),
        ARRIVED._replace(fields=SENT.fields),
    ],
    ids=["lost", "method", "target", "body", "field lost", "field added", "field twice", "both keys", "client's key"],
)
def test_everything_else_is_a_difference(got: Heard | None) -> None:
    assert len(differences(SENT, got)) == 1


def test_what_only_the_gateway_sent_is_a_difference() -> None:
    assert len(compare({}, {"t#0": ARRIVED}, answered_here=NOBODY, credential=KEY).differences) == 1


def test_what_the_gateway_answers_need_not_arrive() -> None:
    asked = SENT._replace(method="GET", target="/v1/models")
    compared = compare({"t#0": asked}, {}, answered_here=NOBODY, credential=KEY)
    assert (compared.equal, compared.answered, compared.differences) == (0, 1, [])


def test_documented_rewrites_are_counted() -> None:
    got = ARRIVED._replace(fields=(*ARRIVED.fields, ("x-request-id", "r"), ("accept-encoding", "identity")))
    compared = compare({"t#0": SENT}, {"t#0": got}, answered_here=NOBODY, credential=KEY)
    assert (compared.equal, sum(compared.rewrites.values()), compared.differences) == (1, 2, [])


def test_a_stream_may_be_asked_for_its_usage_and_for_nothing_else() -> None:
    got = ARRIVED._replace(target=STREAM.target, body=ASKED)
    assert differences(STREAM, got) == []
    assert len(differences(STREAM, got._replace(body=ASKED.replace(b'"m"', b'"n"')))) == 1
    assert len(differences(STREAM._replace(target="/v1/x"), got._replace(target="/v1/x"))) == 1
