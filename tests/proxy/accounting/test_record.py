"""record: one line of valid JSON, whatever a client or a provider put into it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.record import FIELD_BYTES, OPENED_PREFIX, Done, Opened, decode, encode
from headgate.proxy.accounting.usage import NO_USAGE, Usage

FULL = Done(
    id="01JD",
    at=1763629200.25,
    status=200,
    outcome="ok",
    key="app",
    model="fast",
    provider="openai",
    stream=True,
    prompt_tokens=12,
    completion_tokens=34,
    cached_tokens=5,
    cache_write_tokens=1,
    reasoning_tokens=2,
    audio_input_tokens=3,
    audio_output_tokens=4,
    usage_source="reported",
    service_tier="flex",
    cost_usd=0.000123,
    cost_source="host",
    ttft_ms=12.5,
    worker="w0",
)
HOSTILE = [
    "a\r\nset-cookie: x",
    "nul \x00 nul",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "bell\x07back\x08del\x7f",
    "lone \ud800 and \udfff surrogates",
    "\u2028line\u2029paragraph\x85next",
    '"},{"event":"done","id":"forged"}\n',
    "\\u0000 as text",
    "\ufeffbom \U0001f600 emoji",
    "x" * 100_000,
    "é" * 100_000,
    "😀" * 2000,
    "\ud83d" * 5000,
    "\x00" * 5000,
]


def fields(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_record_is_one_line_that_reads_back() -> None:
    line = encode(FULL)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert decode(line) == FULL
    opened = Opened(id="01JD", at=1.5, worker="w0", key="app", endpoint="chat", model="fast", est_prompt=7)
    assert decode(encode(opened)) == opened


def test_the_spool_can_tell_opened_by_its_first_bytes() -> None:
    assert encode(Opened(id="a", at=1.0)).startswith(OPENED_PREFIX)
    assert encode(Opened(id="a\ud800", at=1.0)).startswith(OPENED_PREFIX)
    assert not encode(Done(id="a", at=1.0)).startswith(OPENED_PREFIX)


def test_what_never_happened_is_absent_and_not_zero() -> None:
    line = encode(Done(id="a", at=1.0, status=404, outcome="refused"))
    assert fields(line) == {"event": "done", "id": "a", "at": 1.0, "status": 404, "outcome": "refused"}
    assert fields(encode(Done(id="a", at=1.0, cost_usd=0.0)))["cost_usd"] == 0.0


def test_the_usage_of_a_row_is_the_usage_that_was_priced() -> None:
    assert FULL.usage() == Usage(12, 34, 5, 1, 2, 3, 4, "reported", "flex")
    assert Done(id="a", at=1.0, prompt_tokens=1, usage_source="estimated").usage() == Usage(1, source="estimated")
    assert Done(id="a", at=1.0).usage() == NO_USAGE


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_inside_its_line(text: str) -> None:
    line = encode(Done(id="a", at=1.0, model=text, error_code=text, key=text))
    assert line.endswith(b"\n")
    decoded = line.decode()
    assert len(decoded.splitlines()) == 1
    assert all(character >= " " and not "\x7f" <= character <= "\x9f" for character in decoded[:-1])
    assert b"\\u0000" not in line.replace(b"\\\\u0000", b"")
    found = fields(line)
    assert found.keys() == {"event", "id", "at", "error_code", "key", "model"}
    assert len(found["model"].encode()) <= FIELD_BYTES
    assert decode(line) == Done(id="a", at=1.0, model=found["model"], error_code=found["key"], key=found["key"])


def test_harmless_text_is_kept_as_it_is() -> None:
    for text in ("modèle-é-日本語", "tab\tand\nnewline", 'quote" back\\slash', "x" * FIELD_BYTES, "\u2028"):
        assert fields(encode(Done(id="a", at=1.0, model=text)))["model"] == text


def test_a_long_field_ends_in_an_ellipsis() -> None:
    assert fields(encode(Done(id="a", at=1.0, model="x" * (FIELD_BYTES + 1))))["model"] == "x" * 2045 + "…"
    assert fields(encode(Done(id="a", at=1.0, model="é" * 2000)))["model"] == "é" * 1022 + "…"


@given(st.text(st.characters(), max_size=50) | st.text(st.sampled_from("\ud800\udc00\x00\n\x1b\u2028a"), max_size=50))
def test_any_text_gives_one_line_that_reads_back(text: str) -> None:
    line = encode(Opened(id=text, at=1.0, client_request_id=text))
    assert len(line.decode().splitlines()) == 1
    record = decode(line)
    assert isinstance(record, Opened)
    assert record.id == record.client_request_id == fields(line)["id"]
    assert encode(record) == line


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"null", b'{"event":"closed","id":"a"}', b'{"event":"done","id":1,"at":1}']
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(line)
