"""Which calls belong together, for a cluster that keeps them at one endpoint: its cache then holds their beginning.

In this order: the session that the client names (`x-session-id`, or the body's `prompt_cache_key`), else the beginning
of its prompt. A conversation that grows keeps its beginning, and so do calls with one system prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .json_splice import find_members
from .upstream.ring_hash import hash_key

if TYPE_CHECKING:
    from .exchange import Exchange

PREFIX_BYTES = 1024
"""Of the prompt as it stands in the body: about 250 tokens, a system prompt and the first question."""
_PROMPTS = (b"messages", b"input", b"prompt")


class _Named(msgspec.Struct):
    prompt_cache_key: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Named).decode


def affinity(ex: Exchange) -> int | None:
    """The key of the session an exchange belongs to; None where nothing tells, which lets it go anywhere."""
    session = ex.head.header(b"x-session-id")
    if session:
        return hash_key(session)
    body = ex.facts.body if ex.facts is not None else b""
    if not body:
        return None
    try:
        named = bytes(_decode(body).prompt_cache_key)
    except msgspec.MsgspecError:  # its prompt may still tell
        named = b""
    if len(named) > 2 and named != b"null":
        return hash_key(named)
    for prompt in _PROMPTS:
        places = find_members(body, prompt)
        if places:
            return hash_key(body[places[0] : places[0] + PREFIX_BYTES])
    return None
