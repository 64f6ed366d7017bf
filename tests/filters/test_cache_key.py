"""cache_key: equal keys only for equal requests of one tenant, however they are spelt."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.filters.cache_key import CANONICAL_BYTES, canonical, digest, fields, tenant, wishes
from headgate.proxy.exchange import ANONYMOUS, Principal

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
BODIES = st.dictionaries(st.text(), VALUES, max_size=5)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: True is not 1, and 1 is not 1.0; the sign of a zero that is written with a point counts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else bool(one == other)


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(one) for name, one in reversed(value.items())}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


@given(body=BODIES)
def test_order_and_white_space_and_escapes_make_no_difference(body: dict[str, Any]) -> None:
    plain = json.dumps(body, separators=(",", ":")).encode()
    other = json.dumps(shuffled(body), indent=3, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if b"\xed" not in other or other.decode("utf-8", "replace").find("\ufffd") < 0:
        assert canonical(plain) == canonical(other)


@given(one=BODIES, other=BODIES)
@settings(max_examples=150)
def test_two_bodies_are_one_only_where_their_values_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    keys = [canonical(json.dumps(body).encode()) for body in (one, other)]
    assert (keys[0] == keys[1]) == same(one, other)


@given(body=BODIES, data=st.data())
@settings(max_examples=150)
def test_one_changed_value_is_another_request(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.text())
    changed = {**body, name: data.draw(VALUES)}
    equal = name in body and same(body[name], changed[name])
    assert (canonical(json.dumps(body).encode()) == canonical(json.dumps(changed).encode())) == equal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"n":1}', b'{"n":1.0}'),
        (b'{"n":1}', b'{"n":true}'),
        (b'{"n":1}', b'{"n":"1"}'),
        (b'{"n":12345678901234567890123}', b'{"n":12345678901234567890124}'),
        (b'{"n":0.1}', b'{"n":0.1000000000000000055511151231257827}'),
        (b'{"n":1e400}', b'{"n":1e401}'),
        (b'{"n":1e-400}', b'{"n":0.0}'),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b'{"a":1,"a":2}', b'{"a":1}'),
        (b'{"m":[{"role":"user","role":"system"}]}', b'{"m":[{"role":"system"}]}'),
        (b'{"a":null}', b"{}"),
        (b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}'),
        (b"[1]", b'value:[1]'),
    ],
)  # fmt: skip
def test_what_some_reader_takes_for_another_request_is_another(one: bytes, other: bytes) -> None:
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize("one", [b'{"n":1.5}', b'{"n":1.50}', b'{"n":15e-1}', b' {"n" : 0.15E+1}\r\n'])
def test_a_number_counts_by_its_value(one: bytes) -> None:
    assert canonical(one) == canonical(b'{"n":1.5}')


def test_a_large_body_counts_by_its_bytes() -> None:
    body = b'{"text":"%b"}' % (b"x" * CANONICAL_BYTES)
    assert canonical(body) == b"bytes:" + body


@given(parts=st.lists(st.binary(max_size=5), max_size=5), others=st.lists(st.binary(max_size=5), max_size=5))
@settings(max_examples=150)
def test_parts_do_not_run_into_each_other(parts: list[bytes], others: list[bytes]) -> None:
    assert (digest(parts) == digest(others)) == (parts == others)


def test_a_team_shares_else_an_owner_else_nobody() -> None:
    assert tenant(Principal("a", team="x", owner="o")) == tenant(Principal("b", team="x"))
    assert tenant(Principal("a", owner="o")) == tenant(Principal("b", owner="o"))
    assert tenant(Principal("a")) != tenant(Principal("b"))
    assert tenant(ANONYMOUS) == tenant(ANONYMOUS)


def test_one_name_as_team_and_as_owner_and_as_key_is_three_tenants() -> None:
    assert len({tenant(Principal("x")), tenant(Principal("a", owner="x")), tenant(Principal("a", team="x"))}) == 3


def test_fields_that_say_who_asks_make_no_difference() -> None:
    plain = [(b"openai-beta", b"assistants=v2")]
    noisy = [
        (b"user-agent", b"x"), (b"x-stainless-retry-count", b"1"), (b"traceparent", b"00-1"), *plain,
        (b"sec-fetch-mode", b"cors"), (b"x-trace-of-ours", b"7"),
    ]  # fmt: skip
    assert fields(plain) == fields(noisy, frozenset((b"x-trace-of-ours",)))
    assert fields(plain) != fields(noisy)


def test_a_field_that_nobody_knows_makes_another_request() -> None:
    assert fields([(b"x-lora", b"a")]) != fields([(b"x-lora", b"b")]) != fields([])
    assert fields([(b"a", b"1"), (b"a", b"2")]) != fields([(b"a", b"2"), (b"a", b"1")])
    assert fields([(b"a", b"1"), (b"b", b"2")]) == fields([(b"b", b"2"), (b"a", b"1")])


def test_what_is_asked_of_the_gateway_counts_where_it_may_change_the_answer() -> None:
    assert wishes([(b"x-headgate-strategy", b"cost")]) != wishes([])
    assert wishes([(b"x-headgate-timeout-ms", b"5"), (b"x-headgate-explain", b"1")]) == wishes([])


def made(rng: Random, depth: int = 3) -> Any:
    """A JSON value of few kinds and names, so that many are equal."""
    kind = rng.randrange(7 if depth else 5)
    if kind < 5:
        return (None, rng.choice((True, False)), rng.randrange(2), float(rng.randrange(2)), rng.choice("01"))[kind]
    if kind == 5:
        return [made(rng, depth - 1) for _ in range(rng.randrange(3))]
    return {rng.choice("ab"): made(rng, depth - 1) for _ in range(rng.randrange(3))}


@pytest.mark.slow
def test_of_fifty_thousand_pairs_only_equal_ones_have_one_key() -> None:
    rng = Random(11)
    equal = 0
    for _ in range(50_000):
        one, other = made(rng), made(rng)
        alike = same(one, other)
        equal += alike
        assert (canonical(json.dumps(one).encode()) == canonical(json.dumps(other, indent=1).encode())) == alike
    assert 1000 < equal < 49_000
