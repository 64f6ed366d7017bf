"""Finds the model in a form (multipart/form-data, RFC 7578) while the form arrives.

Only the heads of the parts are read, and the values of the two fields that matter; files are searched for the
boundary, and kept nowhere. The reading goes on to the last byte: a second `model` behind the file would be the one
that some providers take.

It is strict where readers are known to differ, because the provider reads the same bytes again: what it might see as
another field or another boundary is refused, not guessed at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..proxy.errors import DuplicateFieldError, InvalidRequestError, MissingModelError
from .json_request import MAX_MODEL

if TYPE_CHECKING:
    from ..proxy.dialect import Splice

MAX_PART_HEAD = 8 * 1024
MAX_VALUE = 4 * MAX_MODEL
"""Bytes of a value that is read: UTF-8 has at most four for a character."""

_BOUNDARY = re.compile(
    r"""multipart/form-data\s*(?:;[^;"]*)*?;\s*boundary=(?:"([^"\\]{1,70})"|([^\s;"]{1,70}))\s*(?:;.*)?""",
    re.IGNORECASE | re.DOTALL,
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_DISPOSITION = re.compile(rb"form-data[ \t]*(?=;|$)", re.IGNORECASE)
_PARAM = re.compile(rb"""[ \t]*;[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))""")
_PLAIN = frozenset((b"binary", b"7bit", b"8bit"))
_READ = frozenset((b"model", b"stream"))

_START, _BEHIND, _HEAD, _VALUE, _FILE, _END = range(6)


def boundary_of(content_type: bytes | None) -> bytes | None:
    """The boundary of a form; None for what is no form."""
    text = (content_type or b"").decode("latin-1").strip()
    match = _BOUNDARY.fullmatch(text)
    if match is None or text.lower().count("boundary") != 1 + (match[1] or match[2]).lower().count("boundary"):
        return None
    return (match[1] or match[2]).encode("latin-1")


class FormScan:
    """Fed with the form from its first byte. `model` and `stream` are None until their fields were seen."""

    __slots__ = (
        "_at", "_boundary", "_given", "_length_at", "_name", "_open", "_rest", "_start_at", "_state", "_value_at",
        "length_at", "model", "model_at", "stream",
    )  # fmt: skip

    def __init__(self, boundary: bytes) -> None:
        self._boundary = b"\n--" + boundary
        self._open = b"--" + boundary
        self._rest = b""
        """What was not settled yet; its first byte is the `_at`th of the form."""
        self._at = 0
        self._state = _START
        self._start_at = 0
        self._given = False
        self._name = b""
        self._value_at = 0
        self._length_at: tuple[int, int] | None = None
        self.model: str | None = None
        self.model_at = (0, 0)
        """Where its value begins and ends in the form."""
        self.length_at: tuple[int, int] | None = None
        """Where the digits of its part's own content-length are, if it has one."""
        self.stream: bool | None = None

    @property
    def closed(self) -> bool:
        """The last boundary was seen."""
        return self._state == _END

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises InvalidRequestError, DuplicateFieldError, MissingModelError."""
        if self._state == _END:
            return
        data = self._rest + data if self._rest else data
        pos = 0
        while (moved := self._step(data, pos)) is not None:
            pos = moved
        if self._state == _END:
            pos = len(data)
        elif self._state == _FILE:
            # One byte more than a boundary may reach over the cut: the one before it decides what it is.
            pos = max(pos, len(data) - len(self._boundary) - 1)
        self._rest = data[pos:]
        self._at += pos

    def splices(self, model: str) -> list[Splice]:
        """What makes it a form for `model`."""
        value = model.encode()
        if self.model is None or model == self.model:
            return []
        splices = [(*self.model_at, value)]
        if self.length_at is not None:
            splices.append((*self.length_at, b"%d" % len(value)))
        return splices

    def give(self, model: str) -> list[Splice]:
        """What makes it a form for `model` where it names none itself: a part before all others. From then on a
        `model` of its own is the second one."""
        self._given = True
        head = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        return [(self._start_at, self._start_at, self._open + head + model.encode() + b"\r\n")]

    def _step(self, data: bytes, pos: int) -> int | None:
        """Settle the next thing; where to go on, or None where more must come first."""
        state = self._state
        if state in (_FILE, _VALUE):
            return self._content(data, pos)
        if state == _HEAD:
            return self._head(data, pos)
        if state == _BEHIND:
            return self._behind(data, pos)
        if state == _START:
            return self._start(data, pos)
        return None

    def _start(self, data: bytes, pos: int) -> int | None:
        for lead in (self._open, b"\r\n" + self._open):
            if data.startswith(lead):
                self._state = _BEHIND
                self._start_at = len(lead) - len(self._open)
                return len(lead)
        if self._open.startswith(data) or (b"\r\n" + self._open).startswith(data):
            return None
        raise InvalidRequestError("The form does not begin with its boundary.")

    def _behind(self, data: bytes, pos: int) -> int | None:
        """A boundary was read: another part, or the end?"""
        mark = data[pos : pos + 2]
        if len(mark) < 2:
            return None
        if mark == b"--":
            self._state = _END
            return None
        if mark != b"\r\n":
            raise InvalidRequestError("The form holds a boundary that is none.")
        self._state = _HEAD
        return pos + 2

    def _head(self, data: bytes, pos: int) -> int | None:
        end = data.find(b"\r\n\r\n", pos, pos + MAX_PART_HEAD)
        if end < 0:
            if len(data) - pos >= MAX_PART_HEAD:
                raise InvalidRequestError("A part of the form has too long a head.")
            return None
        self._read_head(data[pos:end], self._at + pos)
        self._value_at = self._at + end + 4
        self._state = _VALUE if self._name in (b"model", b"stream") else _FILE
        return end + 4

    def _read_head(self, head: bytes, at: int) -> None:
        """The name of a part. Raises for what two readers might read in two ways."""
        name: bytes | None = None
        plain = True
        self._length_at = None
        for line in head.split(b"\r\n"):
            field = _FIELD.fullmatch(line)
            if field is None:
                raise InvalidRequestError("A part of the form has a malformed head.")
            kind = field[1].lower()
            if kind == b"content-disposition":
                if name is not None:
                    raise InvalidRequestError("A part of the form must have one name.")
                name = _name_in(field[2].rstrip())
            elif kind == b"content-length":
                self._length_at = (at + field.start(2), at + field.end(2))
            elif kind == b"content-transfer-encoding":
                plain = field[2].strip().lower() in _PLAIN
            at += len(line) + 2
        if name is None:
            raise InvalidRequestError("A part of the form has no name.")
        if name in _READ and not plain:
            raise InvalidRequestError("A field of the form is encoded.")
        self._name = name
        if name == b"model" and (self._given or self.model is not None):
            raise DuplicateFieldError("The form names 'model' twice.", param="model")

    def _content(self, data: bytes, pos: int) -> int | None:
        at = data.find(self._boundary, pos)
        settled = at if at >= 0 else len(data) - len(self._boundary)
        if self._state == _VALUE and settled - pos > MAX_VALUE + 1:
            raise InvalidRequestError("A field of the form is too long.", param=self._name.decode())
        if at < 0:
            return None
        if at == 0 or data[at - 1] != 0x0D:
            raise InvalidRequestError("The form holds a boundary that is none.")
        if self._state == _VALUE:
            self._read_value(data[pos : at - 1])
        self._state = _BEHIND
        return at + len(self._boundary)

    def _read_value(self, value: bytes) -> None:
        if self._name == b"stream":
            self.stream = value.strip().lower() == b"true"
            return
        try:
            model = value.decode()
        except UnicodeDecodeError:
            model = ""
        if not model or not model.isprintable() or len(model) > MAX_MODEL:
            message = f"The model must be 1 to {MAX_MODEL} printable characters."
            raise MissingModelError(message, param="model")
        self.model = model
        self.model_at = (self._value_at, self._value_at + len(value))
        self.length_at = self._length_at


class FormWithout(FormScan):
    """A form that must not have certain fields: neither `name` nor `name[]`, in any case."""

    __slots__ = ("_forbidden",)

    def __init__(self, boundary: bytes, forbidden: frozenset[bytes]) -> None:
        super().__init__(boundary)
        self._forbidden = forbidden

    def _read_head(self, head: bytes, at: int) -> None:
        super()._read_head(head, at)
        name = self._name.partition(b"[")[0].strip().lower()
        if name in self._forbidden:
            raise InvalidRequestError("Name objects in a JSON body, not in a form.", param=name.decode())


def _name_in(disposition: bytes) -> bytes:
    """The one name that every reader finds in it. Raises InvalidRequestError."""
    start = _DISPOSITION.match(disposition)
    names = []
    at = start.end() if start is not None else len(disposition) + 1
    while at < len(disposition) and (param := _PARAM.match(disposition, at)) is not None:
        kind = param[1].lower()
        if kind == b"name":
            names.append(param[3] or param[2])
        elif kind.startswith(b"name*"):
            names.append(b"\\")
        at = param.end()
    if at != len(disposition) or len(names) != 1 or b"\\" in names[0]:
        raise InvalidRequestError("A part of the form must have one name.")
    name = names[0]
    if name not in _READ and name.strip().lower() in _READ:
        raise InvalidRequestError("A part of the form has a name that some would read as another.")
    return name
