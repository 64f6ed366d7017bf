"""Which stored objects a JSON body names: files, earlier responses, conversations, vector stores, containers.

    {"input": [{"type": "input_file", "file_id": "file-abc"}], "previous_response_id": "resp_1"}

Keys are looked for in the bytes, at every depth, and not in a parsed body: where a key stands twice, one reader takes
the first value and another the last, so all of them count. It is exact, because a quote inside a JSON string is
escaped (json_splice.py); a key that is itself spelled with escapes is decoded. What only describes something is left
out: metadata, and the schemas of tools and answers, in which anything may stand.

Not here: `item_reference`s, which name a part of a response by an id of its own, and what stands inside of files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from ..proxy.errors import InvalidRequestError
from ..proxy.json_splice import find_members, value_end
from ..proxy.stateful import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 4096

_KINDS = {
    "file_id": "files",
    "file_ids": "files",
    "input_file_id": "files",
    "training_file": "files",
    "validation_file": "files",
    "previous_response_id": "responses",
    "conversation": "conversations",
    "vector_store_ids": "vector_stores",
    "container": "containers",
    "assistant_id": "assistants",
    "thread_id": "threads",
}
NAMES = frozenset(name.encode() for name in _KINDS)
"""The keys that name objects."""
_DESCRIBES = ("metadata", "attributes", "parameters", "schema", "json_schema")
_KEY = re.compile(b'"(%b)"[ \\t\\n\\r]*:[ \\t\\n\\r]*' % b"|".join(name.encode() for name in (*_KINDS, *_DESCRIBES)))
# As long as a known key with an escape for every letter, so that no text makes it go far.
_ESCAPED = re.compile(rb'"([^"\\]{0,20}(?:\\u00[5-7][0-9a-fA-F][^"\\]{0,20}){1,20})"[ \t\n\r]*:[ \t\n\r]*')
_BEFORE_KEYS = b"{, \t\n\r"
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode = msgspec.json.Decoder().decode


def references(body: bytes) -> list[Ref]:
    """Every object that a JSON body names, each once, in the order of the body. Raises InvalidRequestError for more
    than MOST."""
    # Most bodies name nothing, and these searches say so.
    if not (b"_id" in body or b"_file" in body or b"conversation" in body or b"container" in body or b"\\u00" in body):
        return []
    refs: dict[Ref, None] = {}
    behind = 0
    for name, key, start in _keys(body):
        if key < behind:
            continue  # inside of a description
        end = value_end(body, start) if start < len(body) else start
        if name in _DESCRIBES:
            behind = end
            continue
        for id_ in _ids(body[start:end]):
            refs[Ref(_KINDS[name], id_, name)] = None
        if len(refs) > MOST:
            raise InvalidRequestError(f"The body names more than {MOST} objects.", param=name)
    return list(refs)


def files_in(body: bytes) -> list[Ref]:
    """Those among them that are files, for a body in which the other names mean something else."""
    if b"file" not in body and b"\\u00" not in body:
        return []
    return [ref for ref in references(body) if ref.param in ("file_id", "file_ids")]


def _keys(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, place of the key and place of its value, in the order of the body."""
    found = [(match.start(), match[1].decode(), match.end()) for match in _KEY.finditer(body)]
    if b"\\u00" in body:
        for match in _ESCAPED.finditer(body):
            try:
                name = _decode(b'"%b"' % match[1])
            except _UNREADABLE:
                continue
            if name in _KINDS or name in _DESCRIBES:
                found.append((match.start(), name, match.end()))
        found.sort()
    for key, name, value in found:
        if key and body[key - 1] in _BEFORE_KEYS:
            yield name, key, value


def _ids(value: bytes) -> list[str]:
    """A string, strings in a list, or the `id` of an object; nothing else is an id."""
    if value.startswith(b"{"):
        places = find_members(value, b"id") if b"id" in value or b"\\u00" in value else []
        return [id_ for start in places for id_ in _ids(value[start : value_end(value, start)])]
    try:
        parsed = _decode(value)
    except _UNREADABLE:
        return []
    if isinstance(parsed, str):
        return [parsed] if parsed else []
    return [one for one in parsed if isinstance(one, str) and one] if isinstance(parsed, list) else []
