"""A JSON request with a model in it: read once, checked for what must be checked here, spliced for each target.

All else in a body is the provider's to judge, and passes as the client wrote it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

import msgspec

from ..proxy.accounting.usage import MOST_TOKENS
from ..proxy.dialect import RequestFacts
from ..proxy.errors import (
    DuplicateFieldError,
    InvalidJsonError,
    InvalidRequestError,
    JsonTooDeepError,
    MissingModelError,
)
from ..proxy.json_splice import deeper_than, find_members, value_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..proxy.dialect import Splice

T = TypeVar("T")
MAX_MODEL = 256
_MODEL = b'"model"'
_VALUE = len(_MODEL) + 1
_BACKSLASH = 0x5C
_REMEMBERED = 1024
_encode = msgspec.json.encode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_object(body: bytes, decode: Callable[[bytes], T], *, max_depth: int) -> T:
    """The fields of a body that `decode` knows. Raises InvalidJsonError, JsonTooDeepError."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into strings it skips
        request = decode(body)
    except RecursionError:
        raise JsonTooDeepError(f"The body is nested deeper than {max_depth} levels.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidJsonError(f"The body must be one JSON object: {error}.") from None
    # A body that opens so few brackets needs no closer look.
    if len(body) - len(body.translate(None, b"{[")) > max_depth and deeper_than(body, max_depth):
        raise JsonTooDeepError(f"The body is nested deeper than {max_depth} levels.")
    return request


class _Spellings(dict[str, tuple[bytes, int]]):
    """model -> how a body names it that is written without a space, and how long that is. Bounded, because names come
    from outside."""

    def __missing__(self, model: str) -> tuple[bytes, int]:
        if not model:
            raise MissingModelError("You must provide a model: a non-empty string.", param="model")
        if not model.isprintable() or len(model) > MAX_MODEL:
            raise MissingModelError(f"The model must be at most {MAX_MODEL} printable characters.", param="model")
        if len(self) >= _REMEMBERED:
            self.clear()
        named = _MODEL + b':"%b"' % model.encode()
        self[model] = found = (named, len(named))
        return found


_spellings = _Spellings()


def find_model(body: bytes, model: object) -> tuple[int, int]:
    """Where the value of a body's `model` begins and ends. Raises MissingModelError, DuplicateFieldError."""
    if type(model) is not str:
        raise MissingModelError("You must provide a model: a non-empty string.", param="model")
    named, size = _spellings[model]
    start = body.find(_MODEL)
    if _BACKSLASH not in body and body.startswith(named, start) and body.find(_MODEL, start + 1) < 0:
        # That is the key, and its value stands there as it was read: there is nothing to search.
        return start + _VALUE, start + size
    places = find_members(body, b"model")
    if len(places) != 1:
        raise DuplicateFieldError("The body names 'model' twice.", param="model")
    return places[0], value_end(body, places[0])


def find_optional_model(body: bytes, model: object) -> tuple[int, int] | None:
    """The same where the API lets a request leave its model out; None where this one does. A second `model` is refused
    even when the one that counts here is null: another reader may take the other."""
    if model is not None:
        return find_model(body, model)
    if len(find_members(body, b"model")) > 1:
        raise DuplicateFieldError("The body names 'model' twice.", param="model")
    return None


def name_model(body: bytes, model: str) -> bytes:
    """A checked object with `model` as its model, whether it names one or not. Raises DuplicateFieldError."""
    places = find_members(body, b"model")
    if len(places) > 1:
        raise DuplicateFieldError("The body names 'model' twice.", param="model")
    if places:
        return body[: places[0]] + _encode(model) + body[value_end(body, places[0]) :]
    start = body.index(b"{") + 1
    comma = b"" if body[start:].lstrip().startswith(b"}") else b","
    return body[:start] + b'"model":' + _encode(model) + comma + body[start:]


def read_stream(stream: object) -> bool:
    """Whether the answer is to be streamed. Raises InvalidRequestError for what is neither true nor false."""
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("'stream' must be true or false.", param="stream")
    return stream is True


def positive(value: object) -> int | None:
    """A count a client may have set; None for what is no positive integer."""
    return value if type(value) is int and value > 0 else None


def allowance(value: object) -> int | None:
    """As `positive`, of tokens or answers. What is more than any answer has is as good as MOST_TOKENS: JSON has numbers
    that no double can hold, and money is reckoned in doubles."""
    return min(value, MOST_TOKENS) if type(value) is int and value > 0 else None


class JsonFacts(RequestFacts):
    """A request that is one JSON object. `model_at` None: it names no model, and the target's goes without."""

    __slots__ = ("_encoded", "_limited", "model_at")

    output_fields: ClassVar[tuple[bytes, ...]] = ()
    """Fields that limit the tokens of an answer, the one to write first; none: nothing here does."""

    def __init__(
        self,
        body: bytes,
        model: str,
        model_at: tuple[int, int] | None,
        *,
        stream: bool = False,
        wants_usage: bool = True,
        max_tokens: int | None = None,
        n: int = 1,
    ) -> None:
        super().__init__(body, model, stream=stream, wants_usage=wants_usage, max_tokens=max_tokens, n=n)
        self.model_at = model_at
        self._encoded: tuple[str, bytes] | None = None
        self._limited = False

    def limit_output(self, tokens: int) -> bool:
        """The field is spliced into what goes up."""
        if not self.output_fields or self.max_tokens is not None:
            return False
        self.max_tokens = tokens
        self._limited = True
        self._encoded = None
        return True

    def respell(self, body: bytes) -> bool:
        """The model's place is found anew."""
        if self.model_at is not None:
            places = find_members(body, b"model")
            if len(places) != 1:
                return False
            self.model_at = places[0], value_end(body, places[0])
        self.body = body
        self._encoded = None
        return True

    def encode(self, model: str, splices: list[Splice] | None = None) -> bytes:
        """The body for a target: the model's name put in, `splices` made, and no other byte touched."""
        if self._encoded is not None and self._encoded[0] == model:
            return self._encoded[1]
        changes = list(splices or ())
        if self.model_at is not None and model != self.model:
            changes.append((*self.model_at, _encode(model)))
        if self._limited:
            changes.append(self._limit())
        body = self.body
        if changes:
            parts: list[bytes] = []
            done = 0
            for start, end, value in sorted(changes):
                parts += (body[done:start], value)
                done = end
            parts.append(body[done:])
            body = b"".join(parts)
        self._encoded = (model, body)
        return body

    def _limit(self) -> Splice:
        """The limit: for a value that is none, where there is one, else a field of its own."""
        body, limit = self.body, b"%d" % (self.max_tokens or 0)
        members = _decode_members(body)
        for field in self.output_fields:
            if field.decode() in members:
                start = find_members(body, field)[-1]
                return start, value_end(body, start), limit
        if self.model_at is not None:
            end = self.model_at[1]
            return end, end, b',"%b":%b' % (self.output_fields[0], limit)
        start = body.index(b"{") + 1
        return start, start, b'"%b":%b%b' % (self.output_fields[0], limit, b"," if members else b"")
