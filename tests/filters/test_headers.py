"""headers: rules change the fields they name, in one direction, and nothing that the gateway needs for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from headgate.config import ConfigError, HeadersConfig, dump, parse_config
from headgate.config.headers import MOST_RULES, is_kept
from headgate.filters.headers import Headers
from headgate.proxy import headers as gateway_rules
from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.edge.head_reader import HeadReader
from headgate.proxy.headers import lines_upstream, to_upstream
from headgate.proxy.upstream.call import ResponseHead
from tests_support.answers import chat_chunks, chat_completion, error_response, json_response, sse
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, config_for, gateway_over, running_gateway
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headgate.proxy.edge.request_head import HttpRequestHead
    from headgate.proxy.exchange import Exchange

Fields = list[tuple[bytes, bytes]]
WHOLE = json_response(chat_completion(), headers=[("openai-version", "1"), ("x-region", "eu"), ("x-old", "o")])


def settings(rules: dict[str, Any], env: dict[str, str] | None = None) -> HeadersConfig:
    config = parse_config(f"filters: [{{headers: {rules}}}]", env=env or {}).filters[0].config
    assert isinstance(config, HeadersConfig)
    return config


def up(rules: dict[str, Any], fields: Fields) -> Fields:
    """What is left of a request's fields."""
    head = RequestHead("POST", "/v1/chat/completions", list(fields))
    Headers(settings({"request": rules})).on_request(cast("Exchange", SimpleNamespace(head=head)))
    return head.headers


def down(rules: dict[str, Any], fields: Fields) -> Fields:
    head = ResponseHead(200, list(fields))
    Headers(settings({"response": rules})).on_response(cast("Exchange", SimpleNamespace()), head)
    return head.headers


def refused(text: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, env=env or {})
    return str(caught.value)


def test_it_needs_no_body_and_stands_behind_auth() -> None:
    assert (Headers.reads_body, Headers.after) == (False, ("auth",))


def test_without_rules_nothing_is_touched() -> None:
    fields = [(b"x-a", b"1"), (b"connection", b"x-a")]
    made = Headers(HeadersConfig())
    head = RequestHead("POST", "/", fields)
    made.on_request(cast("Exchange", SimpleNamespace(head=head)))
    assert head.headers is fields
    assert down({}, fields) == fields


def test_deny_takes_names_and_beginnings_and_counts() -> None:
    made = Headers(settings({"request": {"deny": ["X-A", "x-s-*"]}}))
    head = RequestHead("POST", "/", [(b"x-a", b"1"), (b"x-s-b", b"2"), (b"x-s", b"3"), (b"x-ab", b"4")])
    made.on_request(cast("Exchange", SimpleNamespace(head=head)))
    assert head.headers == [(b"x-s", b"3"), (b"x-ab", b"4")]
    assert (made.request_dropped, made.response_dropped) == (2, 0)


def test_what_comes_under_a_name_that_is_set_may_go_on_under_another() -> None:
    rules = {"rename": {"x-a": "x-b"}, "set": {"x-a": "ours"}}
    fields = [(b"x-a", b"theirs"), (b"x-b", b"dropped"), (b"x-c", b"3")]
    expected = [(b"x-b", b"theirs"), (b"x-c", b"3"), (b"x-a", b"ours")]
    assert up(rules, fields) == down(rules, fields) == expected


HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-N: 1\r\n%s%%d\r\nX-A: 1\r\nX-Stainless-OS: Linux\r\n"
    "Content-Length: %%d\r\n\r\n"
)
WITH_KEY, TRACED = HEAD % "Authorization: Bearer hg-", HEAD % "Traceparent: 00-"
"""Of one client, its n-th."""
EVERY_RULES: list[dict[str, Any]] = [
    {"deny": ["x-stainless-*"], "set": {"x-team": "search"}},
    {"deny": ["traceparent"]},
    {"rename": {"traceparent": "x-trace", "x-a": "x-b"}, "set": {"x-a": "ours"}},
    {"forward": ["x-a"]},
]


def heads_on_a_connection(text: str, count: int) -> Iterator[HttpRequestHead]:
    """From the third on they are held against the one before."""
    reader = HeadReader()
    for n in range(count):
        found = reader.read((text % (n, n)).encode(), EdgeLimits(), "")
        assert found is not None
        yield found[0]


@pytest.mark.parametrize("text", [WITH_KEY, TRACED])
@pytest.mark.parametrize("rules", EVERY_RULES)
def test_a_head_that_comes_again_is_changed_like_the_first(rules: dict[str, Any], text: str) -> None:
    again, alone, after = (
        Headers(settings({"request": rules})),
        Headers(settings({"request": rules})),
        Headers(settings({"request": {"set": {"x-last": "1"}}})),
    )
    for n, head in enumerate(heads_on_a_connection(text, 6)):
        was_known = head.known is not None
        plain = RequestHead(head.method, head.path, list(head.headers))
        if n == 4:  # as if another filter had added it
            head.headers.append((b"x-more", b"2"))
            plain.headers.append((b"x-more", b"2"))
        for link in (again, after):
            link.on_request(cast("Exchange", SimpleNamespace(head=head)))
        for link in (alone, after):
            link.on_request(cast("Exchange", SimpleNamespace(head=plain)))
        assert head.headers == plain.headers
        assert again.request_dropped == alone.request_dropped
        assert was_known is (n > 1)
        assert lines_upstream(head, b"hg_1", frozenset())[0] == to_upstream(plain, b"hg_1", frozenset())
        if was_known and n != 4:
            assert head.known is not None
            assert head.headers == head.came
            assert head.headers is not head.came
            assert not any(b"hg-" in value for _, value in head.known._fields)  # type: ignore[attr-defined]


def test_other_rules_of_a_reload_change_the_heads_of_an_open_connection() -> None:
    before, later = Headers(settings({"request": {"deny": ["x-a"]}})), Headers(settings({"request": {"deny": ["x-n"]}}))
    names: list[set[bytes]] = []
    for n, head in enumerate(heads_on_a_connection(TRACED, 6)):
        (before if n < 4 else later).on_request(cast("Exchange", SimpleNamespace(head=head)))
        names.append({name for name, _ in head.headers} & {b"x-a", b"x-n"})
    assert names == [{b"x-n"}] * 4 + [{b"x-a"}] * 2


def test_forward_lets_nothing_else_pass_but_what_is_set() -> None:
    fields = [(b"x-a", b"1"), (b"x-b", b"2"), (b"content-type", b"application/json")]
    assert up({"forward": ["x-a"], "set": {"x-c": "3"}}, fields) == [fields[0], fields[2], (b"x-c", b"3")]
    assert down({"forward": ["*"], "deny": ["x-b"]}, fields) == [fields[0], fields[2]]


def test_a_renamed_field_replaces_what_came_under_the_new_name() -> None:
    fields = [(b"x-tenant", b"forged"), (b"x-customer", b"a"), (b"x-customer", b"b")]
    assert up({"rename": {"X-Customer": "X-Tenant"}}, fields) == [(b"x-tenant", b"a"), (b"x-tenant", b"b")]
    assert up({"rename": {"x-customer": "x-tenant"}}, fields[:1]) == []


def test_a_set_field_replaces_every_one_of_its_name() -> None:
    assert up({"set": {"x-team": "a b"}}, [(b"x-team", b"1"), (b"x-team", b"2")]) == [(b"x-team", b"a b")]


@pytest.mark.parametrize("connection", [b"x-team", b"keep-alive, X-Team, x-other"])
def test_a_client_cannot_strip_what_is_set_by_naming_it_in_connection(connection: bytes) -> None:
    fields = [(b"connection", connection), (b"x-team", b"forged"), (b"content-type", b"a/b")]
    left = up({"set": {"x-team": "search"}}, fields)
    assert left == [(b"content-type", b"a/b"), (b"x-team", b"search")]
    sent = gateway_rules.to_upstream(RequestHead("POST", "/", left), b"id", frozenset())
    assert (b"x-team", b"search") in sent


@given(st.lists(st.tuples(st.sampled_from(sorted(gateway_rules.NEVER_UP)), st.binary(max_size=8))))
def test_a_rule_with_a_star_leaves_the_gateways_own_fields_alone(fields: Fields) -> None:
    own = [*fields, (b"x-headgate-provider", b"up"), (b"sec-websocket-key", b"k")]
    own = [field for field in own if field[0] != b"connection"]
    assert up({"deny": ["*"]}, own) == own


def test_every_field_that_never_goes_up_is_refused_by_name() -> None:
    for name in gateway_rules.NEVER_UP:
        assert is_kept(name.decode(), "request")
    for name in gateway_rules._HOP | {b"set-cookie", b"content-type", b"content-encoding", b"x-request-id"}:
        assert is_kept(name.decode(), "response")
    for prefix in ("x-headgate-", "x-forwarded-", "proxy-", "sec-websocket-"):
        assert is_kept(prefix + "a", "request")


@given(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True))
def test_what_may_be_set_goes_up(name: str) -> None:
    if not is_kept(name, "request"):
        sent = gateway_rules.to_upstream(RequestHead("POST", "/", up({"set": {name: "v"}}, [])), b"id", frozenset())
        assert (name.encode(), b"v") in sent


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("{request: {deny: [Host]}}", "request: 'host' is not this filter's to change"),
        ("{request: {set: {authorization: x}}}", "'authorization' is not this filter's"),
        ("{request: {set: {transfer-encoding: chunked}}}", "'transfer-encoding' is not this filter's"),
        ("{request: {rename: {x-a: content-length}}}", "'content-length' is not this filter's"),
        ("{request: {rename: {cookie: x-a}}}", "'cookie' is not this filter's"),
        ("{response: {set: {X-Headgate-Cost: 1}}}", "'x-headgate-cost' is not this filter's"),
        ("{response: {deny: [x-headgate-*]}}", "'x-headgate-*' is not this filter's"),
        ("{response: {set: {set-cookie: a}}}", "'set-cookie' is not this filter's"),
        ("{request: {deny: ['x y']}}", "deny[0]: must be the name of a header"),
        ("{request: {deny: ['*-x']}}", "deny[0]: must be the name of a header"),
        ("{request: {set: {'x:a': b}}}", "must be the name of a header"),
        ('{request: {set: {x-a: "a\\r\\nx-b: c"}}}', "printable ASCII"),
        ('{request: {set: {x-a: "a\\tb"}}}', "printable ASCII"),
        ("{request: {set: {x-a: 'é'}}}", "printable ASCII"),
        ("{request: {set: {x-a: ' a'}}}", "printable ASCII"),
        ("{request: {set: {x-a: ''}}}", "printable ASCII"),
        ("{request: {set: {x-a: '${EMPTY}'}}}", "printable ASCII"),
        ("{request: {set: {A: 1, a: 2}}}", "names a header twice"),
        ("{request: {rename: {a: b}, set: {b: 1}}}", "'b' is made twice"),
        ("{request: {rename: {a: b, b: c}}}", "'b' is an old name and a new one"),
        ("{request: {forwards: [a]}}", "did you mean 'forward'"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_kept_is_refused_at_load(rules: str, said: str) -> None:
    assert said in refused(f"filters: [{{headers: {rules}}}]", {"EMPTY": ""})


def test_what_an_expansion_brings_in_is_checked_too() -> None:
    said = refused("filters: [{headers: {request: {set: {x-a: '${BAD}'}}}}]", {"BAD": "a\r\nx-b: secret"})
    assert "printable ASCII" in said
    assert "secret" not in said


def test_the_header_of_auth_is_not_to_be_set() -> None:
    auth = f"{{auth: {{header: X-My-Key, keys: [{{name: a, key: {CLIENT_KEY}}}]}}}}"
    for rules in ("{set: {x-my-key: a}}", "{rename: {x-a: X-My-Key}}"):
        said = refused(f"filters: [{auth}, {{headers: {{request: {rules}}}}}]")
        assert "'X-My-Key' carries the caller's key" in said


def test_rules_are_bounded() -> None:
    said = refused(f"filters: [{{headers: {{request: {{deny: {[f'x-{n}' for n in range(MOST_RULES + 1)]}}}}}}}]")
    assert f"at most {MOST_RULES} rules" in said


def test_expanded_values_and_those_of_telling_names_are_never_shown() -> None:
    rules = {"request": {"set": {"x-team": "${T}", "x-relay-token": "literal-secret", "x-plain": "seen"}}}
    config = settings(rules, {"T": "expanded secret"})
    shown = str(dump(config)) + repr(config)
    assert "secret" not in shown
    assert "seen" in shown
    assert config != settings(rules, {"T": "another secret"})


def test_heads_that_pass_whole_are_known_by_their_names_and_others_are_gone_through() -> None:
    link = Headers(settings({"response": {"deny": ["x-old"], "rename": {"x-a": "x-b"}, "set": {"x-new": "1"}}}))

    def after(*fields: tuple[bytes, bytes]) -> Fields:
        head = ResponseHead(200, list(fields))
        link.on_response(cast("Exchange", SimpleNamespace()), head)
        return head.headers

    plain, old, renamed = (b"x-plain", b"p"), (b"x-old", b"o"), (b"x-a", b"a")
    for _ in range(2):
        assert after(plain) == [plain, (b"x-new", b"1")]
        assert after((b"x-plain", b"q")) == [(b"x-plain", b"q"), (b"x-new", b"1")]
        assert after(plain, old) == [plain, (b"x-new", b"1")]
        assert after(renamed) == [(b"x-b", b"a"), (b"x-new", b"1")]
    assert link.response_dropped == 2
    assert link._whole == {(b"x-plain",)}


def test_no_more_heads_are_known_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.filters.headers._HEADS", 2)
    link = Headers(settings({"response": {"deny": ["x-old"]}}))
    for number in range(4):
        field = (b"x-%d" % number, b"")
        head = ResponseHead(200, [field])
        link.on_response(cast("Exchange", SimpleNamespace()), head)
        assert head.headers == [field]
    assert len(link._whole) == 2


async def test_both_directions_over_sockets_and_the_names_are_counted() -> None:
    rules = {
        "request": {"deny": ["x-stainless-*", "user-agent"], "rename": {"x-customer": "x-tenant"}, "set": {"x-t": "s"}},
        "response": {"deny": ["openai-*"], "rename": {"x-old": "x-new"}, "set": {"server": "hi there"}},
    }
    async with FakeUpstream(WHOLE) as provider:
        config = config_for(provider)
        config["filters"].append({"headers": rules})
        async with (
            running_gateway(config) as gateway,
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            answer = await client.chat.completions.with_raw_response.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], extra_headers={"x-customer": "c1"}
            )
            [made] = [one for one in gateway.half.engine.graph.default.chain.filters if isinstance(one, Headers)]
    assert answer.parse().choices[0].message.content == "Hello there."
    sent = dict(provider.requests[0].headers)
    assert (sent["x-tenant"], sent["x-t"], sent["authorization"]) == ("c1", "s", f"Bearer {PROVIDER_KEY}")
    assert not [name for name in sent if name.startswith("x-stainless-") or name in ("user-agent", "x-customer")]
    got = answer.headers
    assert (got["x-new"], got["server"], got["x-region"]) == ("o", "hi there", "eu")
    assert "openai-version" not in got
    assert "x-headgate-request-id" in got
    assert made.request_dropped > 3
    assert made.response_dropped == 1


async def test_a_stream_and_an_error_of_ours_pass_the_rules_as_well() -> None:
    changes = {"filters": [{"headers": {"response": {"set": {"x-set": "1"}}}}]}
    async with gateway_over(sse(chat_chunks()), auth=False, changes=changes) as (gateway, _):
        body = b'{"model":"m","stream":true,"messages":[]}'
        stream, bad = await gateway.post(body, key=None), await gateway.post(b"{", key=None)
    assert (stream.status, stream.header("x-set")) == (200, "1")
    assert (bad.status, bad.header("x-set")) == (400, "1")


async def test_every_attempt_sends_the_same() -> None:
    rules = {"request": {"rename": {"x-a": "x-b"}, "set": {"x-c": "1"}}}
    async with FakeUpstream(error_response(500, "no")) as first, FakeUpstream(WHOLE) as second:
        config = config_for(first, second)
        config["filters"].append({"headers": rules})
        async with running_gateway(config) as gateway:
            answer = await gateway.post(headers=[("x-a", "v"), ("connection", "x-c")])
    assert answer.status == 200
    for provider in (first, second):
        sent = provider.requests[0].headers
        assert [field for field in sent if field[0] in ("x-a", "x-b", "x-c")] == [("x-b", "v"), ("x-c", "1")]


async def test_a_route_may_switch_it_off() -> None:
    changes = {
        "filters": [{"headers": {"request": {"set": {"x-set": "1"}}}}],
        "routes": [{"name": "bare", "match": {"model": "bare"}, "filters": {"headers": "off"}}],
    }
    async with gateway_over(WHOLE, auth=False, changes=changes) as (gateway, provider):
        for model in (b"any", b"bare"):
            await gateway.post(b'{"model":"%b","messages":[]}' % model, key=None)
    assert [request.header("x-set") for request in provider.requests] == ["1", None]
