"""Endpoints without a model: files, uploads, batches, fine-tuning, vector stores, what a provider has stored, and
whatever a catch-all lets pass.

Method, path, query and body go up as they came, and the answer comes down as it is. Nothing of the request is read;
of a whole JSON answer to a POST only its usage is. The answers to other methods show again what was charged when it
was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..proxy.accounting.usage import parse_chat_usage, parse_responses_usage
from ..proxy.dialect import AnswerFacts, BodyReader, Operation, RequestFacts
from ..proxy.errors import UnknownPathError
from .typed_events import error_event

if TYPE_CHECKING:
    from ..proxy.edge.downstream import RequestHead
    from ..proxy.errors import GatewayError

_ABSENT = msgspec.Raw(b"null")
_NOWHERE = frozenset(("", ".", ".."))


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Answer).decode


class PassFacts(RequestFacts):
    """Nothing is known of the body."""

    __slots__ = ()

    verbatim = True

    def __init__(self, body: bytes) -> None:
        super().__init__(body, "", stream=False, wants_usage=True, max_tokens=None, n=1)


class PassReader(BodyReader):
    """Looks at nothing."""

    __slots__ = ()

    knows_model = True

    def __init__(self) -> None:
        self.facts = PassFacts(b"")

    def feed(self, data: bytes) -> None:
        """Nothing to see."""

    def end(self) -> None:
        """Nothing to say."""

    def whole(self, body: bytes) -> PassFacts:
        """The body as it is."""
        return PassFacts(body)


VERBATIM = "verbatim"
METERED = "verbatim_metered"


class PassThrough(Operation):
    """Any path below `/v1`. `meters`: the answer's usage counts."""

    verbatim = True

    def __init__(self, name: str, *, meters: bool) -> None:
        self.name = name
        self._meters = meters

    def open_body(self, head: RequestHead, model: str = "") -> BodyReader:
        """Refuses a path that a provider might read as another one: `/v1/files/../chat/completions`."""
        parts = head.path.replace("\\", "/").split("/")[1:]
        if not head.target.startswith(b"/v1/") or not _NOWHERE.isdisjoint(parts):
            raise UnknownPathError(f"Unknown path '{head.path[:128]}'.")
        return PassReader()

    def read(self, body: bytes, *, max_depth: int) -> RequestFacts:
        """The body is never collected for its own sake."""
        return PassFacts(body)

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """The client's own bytes."""
        return facts.body

    def target(self, query: bytes) -> bytes:
        """Never asked: it is `verbatim`."""
        raise NotImplementedError

    def open_stream(self, facts: RequestFacts) -> None:
        """Streams are relayed as they are."""

    def read_answer(self, body: bytes) -> AnswerFacts:
        """The usage of a JSON answer."""
        try:
            usage = _decode(body).usage if self._meters else _ABSENT
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return AnswerFacts()
        if usage == _ABSENT:
            return AnswerFacts()
        return AnswerFacts(parse_chat_usage(usage) or parse_responses_usage(usage))

    def error_event(self, error: GatewayError) -> bytes:
        """An `error` event, which the SDKs raise."""
        return error_event(error)
