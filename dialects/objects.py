"""What an answer says of objects that the provider keeps.

    {"id": "batch_1", "object": "batch", "output_file_id": "file-9", …}
    {"id": "resp_1", "output": [{"type": "code_interpreter_call", "container_id": "cntr_2", …}], …}

Only members whose values the provider gives are read, never what a client or a model has written: ids at the top, and
containers of a response's output items.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..proxy.stateful import NOTHING, Said
from .sse import parse_event

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_BEGINNING = re.compile(rb'\s*\{\s*"id"\s*:\s*"([!-~]{1,256}?)"')
_EVENT_BEGINNING = re.compile(rb'"response"\s*:\s*\{\s*"id"\s*:\s*"([!-~]{1,256}?)"')
_CONTAINER = b'"container_id"'


class _Item(msgspec.Struct):
    container_id: Any = None


class _Object(msgspec.Struct):
    id: Any = None
    deleted: Any = None
    file: Any = None
    output_file_id: Any = None
    error_file_id: Any = None
    result_files: Any = None
    output: Any = None


class _Response(msgspec.Struct):
    id: Any = None
    output: list[_Item] | None = None


class _Event(msgspec.Struct):
    response: _Response | None = None
    item: _Item | None = None


class _Id(msgspec.Struct):
    id: Any = None


_decode_object = msgspec.json.Decoder(_Object).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_id = msgspec.json.Decoder(_Id).decode


def read_object(body: bytes) -> Said:
    """A file, an upload, a batch, a fine-tuning job, a vector store, a stored response, or what a deletion answers."""
    try:
        said = _decode_object(body)
    except _UNREADABLE:
        return _beginning(body)
    upload = said.file.get("id") if isinstance(said.file, dict) else None
    results = said.result_files if isinstance(said.result_files, list) else ()
    files = [one for one in (said.output_file_id, said.error_file_id, upload, *results) if isinstance(one, str)]
    items = said.output if isinstance(said.output, list) else ()
    containers = _containers([item.get("container_id") for item in items if isinstance(item, dict)])
    return Said(
        said.id if isinstance(said.id, str) else "",
        (*(("files", file) for file in files), *containers),
        said.deleted if isinstance(said.deleted, bool) else None,
    )


def read_response(body: bytes) -> Said:
    """A whole response, and the containers that its tools have used."""
    if _CONTAINER not in body:
        return read_id(body)
    try:
        return _response(_decode_response(body))
    except _UNREADABLE:
        return read_id(body)


def read_id(body: bytes) -> Said:
    """The `id` of a whole answer, or of one whose beginning this is."""
    try:
        said = _decode_id(body)
    except _UNREADABLE:
        return _beginning(body)
    return Said(said.id) if isinstance(said.id, str) else NOTHING


class ResponseWatch:
    """Reads a streamed response event by event, for its id and for containers that come later."""

    __slots__ = ("_id_seen",)

    def __init__(self) -> None:
        self._id_seen = False

    def look(self, event: bytes) -> Said | None:
        """What is new in one event, or in the first part of a large one."""
        if self._id_seen and _CONTAINER not in event:
            return None
        try:
            said = _decode_event(parse_event(event)[1] or b"")
        except _UNREADABLE:
            beginning = _EVENT_BEGINNING.search(event) if not self._id_seen else None
            found = Said(beginning[1].decode()) if beginning is not None else NOTHING
        else:
            whole = _response(said.response) if said.response is not None else NOTHING
            used = _containers([said.item.container_id] if said.item is not None else [])
            found = Said(whole.id, whole.others + used)
        self._id_seen = self._id_seen or bool(found.id)
        return found if found != NOTHING else None


def _response(said: _Response) -> Said:
    used = _containers([item.container_id for item in said.output or ()])
    return Said(said.id if isinstance(said.id, str) else "", used)


def _containers(ids: list[Any]) -> tuple[tuple[str, str], ...]:
    return tuple(("containers", id_) for id_ in dict.fromkeys(id_ for id_ in ids if isinstance(id_, str)))


def _beginning(body: bytes) -> Said:
    """The `id` where it comes first, as the providers write it: all that is to be had of half an object."""
    match = _BEGINNING.match(body)
    return Said(match[1].decode()) if match is not None else NOTHING
