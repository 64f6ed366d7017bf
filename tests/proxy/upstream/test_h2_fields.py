"""HPACK: our decoder takes what `hpack` takes and refuses what it refuses; our encoder is understood by it."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headgate.proxy.errors import GatewayError
from headgate.proxy.upstream.call import UpstreamRequest
from headgate.proxy.upstream.h2_fields import MAX_LIST, FieldDecoder, FieldsError
from headgate.proxy.upstream.h2_request import CONNECTION_SPECIFIC, NO_TABLE, encode_block, encode_common
from headgate.proxy.upstream.negotiate import Destination

NAMES = st.sampled_from([b":status", b"content-type", b"date", b"x-a", b"x-request-id", b"set-cookie"])
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"200", b"application/json", b"y" * 300, b""]))
FIELD = st.tuples(NAMES, VALUES)
LISTS = st.lists(st.lists(FIELD, max_size=12), max_size=12)


@settings(max_examples=100, deadline=None)
@given(lists=LISTS, huffman=st.booleans(), sizes=st.lists(st.sampled_from([0, 60, 200, 4096, None]), max_size=12))
def test_what_hpack_encodes_is_read_as_it_was(lists: list[Any], huffman: bool, sizes: list[int | None]) -> None:
    encoder, decoder = Encoder(), FieldDecoder()
    for number, fields in enumerate(lists):
        size = sizes[number] if number < len(sizes) else None
        if size is not None:
            encoder.header_table_size = size
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields


PIECES = st.one_of(
    st.binary(max_size=30),
    st.integers(0x80, 0xFF).map(lambda byte: bytes((byte,))),
    st.sampled_from(
        [
            b"\x40\x01a\x01b",
            b"\x00\x01a\x01b",
            b"\x10\x01a\x01b",
            b"\x5f\x03abc",
            b"\x7f\x00\x01x",
            b"\x3f\x00",
            b"\x3f\xe1\x1f",
            b"\x20",
            b"\x0f\x2f\x02xx",
            b"\x40\x82\x1c\x64\x82\x1c\x64",
        ]
    ),
)


@settings(max_examples=500, deadline=None)
@given(blocks=st.lists(st.lists(PIECES, max_size=6).map(b"".join), min_size=1, max_size=5))
@example(blocks=[b"\x40\x01a\x7f\xff\xff\xff\xff\xff"])
@example(blocks=[b"\x40\x01a\x03b"])
@example(blocks=[b"\xbe", b"\x40\x01a\x01b\xbe"])
def test_any_bytes_are_taken_or_refused_as_hpack_does(blocks: list[bytes]) -> None:
    ours, theirs = FieldDecoder(), Decoder(max_header_list_size=MAX_LIST)
    for block in blocks:
        try:
            expected: Any = [tuple(field) for field in theirs.decode(block, raw=True)]
        except HPACKError:
            with pytest.raises(FieldsError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


def test_a_list_above_the_bound_is_refused_as_soon_as_it_is_one() -> None:
    decoder = FieldDecoder()
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000
    assert len(decoder.decode(entry + b"\xbe" * 14)) == 15
    with pytest.raises(FieldsError):
        decoder.decode(b"\xbe" * 100)


def test_values_that_come_again_are_remembered_only_so_many() -> None:
    encoder, decoder = Encoder(), FieldDecoder()
    for number in range(10_000):
        fields = [(b"date", b"%d" % number)]
        assert decoder.decode(encoder.encode(fields)) == fields


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.!#$%&'*+^`|~", min_size=1, max_size=30).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(
    fields=st.lists(st.tuples(TOKEN, st.binary(max_size=700)), max_size=10),
    target=st.binary(max_size=300),
    method=st.sampled_from([b"GET", b"POST", b"HEAD", b"PATCH", b"DELETE"]),
    body=st.binary(max_size=5),
)
def test_a_request_is_read_as_it_was_or_refused(
    fields: list[tuple[bytes, bytes]], target: bytes, method: bytes, body: bytes
) -> None:
    to = Destination(b"https", b"up.example:8443", b"/v1", ((b"authorization", b"Bearer k"),))
    request = UpstreamRequest(method, b"/" + target, fields, body)
    text = b"".join([value for _, value in fields])
    try:
        block = encode_block(request, encode_common(to))
    except GatewayError:
        assert any(bad in text + target for bad in (b"\r", b"\n", b"\0")) or b" " in target
        return
    decoder = Decoder()
    decoded = [tuple(field) for field in decoder.decode(NO_TABLE + block, raw=True)]
    length = [(b"content-length", b"%d" % len(body))] if body or method in (b"POST", b"PATCH") else []
    assert decoded == [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", b"up.example:8443"),
        (b":path", b"/v1/" + target),
        (b"authorization", b"Bearer k"),
        *[(name, value) for name, value in fields if name not in CONNECTION_SPECIFIC],
        *length,
    ]
    assert not decoder.header_table.dynamic_entries
    for _, value in decoded:
        assert not {b"\r", b"\n", b"\0"} & {bytes((byte,)) for byte in value}


@settings(max_examples=1000, deadline=None)
@given(name=st.binary(min_size=1, max_size=6), value=st.binary(max_size=6))
def test_no_field_of_any_bytes_leaves_with_a_line_break_or_nul(name: bytes, value: bytes) -> None:
    to = Destination(b"http", b"up", b"")
    try:
        block = encode_block(UpstreamRequest(b"GET", b"/", [(name, value)], b""), encode_common(to))
    except GatewayError:
        return
    for one in Decoder().decode(NO_TABLE + block, raw=True):
        for part in one:
            assert not set(part) & set(b"\r\n\0")
        assert one[0] == one[0].lower()
