"""How much each caller may: requests and tokens in a time, and requests at once.

A call is counted when it comes. Its tokens are not known then, so an estimate is set aside, and corrected when the call
is over, by whatever way, with what it really used: a client that left pays for what was delivered to it, or for its
prompt where nothing was yet. So callers that send at the same time cannot spend the same tokens twice; what answers
overshoot their estimate by is made up for before the next call is let in.

Not here: who a caller is (callers.py), the arithmetic (stores/meters.py), where it is kept (stores/memory.py), counting
in a server (rate_limit_remote.py), limits that protect a provider or this gateway (`providers.*.limits`).

Status: stable. Trusts: nothing for requests; upstream for the tokens it reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..proxy.errors import OverLimitError, RateLimitError
from ..proxy.filter import Filter
from .callers import SCOPES
from .rate_limit_fields import PREFIX, limit_fields
from .stores.rules import Kind, Refused, Rule, tightest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config import RateLimitConfig
    from ..proxy.edge.downstream import Headers
    from ..proxy.exchange import Exchange
    from ..proxy.upstream.call import ResponseHead
    from .stores.rules import Granted, Limits, Report, Store, What


class RateLimiting(Filter):
    """What does not depend on where it is counted: whose call it is, and what the answer says of it.

    `monotonic` gives seconds, `estimate` the tokens that a call may use.
    """

    after = ("auth",)

    def __init__(
        self, config: RateLimitConfig, *, monotonic: Callable[[], float], estimate: Callable[[Exchange], int]
    ) -> None:
        self.name = "rate_limit"
        self.admitted = 0
        self.refused = 0
        self._rules = rules = rules_of(config)
        self._monotonic = monotonic
        self._estimate = estimate
        self._token_rules = [rule for rule in rules if rule.kind.what == "tokens"]
        self._most_tokens = min((rule.limit for rule in self._token_rules), default=0)
        scopes = list(dict.fromkeys(rule.kind.per for rule in rules))
        self._scopes = [tuple(SCOPES[name] for name in per) for per in scopes]
        self._scope_of_rule = [scopes.index(rule.kind.per) for rule in rules]
        self.reads_body = bool(self._token_rules) or any("model" in per for per in scopes)

    def _asked(self, ex: Exchange) -> tuple[list[str], int]:
        """The caller for each rule, and the tokens to set aside. Raises OverLimitError."""
        tokens = 0
        if self._token_rules:
            tokens = self._estimate(ex)
            if tokens > self._most_tokens:
                self.refused += 1
                raise self._too_large(tokens)
        callers = ["\0".join([scope(ex) for scope in scopes]) for scopes in self._scopes]
        return [callers[at] for at in self._scope_of_rule], tokens

    def _decide(self, ex: Exchange, result: Granted[Any] | Refused, now: int) -> None:
        """Let it pass, or raise RateLimitError."""
        if isinstance(result, Refused):
            self.refused += 1
            raise _refusal(result, now)
        self.admitted += 1
        ex.state.setdefault(RateLimiting, {})[self.name] = result

    def _to_settle(self, ex: Exchange) -> Granted[Any] | None:
        """What a call that is over still holds."""
        taken: Mapping[str, Granted[Any]] | None = ex.state.get(RateLimiting)
        granted = taken.get(self.name) if taken is not None else None
        return granted if granted is not None and granted.holds else None

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """Say how it stands, instead of what the provider says of our account there. With several such filters, the
        least that is left in any."""
        taken: Mapping[str, Granted[Any]] | None = ex.state.get(RateLimiting)
        if taken is None or (isinstance(ex.error, RateLimitError) and ex.error.fields):
            return
        requests: Report | None = None
        tokens: Report | None = None
        for granted in taken.values():
            requests = tightest(requests, granted.requests)
            tokens = tightest(tokens, granted.tokens)
        fields = _fields(requests, tokens, int(self._monotonic() * 1e6))
        if fields:
            head.headers[:] = [field for field in head.headers if not field[0].startswith(PREFIX)]
            head.headers += fields

    def _too_large(self, tokens: int) -> OverLimitError:
        rule = min(self._token_rules, key=lambda rule: rule.limit)
        return OverLimitError(
            f"This request may use {tokens} tokens, and the limit is {rule}. Shorten it, or set a lower max_tokens."
        )


class RateLimit(RateLimiting):
    """Admits what its limits have room for, and answers 429 to what is more. `store` keeps the counts under `place`,
    this filter's name, in this process or beside it."""

    def __init__(
        self,
        config: RateLimitConfig,
        *,
        place: str,
        store: Store,
        monotonic: Callable[[], float],
        estimate: Callable[[Exchange], int],
    ) -> None:
        super().__init__(config, monotonic=monotonic, estimate=estimate)
        self.crowded = 0  # calls that were counted together with those of strangers, for want of room
        self._limits: Limits = store.open(place, self._rules)

    def on_request(self, ex: Exchange) -> None:
        """Count it under every limit, or under none and raise RateLimitError."""
        callers, tokens = self._asked(ex)
        now = int(self._monotonic() * 1e6)
        result = self._limits.take(callers, tokens, now)
        self.crowded = self._limits.crowded
        self._decide(ex, result, now)

    def on_done(self, ex: Exchange) -> None:
        """Give slots back, and correct the tokens."""
        granted = self._to_settle(ex)
        if granted is not None:
            self._limits.settle(granted, used(ex), int(self._monotonic() * 1e6))


def rules_of(config: RateLimitConfig) -> list[Rule]:
    """Each number of the config, as a rule."""
    rules: list[Rule] = []
    for limit in config.written:
        for name, number in limit.numbers.items():
            what, _, unit = name.partition("_per_")
            kind = Kind(cast("What", what), limit.per, unit, limit.refill == "continuous" and what != "concurrent")
            rules.append(Rule(kind, number, limit.on_store_failure))
    return rules


def used(ex: Exchange) -> int:
    """Tokens of a call that is over."""
    usage = ex.usage
    if usage is not None and usage.source != "none":
        return usage.prompt_tokens + usage.completion_tokens
    if ex.outcome == "cancelled" and ex.attempts and ex.rough_prompt is not None:
        return ex.rough_prompt.tokens
    return 0


def _refusal(refused: Refused, now: int) -> RateLimitError:
    rule, wait = refused.rule, refused.wait / 1e6
    if rule.kind.what == "concurrent":
        return RateLimitError(f"Rate limit reached: {rule}. Try again when one of them is over.", retry_after=wait)
    report = refused.report
    fields = limit_fields(rule.kind.what.encode(), report, now)
    return RateLimitError(
        f"Rate limit reached: {rule}, {report.left} left. Try again in {-(-refused.wait // 1_000_000)} s.",
        retry_after=wait,
        fields=fields,
    )


def _fields(requests: Report | None, tokens: Report | None, now: int) -> Headers:
    fields: Headers = []
    if requests is not None:
        fields += limit_fields(b"requests", requests, now)
    if tokens is not None:
        fields += limit_fields(b"tokens", tokens, now)
    return fields
