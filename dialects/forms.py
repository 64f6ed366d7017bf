"""OpenAI's endpoints that take a form with a file: transcriptions, translations, image edits and variations.

A form is passed on while it arrives: only its `model` is looked for (form_reader.py), and only that value's bytes
change. Image edits also come as one JSON object, which is read like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.accounting.usage import usage_of_sound
from ..proxy.dialect import AnswerFacts, BodyReader, RequestFacts
from ..proxy.errors import InvalidRequestError, MissingModelError, UnsupportedMediaTypeError
from .form_reader import FormScan, boundary_of
from .json_request import JsonFacts
from .one_shot import OneShot
from .references import references
from .typed_events import EventTypes

if TYPE_CHECKING:
    from ..proxy.dialect import Splice
    from ..proxy.edge.downstream import RequestHead
    from ..proxy.stateful import Ref

_TRANSCRIPT = EventTypes(frozenset(("transcript.text.done",)), ends_with_done=True)
_EDIT = EventTypes(frozenset(("image_edit.completed",)), silent=frozenset(("image_edit.partial_image",)))


class FormFacts(RequestFacts):
    """A form. `body` is empty while it is passed on."""

    __slots__ = ("_named", "_scan")

    verbatim = True

    def __init__(self, body: bytes, scan: FormScan, named: str) -> None:
        model = named or scan.model or ""
        super().__init__(body, model, stream=scan.stream is True, wants_usage=True, max_tokens=None, n=1)
        self._scan = scan
        self._named = named

    def encode(self, model: str) -> bytes:
        """The whole form for a target."""
        body = self.body
        for start, end, value in sorted(self.splices(model), reverse=True):
            body = body[:start] + value + body[end:]
        return body

    def splices(self, model: str) -> list[Splice]:
        """The model's value, and the length of its part where that is written."""
        scan = self._scan
        return scan.give(model) if self._named and scan.model is None else scan.splices(model)


class FormReader(BodyReader):
    """Follows a form on its way. `needs_model` False: without one the provider takes its default. `named`: the model is
    this one, whatever the form says."""

    __slots__ = ("_named", "_needs_model", "_scan")

    def __init__(self, boundary: bytes, *, needs_model: bool, named: str = "") -> None:
        self._scan = FormScan(boundary)
        self._needs_model = needs_model and not named
        self._named = named
        self.facts = FormFacts(b"", self._scan, named)

    @property
    def knows_model(self) -> bool:
        """Its field was seen."""
        return self._scan.model is not None

    def feed(self, data: bytes) -> None:
        """Look for the model, and whether the answer is to be streamed."""
        scan = self._scan
        scan.feed(data)
        self.facts.model = self._named or scan.model or ""
        self.facts.stream = scan.stream is True

    def end(self) -> None:
        """Refuse a form that is cut: nobody knows what a provider would make of it."""
        if not self._scan.closed:
            raise InvalidRequestError("The form does not end with its boundary.")

    def whole(self, body: bytes) -> FormFacts:
        """The form, and what it says. Raises MissingModelError."""
        if self._needs_model and self._scan.model is None:
            raise MissingModelError("You must provide a model: a field of the form.", param="model")
        return FormFacts(body, self._scan, self._named)


class Form(OneShot):
    """One row. `takes_json`: the same request may come as one JSON object."""

    def __init__(
        self,
        name: str,
        path: bytes,
        events: EventTypes | None = None,
        *,
        needs_model: bool = True,
        takes_json: bool = False,
    ) -> None:
        super().__init__(name, path, events, needs_model=needs_model)
        self._takes_json = takes_json

    def open_body(self, head: RequestHead, model: str = "", *, tracks: bool, divided: bool) -> FormReader | None:
        """A reader of the form; None for JSON. Raises UnsupportedMediaTypeError."""
        kinds = [value for name, value in head.headers if name == b"content-type"]
        encoding = head.header(b"content-encoding")
        is_form = any(kind.lower().lstrip().startswith(b"multipart/") for kind in kinds)
        if not is_form and self._takes_json:
            return None
        boundary = boundary_of(kinds[0]) if len(kinds) == 1 else None
        if boundary is None or (encoding is not None and encoding.strip().lower() != b"identity"):
            raise UnsupportedMediaTypeError("Send a form (multipart/form-data) with its boundary, not encoded.")
        return FormReader(boundary, needs_model=self._needs_model, named=model)

    def references(self, facts: RequestFacts) -> list[Ref]:
        """Those of a JSON body."""
        return references(facts.body) if isinstance(facts, JsonFacts) else []


class _Spoken(msgspec.Struct):
    duration: Any = None


_decode_spoken = msgspec.json.Decoder(_Spoken).decode


class Transcription(Form):
    """Sound to text. Where no usage is reported, `verbose_json` tells how long the sound was."""

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Usage and error of a whole answer."""
        facts = super().read_answer(body)
        if facts.usage is None and not (facts.unreadable or facts.error):
            try:
                facts.usage = usage_of_sound(float(_decode_spoken(body).duration))
            except (ValueError, TypeError, OverflowError):
                return facts  # the short format has none
        return facts


FORMS = (
    Transcription("transcriptions", b"/audio/transcriptions", _TRANSCRIPT),
    Transcription("translations", b"/audio/translations"),
    Form("image_edits", b"/images/edits", _EDIT, needs_model=False, takes_json=True),
    Form("image_variations", b"/images/variations", needs_model=False),
)
