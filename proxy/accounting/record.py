"""The record of an exchange: the access line and the usage row are one and the same JSON line.

An exchange leaves two lines in the spool: `Opened` when it is admitted, `Done` when it is over. `Done` is complete by
itself; `Opened` is there for the worker that dies in between, whose exchanges become `lost`. Between the two stand an
`Issued` for each object that a provider made for it, and a `Forgotten` for one that it deleted; and where money is
counted, a `Reserved` before a provider hears of it and a `Spent` at its end.

Everything a client or a provider can put into a string ends up here, so `encode` holds whatever comes to one line of
valid JSON: no character that any reader takes for a line end, no control character a terminal would obey, no lone
surrogate, no NUL, and no field above 2 KiB. The common record is plain ASCII and short; one look at the encoded bytes
proves that, and only the others are gone through field by field.

Not here: where the line goes (spool.py, control/events/).
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from .usage import NO_USAGE, Source, Usage

Outcome = Literal["ok", "upstream_error", "truncated", "failed", "refused", "cancelled", "lost"]

# Bytes of one string, UTF-8. No label, model or error code is longer; what is longer is an attack on the log.
FIELD_BYTES: Final = 2048
# msgspec writes the tag first, which lets the spool tell the two apart without decoding.
OPENED_PREFIX: Final = b'{"event":"opened"'


class Opened(msgspec.Struct, tag_field="event", tag="opened", frozen=True, omit_defaults=True, gc=False):
    """An exchange was admitted. `id` is ours (`x-headgate-request-id`); `at` is Unix seconds."""

    id: str
    at: float
    worker: str = ""
    key: str = ""
    team: str = ""
    owner: str = ""
    endpoint: str = ""
    model: str = ""
    client_request_id: str = ""
    est_prompt: int = 0


class Done(msgspec.Struct, tag_field="event", tag="done", frozen=True, omit_defaults=True, gc=False):
    """An exchange is over, whatever happened. Field for field a row of the ledger.

    `at` is Unix seconds at the start; durations are milliseconds, absent when the thing never happened. `model` is
    what the client asked for, `upstream_model` what answered. `cost_usd` absent means that the price is unknown,
    never that it was free; `cost_source` names the step of the price order that gave it. Bytes are of the bodies, as
    the client saw them.
    """

    id: str
    at: float
    status: int = 0
    outcome: Outcome = "ok"
    error_code: str = ""
    key: str = ""
    team: str = ""
    owner: str = ""
    endpoint: str = ""
    route: str = ""
    model: str = ""
    provider: str = ""
    upstream_model: str = ""
    upstream_request_id: str = ""
    client_request_id: str = ""
    stream: bool = False
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    usage_source: Source = "none"
    service_tier: str = ""
    cost_usd: float | None = None
    cost_source: str = ""
    duration_ms: float = 0.0
    ttft_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    config: str = ""
    worker: str = ""
    audio_seconds: float = 0.0
    characters: int = 0
    cache: str = ""

    def usage(self) -> Usage:
        """The token counts as one value, the way prices take them."""
        if self.usage_source == "none":
            return NO_USAGE
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.cache_write_tokens,
            self.reasoning_tokens,
            self.audio_input_tokens,
            self.audio_output_tokens,
            self.usage_source,
            self.service_tier or None,
            self.audio_seconds,
            self.characters,
        )


class Issued(msgspec.Struct, tag_field="event", tag="issued", frozen=True, gc=False):
    """A provider made an object: its `id`, and the `kind` it is, which is its path below /v1 (`files`). `at` is Unix
    seconds, `team` that of the key it was made for, empty for none."""

    id: str
    at: float
    provider: str
    team: str
    kind: str


class Forgotten(msgspec.Struct, tag_field="event", tag="forgotten", frozen=True, gc=False):
    """A provider deleted an object."""

    id: str
    at: float
    provider: str


class Share(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Whose money it is, and of which period: `caller` is plain ASCII, `per` and `unit` those of the limit, `period`
    its name (`2026-11`). `until` is in Unix seconds."""

    per: str
    unit: str
    caller: str
    period: str
    until: int


class Reserved(msgspec.Struct, tag_field="event", tag="reserved", frozen=True, gc=False):
    """So many nano-dollars of the filter `budget` are set aside for an exchange, instead of what was before."""

    id: str
    at: float
    budget: str
    nanos: int
    shares: tuple[Share, ...]


class Spent(msgspec.Struct, tag_field="event", tag="spent", frozen=True, omit_defaults=True, gc=False):
    """An exchange is over, and this is what it is charged, instead of what was set aside. `exhausted`: for want of
    money it was refused, and has cost nothing."""

    id: str
    at: float
    budget: str
    nanos: int
    shares: tuple[Share, ...]
    exhausted: bool = False


Record = Opened | Done | Issued | Forgotten | Reserved | Spent

_BACKSLASH: Final = 0x5C
_DEL: Final = 0x7F

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)

# C0 but TAB, LF and CR (JSON escapes those), DEL, C1 (which holds NEL and the 8-bit escape sequences), lone surrogates.
_UNFIT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Line ends of str.splitlines() and of JavaScript; a JSON escape keeps the text.
_LINE_ENDS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


def encode(record: msgspec.Struct) -> bytes:
    """One line of JSON with its line end: of a `Record`, or of another flat struct whose values are strings, numbers
    and None. Unfit characters become U+FFFD, long fields end in an ellipsis."""
    try:
        line = _encode(record)
    except UnicodeEncodeError:
        return _encode_hostile(record)
    # A byte is found ten times faster than bytes are.
    escapes = _BACKSLASH in line and b"\\u00" in line
    if escapes or _DEL in line or len(line) > FIELD_BYTES or not line.isascii():
        return _encode_hostile(record)
    return line + b"\n"


def decode(line: bytes) -> Record:
    """The record of one line. Raises msgspec.MsgspecError or UnicodeDecodeError when it is none."""
    return _decoder.decode(line)


def _encode_hostile(record: msgspec.Struct) -> bytes:
    fields: dict[str, Any] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        fields[name] = _fit(value) if isinstance(value, str) else value
    return _one_line(type(record)(**fields))


def _one_line(value: object) -> bytes:
    line = _encode(value)
    for raw, escaped in _LINE_ENDS:
        line = line.replace(raw, escaped)
    return line + b"\n"


def _fit(text: str) -> str:
    # A character is at most 4 bytes: cutting characters first bounds the work on a text of megabytes.
    text = _UNFIT.sub("\ufffd", text[: FIELD_BYTES + 1])
    data = text.encode()
    if len(data) <= FIELD_BYTES:
        return text
    return data[: FIELD_BYTES - 3].decode(errors="ignore") + "…"
