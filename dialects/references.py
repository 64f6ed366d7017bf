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
CONVERSATION_BYTES = 4096

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
_CONVERSATION = "conversation"
_DESCRIBES = ("metadata", "attributes", "parameters", "schema", "json_schema")
_KEY = re.compile(b'"(%b)"[ \\t\\n\\r]*:[ \\t\\n\\r]*' % b"|".join(name.encode() for name in (*_KINDS, *_DESCRIBES)))
# As long as a known key with an escape for every letter, so that no text makes it go far.
_ESCAPED = re.compile(rb'"([^"\\]{0,20}(?:\\u00[5-7][0-9a-fA-F][^"\\]{0,20}){1,20})"[ \t\n\r]*:[ \t\n\r]*')
# A list without lists and objects in it.
_FLAT = re.compile(
    rb'\[[ \t\n\r]*+(?:(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^"\[\]{},]++)[ \t\n\r]*+,?+[ \t\n\r]*+)*+\]', re.DOTALL
)
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
    behind = keys = 0
    for name, key, start in _keys(body):
        if key < behind:
            continue  # inside of a description
        if name in _DESCRIBES:
            behind = value_end(body, start) if start < len(body) else start
            continue
        keys += 1
        for id_ in _ids(name, body, start):
            refs[Ref(_KINDS[name], id_, name)] = None
        if max(keys, len(refs)) > MOST:
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
            name = _read(b'"%b"' % match[1])
            if isinstance(name, str) and (name in _KINDS or name in _DESCRIBES):
                found.append((match.start(), name, match.end()))
        found.sort()
    for key, name, value in found:
        if key and body[key - 1] in _BEFORE_KEYS:
            yield name, key, value


def _ids(name: str, body: bytes, start: int) -> list[str]:
    """A string, strings in a list, or the `id` of a conversation; nothing else is an id. Raises InvalidRequestError."""
    first = body[start : start + 1]
    if first == b'"':
        return _strings(_read(body[start : value_end(body, start)]))
    if first == b"[":
        # Read no further than to its end, and never into what is nested in it: many of them stay linear.
        flat = _FLAT.match(body, start)
        if flat is None:
            raise InvalidRequestError(f"'{name}' must be a list of ids.", param=name)
        return _strings(_read(flat[0]))
    if first == b"{" and name == _CONVERSATION:
        value = body[start : start + CONVERSATION_BYTES]
        value = value[: value_end(value, 0)]
        parsed = _read(value)
        if not isinstance(parsed, dict):
            raise InvalidRequestError(f"'{name}' must be an id, or an object with an id.", param=name)
        places = find_members(value, b"id") if "id" in parsed else []
        return [id_ for place in places for id_ in _strings(_read(value[place : value_end(value, place)]))]
    return []


def _strings(parsed: object) -> list[str]:
    found = parsed if isinstance(parsed, list) else [parsed]
    return [one for one in found if isinstance(one, str) and one]


def _read(value: bytes) -> object:
    try:
        return _decode(value)
    except _UNREADABLE:
        return None
