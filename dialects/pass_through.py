"""Endpoints without a model: files, uploads, batches, fine-tuning, vector stores, what a provider has stored, and
whatever a catch-all lets pass.

Method, path, query and body go up as they came, and the answer comes down as it is. Of the request nothing is read but
the objects that it names, where it matters who made them; of a whole JSON answer only the ids of what was made, and of
that to a POST its usage. The answers to other methods show again what was charged when it was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..proxy.accounting.usage import parse_chat_usage, parse_responses_usage
from ..proxy.dialect import AnswerFacts, BodyReader, Operation, RequestFacts
from ..proxy.errors import InvalidJsonError, InvalidRequestError, UnknownPathError, UnsupportedMediaTypeError
from .form_reader import FormWithout, boundary_of
from .objects import read_object
from .references import NAMES, references
from .typed_events import error_event

if TYPE_CHECKING:
    from ..proxy.edge.downstream import RequestHead
    from ..proxy.errors import GatewayError
    from ..proxy.stateful import Ref, Said
    from .form_reader import FormScan

_ABSENT = msgspec.Raw(b"null")
_NOWHERE = frozenset(("", ".", ".."))


_CONTENT = (b"multipart/", b"application/octet-stream", b"audio/", b"image/", b"video/")
"""What an honest client does not send as JSON; `curl -d` says something else than JSON, too."""


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Answer).decode


class PassFacts(RequestFacts):
    """Nothing is known of the body. `is_content`: it is a form, or media, and names no objects."""

    __slots__ = ("is_content",)

    verbatim = True

    def __init__(self, body: bytes, *, is_content: bool) -> None:
        super().__init__(body, "", stream=False, wants_usage=True, max_tokens=None, n=1)
        self.stores = True
        self.is_content = is_content


class PassReader(BodyReader):
    """Looks at nothing, but at the fields of a `form` in which nothing may be named."""

    __slots__ = ("_form",)

    knows_model = True

    def __init__(self, form: FormScan | None = None) -> None:
        self.facts = PassFacts(b"", is_content=True)
        self._form = form

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises InvalidRequestError for a form that names an object, or cannot be read."""
        if self._form is not None:
            self._form.feed(data)

    def end(self) -> None:
        """Refuse a form that is cut: nobody knows what a provider would make of it."""
        if self._form is not None and not self._form.closed:
            raise InvalidRequestError("The form does not end with its boundary.")

    def whole(self, body: bytes) -> PassFacts:
        """The body as it is."""
        return PassFacts(body, is_content=True)


VERBATIM = "verbatim"
METERED = "verbatim_metered"


class PassThrough(Operation):
    """Any path below `/v1`. `meters`: the answer's usage counts."""

    verbatim = True

    def __init__(self, name: str, *, meters: bool) -> None:
        self.name = name
        self._meters = meters

    def open_body(self, head: RequestHead, model: str = "", *, tracks: bool, divided: bool) -> BodyReader | None:
        """Refuses a path that a provider might read as another one: `/v1/files/../chat/completions`.

        A body that may be JSON may name objects, and is collected. Where none may escape notice, every body is, but for
        a form, in which none may be named. Raises UnsupportedMediaTypeError for a form that cannot be read."""
        parts = head.path.replace("\\", "/").split("/")[1:]
        if not head.target.startswith(b"/v1/") or not _NOWHERE.isdisjoint(parts):
            raise UnknownPathError.of(head.path)
        if divided and _has_body(head):
            return _strict_reader(head)
        kind = (head.header(b"content-type") or b"").lower()
        return None if tracks and _has_body(head) and not kind.startswith(_CONTENT) else PassReader()

    def references(self, facts: RequestFacts) -> list[Ref]:
        """Those of a JSON body. Raises InvalidJsonError for one that a provider might read in another encoding."""
        if not isinstance(facts, PassFacts) or facts.is_content:
            return []
        if b"\0" in facts.body[:4]:
            raise InvalidJsonError("The body must be UTF-8.")
        return references(facts.body)

    def read_objects(self, body: bytes) -> Said:
        """Of a JSON answer."""
        return read_object(body)

    def read(self, body: bytes, *, max_depth: int) -> RequestFacts:
        """The body was collected to be looked into."""
        return PassFacts(body, is_content=False)

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


def _has_body(head: RequestHead) -> bool:
    announced = head.header(b"content-length")
    return head.header(b"transfer-encoding") is not None or (announced is not None and announced.strip(b"0") != b"")


def _strict_reader(head: RequestHead) -> PassReader | None:
    """A reader for a form; None for whatever else a provider might read as JSON, which is anything."""
    kinds = [value for name, value in head.headers if name == b"content-type"]
    if not any(kind.lower().lstrip().startswith(b"multipart/") for kind in kinds):
        return None
    encoding = head.header(b"content-encoding")
    boundary = boundary_of(kinds[0]) if len(kinds) == 1 else None
    if boundary is None or (encoding is not None and encoding.strip().lower() != b"identity"):
        raise UnsupportedMediaTypeError("Send a form (multipart/form-data) with its boundary, not encoded.")
    return PassReader(FormWithout(boundary, NAMES))
