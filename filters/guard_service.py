"""An operator's own guard: asked over HTTP whether texts may pass.

    POST url  {"id", "rule", "side", "key", "model", "texts": [...]}
    200       {"action": "allow"} | {"action": "block"} | {"action": "redact", "texts": [...]}

Whatever else it says or does is no verdict: another status, another shape, more than MOST_ANSWER bytes, nothing within
the time. Then the rule's `fail` decides. A service that fails is asked no more for a while (breaker.py), so that one
that hangs does not cost every request its whole time.

Not here: which texts there are, and what becomes of a verdict (guard.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
import structlog

from ..proxy.errors import GatewayError
from ..proxy.upstream.call import UpstreamRequest
from ..proxy.upstream.fetch import fetch
from .breaker import Breaker, BreakerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.guard import GuardHttp, GuardRule
    from ..proxy.upstream.call import Endpoint

    OpenService = Callable[[str, int, float], Endpoint]
    """Connections to the server of a URL: at most so many, opened within so many seconds. Whoever opens closes."""

MOST_ANSWER: Final = 4 * 1024 * 1024
RESTS: Final = BreakerSettings(failures=5, percent=50, window=10.0, open_for=5.0)
OK: Final = 200
log = structlog.get_logger("headgate")


class NoVerdictError(Exception):
    """The service did not say what may pass; the message says why, for the log."""


class Verdict(msgspec.Struct):
    """What a service answers."""

    action: Literal["allow", "block", "redact"]
    texts: list[str] | None = None


class Case(NamedTuple):
    """What is asked about, beside the texts."""

    id: str
    side: Literal["request", "answer"]
    key: str
    model: str


class GuardService:
    """Of one rule. Without `open_service` it is never asked. Counts `asked` and `failed`."""

    def __init__(self, rule: GuardRule, http: GuardHttp, open_service: OpenService | None, now: Callable[[], float]):
        self.rule = rule
        self.asked = 0
        self.failed = 0
        self._now = now
        self._seconds = http.timeout.total_seconds()
        self._breaker = Breaker(RESTS)
        self._target = (urlsplit(http.url).path or "/").encode("ascii")
        self._fields = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"headgate"),
        ]
        if http.api_key:
            self._fields.append((b"authorization", b"Bearer " + http.api_key.reveal().encode()))
        self._endpoint = open_service(http.url, http.concurrent, self._seconds) if open_service is not None else None

    async def judge(self, case: Case, texts: Sequence[str]) -> Verdict:
        """Its verdict; as many texts as were asked about, where it takes something out. Raises NoVerdictError.

        Cancelled, it leaves nothing under way."""
        began = self._now()
        if self._breaker.objection(began) is not None:
            raise NoVerdictError("it has failed, and is not asked for a while")
        mark = object()
        self._breaker.begin(mark, began)
        self.asked += 1
        try:
            verdict = await self._ask(case, texts)
        except (GatewayError, TimeoutError, msgspec.MsgspecError, ValueError) as error:
            self.failed += 1
            reason = str(error) or "it took too long"
            if self._breaker.fail(began, self._now()):
                log.warning("guard_away", rule=self.rule.name, reason=reason)
            raise NoVerdictError(reason) from error
        finally:
            if self._breaker.probe is mark:
                self._breaker.probe = None
        if self._breaker.succeed(began, self._now()):
            log.info("guard_back", rule=self.rule.name)
        return verdict

    async def aclose(self) -> None:
        """Close its connections."""
        if self._endpoint is not None:
            await self._endpoint.aclose()

    async def _ask(self, case: Case, texts: Sequence[str]) -> Verdict:
        assert self._endpoint is not None  # noqa: S101 - narrows for the type checker: it is built to be asked
        asked: dict[str, Any] = {**case._asdict(), "rule": self.rule.name, "texts": texts}
        # Not msgspec: texts may hold half a surrogate pair, which JSON can spell and UTF-8 cannot.
        request = UpstreamRequest(b"POST", self._target, self._fields, json.dumps(asked).encode())
        head, body = await fetch(self._endpoint, request, most=MOST_ANSWER, seconds=self._seconds)
        if head.status != OK:
            raise ValueError(f"status {head.status}")
        verdict = msgspec.json.decode(body, type=Verdict)
        if verdict.action == "redact" and len(verdict.texts or ()) != len(texts):
            raise ValueError(f"{len(verdict.texts or ())} texts for {len(texts)}")
        return verdict
