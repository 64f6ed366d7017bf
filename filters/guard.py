"""Looks for what must not pass in the texts of requests and answers: blocks it, or puts a name in its place.

Every string value of a JSON body is looked through, but those that are no text (looking.py: roles, ids, types, encoded
data). What is taken out is replaced in place and no other byte changes. The texts of a streamed answer are
followed through its events, each by a window (redaction.py) that holds back what is undecided; what is held is given
out when the choice, or the stream, ends, and never where it is cut. What cannot be looked into is refused: other bodies
than JSON objects, sessions, encoded answers, events that are not JSON. `logprobs` spell an answer once more, token by
token, so they are taken out of answers that are looked through. A rule may ask a service of the operator's
(guard_service.py), which sees what the other rules have left.

Not looked through: names of JSON members, numbers, pictures and sounds, and text that is split over several strings of
one body. It finds what people write by mistake; it is no wall against who wants to get a text through.

Status: alpha. Trusts: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..proxy.clock import monotonic_time
from ..proxy.errors import (
    AnswerRefusedError,
    AnswerUnjudgedError,
    GuardAwayError,
    GuardBlockedError,
    GuardTooLargeError,
    GuardUnreadableError,
)
from ..proxy.filter import Filter
from .guard_service import RESTS, Case, GuardService, NoVerdictError
from .guard_stream import GuardedStream, without_logprobs
from .json_strings import change, spell
from .looking import all_texts, at_once, in_turn, look_at, look_through
from .redaction import Rule, slice_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any, NoReturn

    from ..config import GuardConfig
    from ..proxy.errors import GatewayError
    from ..proxy.exchange import Exchange
    from ..proxy.filter import Event
    from ..proxy.upstream.call import ResponseHead
    from .guard_service import OpenService
    from .looking import Looking

_BODILESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))


class Guard(Filter):
    """Counts requests and answers that were blocked or could not be read, what was taken out, and services without a
    verdict."""

    after = ("auth",)

    def __init__(
        self,
        config: GuardConfig,
        *,
        open_service: OpenService | None = None,
        now: Callable[[], float] = monotonic_time,
    ) -> None:
        self.name = "guard"
        self.request_blocked = 0
        self.answer_blocked = 0
        self.unreadable = 0
        self.redacted = 0
        self.no_verdict = 0
        """Times that a service did not say what may pass."""
        self.unjudged = 0
        """Of these, those where that let something pass."""
        self._max_text = config.max_text
        found = [rule for rule in config.rules if rule.http is None]
        self._up = [Rule(rule) for rule in found if "request" in rule.on]
        self._down = [Rule(rule) for rule in found if "answer" in rule.on]
        self._services = [
            GuardService(rule, rule.http, open_service, now) for rule in config.rules if rule.http is not None
        ]
        self._judging_requests = [one for one in self._services if "request" in one.rule.on]
        self._judging_answers = [one for one in self._services if "answer" in one.rule.on]
        self._refuses_streams = any(one.rule.streams == "refuse" for one in self._judging_answers)

    def on_request(self, ex: Exchange) -> Coroutine[Any, Any, None] | None:
        """Look through the request, at once where it is short, else in turn with others. Raises GuardBlockedError,
        GuardUnreadableError, GuardTooLargeError."""
        if ex.face.websocket:
            self.unreadable += 1
            raise GuardUnreadableError("Sessions are not looked into, so they are not let through here.")
        facts = ex.facts
        if ex.face.handler is not None or facts is None or ex.head.method in _BODILESS:
            return None
        if facts.stream and self._refuses_streams:
            self.unreadable += 1
            raise GuardUnreadableError("Answers are judged whole here, so they are not streamed: ask without 'stream'.")
        if not self._up and not self._judging_requests:
            return None
        source = self._source(facts.body)
        if source is None:
            self.unreadable += 1
            raise GuardUnreadableError("This body is not JSON, so it cannot be looked through.")
        looking = look_through(self._up, source, self._max_text, self._judge_request, self._too_large)
        if self._judging_requests or len(source) > slice_for(self._up):
            return self._in_turn(ex, looking, source)
        self._respell(ex, at_once(looking))
        return None

    async def _in_turn(self, ex: Exchange, looking: Looking, source: str) -> None:
        changed = await in_turn(looking)
        if self._judging_requests:
            case = Case(ex.id, "request", ex.principal.name, ex.model)
            known = source if changed is None else changed
            judged = await self._judged(self._judging_requests, case, known, self._too_large)
            changed = judged if judged is not source else None
        self._respell(ex, changed)

    async def _judged(
        self, services: Sequence[GuardService], case: Case, source: str, too_large: Callable[[], GatewayError]
    ) -> str:
        """A JSON text as the services leave it, each of which sees what the one before it has left."""
        for service in services:
            found = await in_turn(all_texts(source, self._max_text, too_large))
            texts = await self._verdict(service, case, [one.text for one in found]) if found else None
            if texts is not None:
                places = [(one.start, one.end) for one in found]
                source = change(source, [(*place, spell(text)) for place, text in zip(places, texts, strict=True)])
        return source

    async def _verdict(self, service: GuardService, case: Case, texts: Sequence[str]) -> Sequence[str] | None:
        """Other texts in the place of these; None: they may pass as they are. Raises where nothing may."""
        name, is_request = service.rule.name, case.side == "request"
        try:
            verdict = await service.judge(case, texts)
        except NoVerdictError as error:
            self.no_verdict += 1
            if service.rule.fail == "open":
                self.unjudged += 1
                return None
            message, why = f"The rule '{name}' cannot be asked now.", f"{name}: {error}"
            if is_request:
                raise GuardAwayError(message, retry_after=RESTS.open_for, detail=why) from error
            raise AnswerUnjudgedError(message, detail=why) from error
        if verdict.action == "allow":
            return None
        if verdict.action == "block":
            self._block(name, is_request=is_request)
        self.redacted += sum(old != new for old, new in zip(texts, verdict.texts or (), strict=True))
        return verdict.texts

    def _block(self, name: str, *, is_request: bool) -> NoReturn:
        if is_request:
            self.request_blocked += 1
            raise GuardBlockedError(f"The request holds what the rule '{name}' does not allow.")
        self.answer_blocked += 1
        raise AnswerRefusedError(f"The answer holds what the rule '{name}' does not allow.")

    async def aclose(self) -> None:
        """Close the connections to its services."""
        for service in self._services:
            await service.aclose()

    def _respell(self, ex: Exchange, changed: str | None) -> None:
        assert ex.facts is not None  # noqa: S101 - narrows for the type checker: it was looked through
        if changed is not None and not ex.facts.respell(changed.encode()):
            self.unreadable += 1
            raise GuardUnreadableError("This request holds what must be taken out, and cannot be changed.")
        ex.rough_prompt = None

    def _judge_request(self, rule: Rule) -> None:
        if rule.blocks:
            self._block(rule.name, is_request=True)
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
        if self._judging_answers or len(plain) > slice_for(self._down):
            return self._answer_in_turn(ex, looking, plain, is_json=source is not None)
        changed = at_once(looking)
        return _encoded(plain if changed is None else changed)

    async def _answer_in_turn(self, ex: Exchange, looking: Looking, plain: str, *, is_json: bool) -> bytes:
        changed = await in_turn(looking)
        plain = plain if changed is None else changed
        if self._judging_answers:
            case = Case(ex.id, "answer", ex.principal.name, ex.model)
            if is_json:
                plain = await self._judged(self._judging_answers, case, plain, self._too_much)
            else:
                for service in self._judging_answers:
                    texts = await self._verdict(service, case, [plain])
                    plain = texts[0] if texts is not None else plain
        return _encoded(plain)

    def on_event(self, ex: Exchange, event: Event) -> Event:
        """Look through the next event. Raises AnswerRefusedError."""
        if self._refuses_streams:  # it was not asked for, and comes all the same
            raise self._refused("Answers are judged whole here, and this one is a stream.")
        if not self._down:
            return event
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
            self._block(rule.name, is_request=False)
        self.redacted += 1

    def _too_much(self) -> AnswerRefusedError:
        return self._refused("The answer has more text than can be looked through.")

    def _refused(self, message: str) -> AnswerRefusedError:
        self.unreadable += 1
        return AnswerRefusedError(message)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def make_guard(
    config: GuardConfig, *, open_service: OpenService | None = None, now: Callable[[], float] = monotonic_time
) -> Guard:
    """The guard that these rules need. Without `open_service` it is only looked at."""
    kind = AnswerGuard if any("answer" in rule.on for rule in config.rules) else Guard
    return kind(config, open_service=open_service, now=now)
