"""headers: unknown fields cross, hop-by-hop, credentials and our own never do; waits are read in every spelling."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy import headers as module
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.headers import LEAVE_ME, client_request_id, retry_after, to_downstream, to_upstream
from headgate.proxy.upstream.call import ResponseHead

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def head(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("POST", "/v1/chat/completions", list(fields))


def names_up(*fields: tuple[bytes, bytes], own: frozenset[bytes] = frozenset()) -> list[bytes]:
    added = [b"content-type", b"accept-encoding", b"x-request-id"]
    names = [name for name, _ in to_upstream(head(*fields), b"id", own)]
    assert names[-3:] == added
    return names[:-3]


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"connection",
            b"keep-alive",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
            b"content-length",
            b"host",
        ),
        *(b"expect", b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie", b"proxy-authorization"),
        *(b"x-headgate-tags", b"x-forwarded-for", b"forwarded", b"via", b"origin", b"referer", b"sec-websocket-key"),
        *(b"content-type", b"accept-encoding", b"content-encoding", b"x-request-id"),
    ],
)
def test_it_never_goes_up(name: bytes) -> None:
    assert names_up((name, b"x"), (b"x-any", b"y")) == [b"x-any"]


@pytest.mark.parametrize("name", [b"user-agent", b"x-stainless-lang", b"openai-organization", b"traceparent", b"x-new"])
def test_it_goes_up(name: bytes) -> None:
    assert names_up((name, b"x")) == [name]


def test_our_additions_say_json_identity_and_the_id() -> None:
    fields = to_upstream(head((b"content-type", b"text/plain"), (b"x-request-id", b"theirs")), b"id", frozenset())
    assert fields == [
        (b"content-type", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"x-request-id", b"id"),
    ]


def test_a_configured_key_field_stays_here() -> None:
    assert names_up((b"x-our-key", b"k"), (b"x-any", b"y"), own=frozenset([b"x-our-key"])) == [b"x-any"]


@pytest.mark.parametrize("value", [b"keep-alive", b"close", b"Keep-Alive"])
def test_a_plain_connection_field_names_nothing(value: bytes) -> None:
    assert names_up((b"connection", value), (b"close", b"x")) == [b"close"]


def test_fields_that_connection_names_stay_here_both_ways() -> None:
    fields = [
        (b"connection", b"close, X-One"),
        (b"connection", b" x-two"),
        (b"x-one", b""),
        (b"x-two", b""),
        (b"x", b""),
    ]
    assert names_up(*fields) == [b"x"]
    assert to_downstream(ResponseHead(200, fields)) == [(b"x", b"")]


@pytest.mark.parametrize(
    "name", [b"set-cookie", b"server", b"alt-svc", b"x-headgate-cost-usd", b"content-length", LEAVE_ME]
)
def test_it_never_comes_down(name: bytes) -> None:
    assert to_downstream(ResponseHead(200, [(name, b"x"), (b"retry-after", b"1")])) == [(b"retry-after", b"1")]


def test_repeated_fields_stay_repeated_and_in_order() -> None:
    fields = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")]
    assert to_downstream(ResponseHead(200, fields)) == fields


def test_verdicts_on_names_from_outside_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = module._Verdicts(frozenset([b"no"]), (b"x-",))
    monkeypatch.setattr(module, "_REMEMBERED", 5)
    for number in range(50):
        assert verdicts[b"name-%d" % number]
    assert not verdicts[b"no"]
    assert not verdicts[b"x-any"]
    assert len(verdicts) == 5


@pytest.mark.parametrize("value", [b"a", b"req_1-2.3:4/5", b"x" * 128, b"~!"])
def test_a_fit_request_id_is_taken(value: bytes) -> None:
    assert client_request_id(head((b"x-request-id", value))) == value


@pytest.mark.parametrize("value", [b"", b"a b", b"x" * 129, b"a\x7f", b"\xc3\xa9", b"a\n", b"a\t"])
def test_an_unfit_request_id_is_not(value: bytes) -> None:
    assert client_request_id(head((b"x-request-id", value))) is None


def test_no_request_id_is_none() -> None:
    assert client_request_id(head()) is None


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([(b"retry-after", b"7")], 7),
        ([(b"retry-after", b" 1.5 ")], 1.5),
        ([(b"retry-after", b"-3")], 0),
        ([(b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"9"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"9"), (b"retry-after-ms", b"soon")], 9),
        ([(b"retry-after", b"Tue, 14 Nov 2023 22:13:50 GMT")], 30),
        ([(b"retry-after", b"Tue, 14 Nov 2023 22:13:50 -0000")], 30),
        ([(b"retry-after", b"Tue, 14 Nov 2023 23:13:50 +0100")], 30),
        ([(b"retry-after", b"Tue, 14 Nov 2023 22:13:00 GMT")], 0),
        ([(b"retry-after", b"Tue, 14 Nov 99999 22:13:00 GMT")], None),
        ([(b"retry-after", b"inf")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"9" * 400)], None),
        ([(b"retry-after-ms", b"inf"), (b"retry-after", b"2")], 2),
        ([(b"retry-after", b"")], None),
        ([(b"retry-after", b"\xb2")], None),
        ([(b"retry-after", b"in a while")], None),
        ([], None),
    ],
)
def test_a_wait_is_read_in_every_spelling(fields: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert retry_after(fields, NOW) == seconds


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_wait_is_a_number_of_seconds_or_none(ms: bytes, seconds: bytes) -> None:
    wait = retry_after([(b"retry-after-ms", ms), (b"retry-after", seconds)], NOW)
    assert wait is None or 0 <= wait < float("inf")


def test_long_names_of_fields_are_not_remembered() -> None:
    tracemalloc.start()
    try:
        for n in range(512):
            field = (b"%05d-" % n + b"n" * 8192, b"x")
            assert to_downstream(ResponseHead(200, [field])) == [field]
        assert tracemalloc.get_traced_memory()[0] < 64 * 1024
    finally:
        tracemalloc.stop()
