"""One stream under guard: its events, whose texts go on from event to event.

A text that goes on is a *track*: one field of one choice (chat), or the deltas of one part of one item (typed events).
Each has a window. An event goes down with what its windows give out in the place of what came; at the end of a choice,
of an item, or of the stream, what its windows still hold goes down before it, in an event of the same shape. An error
event, or no event at all, flushes nothing: a cut answer is not made whole.

Not here: whole texts (looking.py), what is looked for (redaction.py), and what is said when something is found
(guard.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.json_splice import value_end
from .json_strings import Spelt, change, spell, texts
from .looking import is_text
from .redaction import Rule, Window, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..proxy.errors import AnswerRefusedError
    from .json_strings import Change, Path

MOST_TRACKS = 256
_DATA = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])data: ?([^\r\n]*)")
_EVENT = re.compile(rb"(?:\A|[\r\n])event: ?([^\r\n]*)")
_LOGPROBS = re.compile(rb'(?<=[{,\s])"logprobs"\s*:\s*(?=[\[{])')
_TERMINAL = (".completed", ".failed", ".incomplete")
_CHUNK_FIELDS = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
Key = tuple[Any, ...]


class _Track:
    """A text that goes on. `event`: the last one that carried it, `kind` its type's line, `path` where in it."""

    __slots__ = ("event", "kind", "path", "window")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.window = Window(rules)
        self.event: dict[str, Any] = {}
        self.kind = b""
        self.path: Path = ()


class GuardedStream:
    """`judge` is told what was found, and raises for what blocks; `refused` makes the error for what cannot be read."""

    __slots__ = ("_judge", "_max_text", "_refused", "_rules", "_tracks")

    def __init__(
        self,
        rules: Sequence[Rule],
        judge: Callable[[list[Rule]], None],
        refused: Callable[[str], AnswerRefusedError],
        max_text: int,
    ) -> None:
        self._rules = rules
        self._judge = judge
        self._refused = refused
        self._max_text = max_text
        self._tracks: dict[Key, _Track] = {}

    @property
    def held(self) -> int:
        """Characters that are held back."""
        return sum(track.window.held for track in self._tracks.values())

    def feed(self, raw: bytes) -> bytes:
        """What goes down for the next event: it, and before it what is given out at the end of a text."""
        lines = _DATA.findall(raw)
        found: list[Rule] = []
        if not lines:
            return self._plain(raw)
        data = b" ".join(lines)
        if data.strip() == b"[DONE]":
            flushed = self._flush(list(self._tracks), found)
            self._judge(found)
            return flushed + raw
        data = without_logprobs(data)
        try:
            event = msgspec.json.decode(data, type=dict[str, Any])
            source = data.decode()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise self._refused("An event of the stream cannot be looked through.") from None
        ends = self._ends(event)
        tracks = self._named(event)
        kind = _EVENT.search(raw)
        for path, key in tracks.items():
            self._follow(key, path, event, kind[1] if kind is not None else b"")
        changes = self._changes(source, tracks, dict.fromkeys(ends), found)
        before = self._flush([key for key in ends if key not in tracks.values()], found)
        for key in ends:
            self._tracks.pop(key, None)
        self._judge(found)
        if not changes and len(lines) == 1 and data == lines[0]:
            return before + raw
        return before + _with_data(raw, change(source, changes).encode())

    def _plain(self, raw: bytes) -> bytes:
        """A comment, or the rest of something larger."""
        found: list[Rule] = []
        text = redact(self._rules, raw.decode("utf-8", "surrogateescape"), found)
        self._judge(found)
        return text.encode("utf-8", "surrogateescape")

    def _changes(self, source: str, tracks: dict[Path, Key], ends: dict[Key, None], found: list[Rule]) -> list[Change]:
        """What to put where in a JSON text."""
        changes: list[Change] = []
        size = 0
        for path, start, end in texts(source):
            if not is_text(path) or source.startswith("data:", start, end):
                continue
            size += end - start
            if size > self._max_text:
                raise self._refused("The answer has more text than can be looked through.")
            key = tracks.get(path)
            text = Spelt(source, start, end).text
            if key is None:
                now = redact(self._rules, text, found)
            else:
                now = self._tracks[key].window.feed(text, found, last=key in ends)
            if now != text:
                changes.append((start, end, spell(now)))
        return changes

    def _named(self, event: dict[str, Any]) -> dict[Path, Key]:
        """Where in an event texts stand that go on, and which."""
        what = event.get("type")
        if isinstance(what, str):
            goes_on = what.endswith(".delta") and isinstance(event.get("delta"), str)
            return {("delta",): (what, *_place(event))} if goes_on and not what.endswith("audio.delta") else {}
        named: dict[Path, Key] = {}
        for at, choice in enumerate(_list(event.get("choices"))):
            if isinstance(choice, dict):
                begin: Key = ("choice", _index(choice, at))
                if isinstance(choice.get("text"), str):
                    named["choices", at, "text"] = (*begin, "text")
                _walk(choice.get("delta"), ("choices", at, "delta"), (*begin, "delta"), named)
        return named

    def _ends(self, event: dict[str, Any]) -> list[Key]:
        """Which texts that go on end with this event; those that begin in it, too."""
        what = event.get("type")
        if isinstance(what, str):
            if what.endswith(_TERMINAL):
                return list(self._tracks)
            if not what.endswith(".done"):
                return []
            return [
                key
                for key, track in self._tracks.items()
                if track.event.get("output_index") == event.get("output_index")
            ]
        over = {
            _index(choice, at)
            for at, choice in enumerate(_list(event.get("choices")))
            if isinstance(choice, dict) and choice.get("finish_reason")
        }
        if not over:
            return []
        named = dict.fromkeys((*self._tracks, *self._named(event).values()))
        return [key for key in named if key[0] == "choice" and key[1] in over]

    def _follow(self, key: Key, path: Path, event: dict[str, Any], kind: bytes) -> None:
        track = self._tracks.get(key)
        if track is None:
            if len(self._tracks) >= MOST_TRACKS:
                raise self._refused("The stream has too many texts at a time to be looked through.")
            track = self._tracks[key] = _Track(self._rules)
        track.event, track.kind, track.path = event, kind, path

    def _flush(self, keys: Sequence[Key], found: list[Rule]) -> bytes:
        """What the windows of these texts hold, each in an event of its own."""
        events = []
        for key in keys:
            track = self._tracks.pop(key, None)
            text = track.window.feed("", found, last=True) if track is not None else ""
            if track is not None and text:
                line = b"event: %b\n" % track.kind if track.kind else b""
                events.append(b"%bdata: %b\n\n" % (line, msgspec.json.encode(_carrying(track, text))))
        return b"".join(events)


def _carrying(track: _Track, text: str) -> dict[str, Any]:
    """The track's last event with nothing in it but `text`."""
    event, path = track.event, track.path
    if path == ("delta",):
        return {**event, "delta": text}
    choice = event["choices"][path[1]]
    made: dict[str, Any] = {"index": choice.get("index", path[1]), "finish_reason": None}
    if path[2] == "text":
        made |= {"text": text, "logprobs": None}
    else:
        made["delta"] = _nested(choice["delta"], path[3:], text)
    return {**{name: event[name] for name in _CHUNK_FIELDS if name in event}, "choices": [made]}


def _nested(value: Any, path: Path, text: str) -> Any:
    if not path:
        return text
    inner = _nested(value[path[0]], path[1:], text)
    if isinstance(path[0], str):
        return {path[0]: inner}
    part = value[path[0]]
    name = next((one for one in ("index", "type") if isinstance(part, dict) and one in part), None)
    return [{name: part[name], **inner} if name is not None and isinstance(inner, dict) else inner]


def _walk(value: Any, path: Path, key: Key, named: dict[Path, Key]) -> None:
    """Every text of a delta: a list's element is known by its `index`, where it has one."""
    if isinstance(value, str):
        if is_text(path):
            named[path] = key
    elif isinstance(value, dict):
        for name, one in value.items():
            _walk(one, (*path, name), (*key, name), named)
    elif isinstance(value, list):
        for at, one in enumerate(value):
            _walk(one, (*path, at), (*key, _index(one, at)), named)


def _index(value: Any, at: int) -> int:
    """By what an element of a list is known from event to event; its place, where it does not say."""
    index = value.get("index", at) if isinstance(value, dict) else at
    return index if isinstance(index, int) else at


def _place(event: dict[str, Any]) -> Key:
    names = ("item_id", "output_index", "content_index", "summary_index")
    return tuple(value if isinstance(value := event.get(name), str | int) else None for name in names)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def without_logprobs(data: bytes) -> bytes:
    """They are the text once more; inside a JSON string the quotes around the name would be escaped."""
    if b'"logprobs"' not in data:
        return data
    parts: list[bytes] = []
    done = 0
    for match in _LOGPROBS.finditer(data):
        if match.start() >= done:
            parts += (data[done : match.end()], b"[]" if data[match.end()] == 0x5B else b"null")
            done = value_end(data, match.end())
    parts.append(data[done:])
    return b"".join(parts)


def _with_data(raw: bytes, data: bytes) -> bytes:
    """The event with other data: in its place, or in that of the first of several lines."""
    parts: list[bytes] = []
    done = 0
    for nth, match in enumerate(_DATA.finditer(raw)):
        if nth == 0:
            parts += (raw[: match.start(1)], data)
        else:
            parts.append(raw[done : match.start()])
        done = match.end()
    parts.append(raw[done:])
    return b"".join(parts)
