"""Looks for what must not pass in the texts of requests and answers: blocks it, or puts a name in its place.

Every string value of a JSON body is looked through, but those that are no text (guard_stream.py: roles, ids, types,
encoded data). What is taken out is replaced in place and no other byte changes. The texts of a streamed answer are
followed through its events, each by a window (redaction.py) that holds back what is undecided; what is held is given
out when the choice, or the stream, ends, and never where it is cut. What cannot be looked into is refused: other bodies
than JSON objects, sessions, encoded answers, events that are not JSON. `logprobs` spell an answer once more, token by
token, so they are taken out of answers that are looked through.

Not looked through: names of JSON members, numbers, pictures and sounds, and text that is split over several strings of
one body. It finds what people write by mistake; it is no wall against who wants to get a text through.

Status: alpha. Trusts: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..proxy.errors import AnswerRefusedError, GuardBlockedError, GuardTooLargeError, GuardUnreadableError
from ..proxy.filter import Filter
from .guard_stream import GuardedStream, without_logprobs
from .looking import at_once, in_turn, look_at, look_through
from .redaction import Rule, slice_for

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from ..config import GuardConfig
    from ..proxy.errors import GatewayError
    from ..proxy.exchange import Exchange
    from ..proxy.filter import Event
    from ..proxy.upstream.call import ResponseHead
    from .looking import Looking

_BODILESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))


class Guard(Filter):
    """Counts requests and answers that were blocked or could not be read, and what was taken out."""

    after = ("auth",)

    def __init__(self, config: GuardConfig) -> None:
        self.name = "guard"
        self.request_blocked = 0
        self.answer_blocked = 0
        self.unreadable = 0
        self.redacted = 0
        self._max_text = config.max_text
        self._up = [Rule(rule) for rule in config.rules if "request" in rule.on]
        self._down = [Rule(rule) for rule in config.rules if "answer" in rule.on]

    def on_request(self, ex: Exchange) -> Coroutine[Any, Any, None] | None:
        """Look through the request, at once where it is short, else in turn with others. Raises GuardBlockedError,
        GuardUnreadableError, GuardTooLargeError."""
        if ex.face.websocket:
            self.unreadable += 1
            raise GuardUnreadableError("Sessions are not looked into, so they are not let through here.")
        facts = ex.facts
        if not self._up or ex.face.handler is not None or facts is None or ex.head.method in _BODILESS:
            return None
        source = self._source(facts.body)
        if source is None:
            self.unreadable += 1
            raise GuardUnreadableError("This body is not JSON, so it cannot be looked through.")
        looking = look_through(self._up, source, self._max_text, self._judge_request, self._too_large)
        if len(source) > slice_for(self._up):
            return self._in_turn(ex, looking)
        self._respell(ex, at_once(looking))
        return None

    async def _in_turn(self, ex: Exchange, looking: Looking) -> None:
        self._respell(ex, await in_turn(looking))

    def _respell(self, ex: Exchange, changed: str | None) -> None:
        assert ex.facts is not None  # noqa: S101 - narrows for the type checker: it was looked through
        if changed is not None and not ex.facts.respell(changed.encode()):
            self.unreadable += 1
            raise GuardUnreadableError("This request holds what must be taken out, and cannot be changed.")
        ex.rough_prompt = None

    def _judge_request(self, rule: Rule) -> None:
        if rule.blocks:
            self.request_blocked += 1
            raise GuardBlockedError(f"The request holds what the rule '{rule.name}' does not allow.")
        self.redacted += 1

    def _too_large(self) -> GatewayError:
        self.unreadable += 1
        return GuardTooLargeError(f"More than {self._max_text} bytes of text cannot be looked through.")

    def _source(self, body: bytes) -> str | None:
        try:
            source = body.decode()
            msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return source


class AnswerGuard(Guard):
    """A guard with rules on answers, too: only such a one takes streams off the byte path."""

    def on_answer(self, ex: Exchange, head: ResponseHead, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        """Look through a whole answer, as through a request. Raises AnswerRefusedError."""
        if not body:
            return body
        if head.header(b"content-encoding") not in (None, b"identity"):
            raise self._refused("The answer is encoded, so it cannot be looked through.")
        source = self._source(body)
        if source is not None:
            plain = without_logprobs(body).decode()
            looking = look_through(self._down, plain, self._max_text, self._judge_answer, self._too_much)
        else:
            # Not JSON (a gateway's error page, a transcription): all of it is text.
            if len(body) > self._max_text:
                raise self._too_much()
            plain = body.decode("utf-8", "surrogateescape")
            looking = look_at(self._down, plain, self._judge_answer)
        if len(plain) > slice_for(self._down):
            return self._answer_in_turn(looking, plain)
        return _encoded(at_once(looking), plain)

    async def _answer_in_turn(self, looking: Looking, plain: str) -> bytes:
        return _encoded(await in_turn(looking), plain)

    def on_event(self, ex: Exchange, event: Event) -> Event:
        """Look through the next event. Raises AnswerRefusedError."""
        stream: GuardedStream | None = event.state.get(self)
        if stream is None:
            stream = event.state[self] = self._stream()
        event.raw = stream.feed(event.raw)
        return event

    def _stream(self) -> GuardedStream:
        return GuardedStream(self._down, self.judge, self._refused, self._max_text)

    def judge(self, found: list[Rule]) -> None:
        """Count what was taken out of an answer. Raises AnswerRefusedError for what blocks it."""
        for rule in found:
            self._judge_answer(rule)

    def _judge_answer(self, rule: Rule) -> None:
        if rule.blocks:
            self.answer_blocked += 1
            raise AnswerRefusedError(f"The answer holds what the rule '{rule.name}' does not allow.")
        self.redacted += 1

    def _too_much(self) -> AnswerRefusedError:
        return self._refused("The answer has more text than can be looked through.")

    def _refused(self, message: str) -> AnswerRefusedError:
        self.unreadable += 1
        return AnswerRefusedError(message)


def _encoded(changed: str | None, plain: str) -> bytes:
    return (plain if changed is None else changed).encode("utf-8", "surrogateescape")


def make_guard(config: GuardConfig) -> Guard:
    """The guard that these rules need."""
    return AnswerGuard(config) if any("answer" in rule.on for rule in config.rules) else Guard(config)
