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
from .callers import caller_of
from .rate_limit_fields import (
    LIMIT,
    REMAINING,
    RESET,
    duration,
    is_kept,
    limit_fields,
)
from .stores.rules import Kind, Refused, Report, Rule, tightest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import RateLimitConfig
    from ..proxy.edge.downstream import Headers
    from ..proxy.exchange import Exchange
    from ..proxy.upstream.call import ResponseHead
    from .stores.rules import Counted, Granted, Limits, Store, What

Standing = tuple[Report | None, Report | None]
"""How it stands with requests and with tokens."""


class RateLimiting(Filter):
    """What does not depend on where it is counted: whose call it is, and what the answer says of it.

    `monotonic` gives seconds, `estimate` the tokens that a call may use. In the state of an exchange stands what each
    filter has granted it, and under this class what the answer says by now: what the filter said that stands there, or
    the least of several.
    """

    after = ("auth",)

    def __init__(
        self, config: RateLimitConfig, *, monotonic: Callable[[], float], estimate: Callable[[Exchange], int]
    ) -> None:
        self.name = "rate_limit"
        self.admitted = 0
        self.refused = 0
        self._rules = rules = rules_of(config)
        self._granted = object()
        """Under which an exchange has what this filter granted it."""
        self._monotonic = monotonic
        self._token_rules = [rule for rule in rules if rule.kind.what == "tokens"]
        self._estimate = estimate if self._token_rules else _nothing
        self._most_tokens = min((rule.limit for rule in self._token_rules), default=0)
        scopes = list(dict.fromkeys(rule.kind.per for rule in rules))
        self._callers = [caller_of(per) for per in scopes]
        self._scope_of_rule = [scopes.index(rule.kind.per) for rule in rules]
        self.reads_body = bool(self._token_rules) or any("model" in per for per in scopes)

    def _tokens(self, ex: Exchange) -> int:
        """To set aside. Raises OverLimitError."""
        tokens = self._estimate(ex)
        if tokens > self._most_tokens:
            raise self._too_large(tokens)
        return tokens

    def _callers_of(self, ex: Exchange) -> list[str]:
        """The caller for each rule."""
        callers = [caller(ex) for caller in self._callers]
        return [callers[at] for at in self._scope_of_rule]

    def _decide(self, ex: Exchange, result: Granted[Any] | Refused, now: int) -> None:
        """Let it pass, or raise RateLimitError."""
        if isinstance(result, Refused):
            self.refused += 1
            ex.state[RateLimiting] = None, None
            raise _refusal(result, now)
        self.admitted += 1
        ex.state[self._granted] = result

    def _to_settle(self, ex: Exchange) -> Granted[Any] | None:
        """What a call that is over still holds."""
        granted: Granted[Any] | None = ex.state.get(self._granted)
        return granted if granted is not None and granted.holds else None

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """Say how it stands, instead of what the provider says of our account there. With several such filters, the
        least that is left in any."""
        if isinstance(ex.error, RateLimitError) and ex.error.fields:
            return
        requests, tokens = self._standing(ex)
        told: RateLimiting | Standing | None = ex.state.get(RateLimiting)
        if told is not None:
            below = told if isinstance(told, tuple) else told._standing(ex)
            requests, tokens = tightest(requests, below[0]), tightest(tokens, below[1])
        ex.state[RateLimiting] = requests, tokens
        fields = _fields(requests, tokens, int(self._monotonic() * 1e6))
        if fields:
            head.headers = [field for field in head.headers if is_kept[field[0]]] + fields

    def _standing(self, ex: Exchange) -> Standing:
        granted: Granted[Any] | None = ex.state.get(self._granted)
        return (granted.requests, granted.tokens) if granted is not None else (None, None)

    def _too_large(self, tokens: int) -> OverLimitError:
        self.refused += 1
        rule = min(self._token_rules, key=lambda rule: rule.limit)
        return OverLimitError(
            f"This request may use {tokens} tokens, and the limit is {rule}. Shorten it, or set a lower max_tokens."
        )


class RateLimit(RateLimiting):
    """Admits what its limits have room for, and answers 429 to what is more. `store` keeps the counts under `place`,
    this filter's name, in this process or beside it.

    Nearly every call is counted by `Limits.count`, is the only one of its exchange, and is told in three fields each.
    For these each step is one straight function, that leaves for the general one at the first thing that is unlike.
    What such a call was granted stands in the state of its exchange under the filter itself.
    """

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
        self._count, self._recount = self._limits.count, self._limits.recount
        self._caller = self._callers[0] if len(self._callers) == 1 else _nobody
        """Of all rules; where these have several, none that `Limits.count` would know."""
        numbers = {rule.kind.what: rule.limit for rule in self._rules}
        self._numbers = numbers.get("requests"), numbers.get("tokens")
        self._told = [
            ((LIMIT % what, b"%d" % number), REMAINING % what, RESET % what, at)
            for what, number, at in zip((b"requests", b"tokens"), self._numbers, (0, 2), strict=True)
            if number is not None
        ]
        """What stands in an answer, and from where on in `Counted` the numbers are."""

    def on_request(self, ex: Exchange) -> None:
        """Count it under every limit, or under none and raise RateLimitError."""
        tokens = self._estimate(ex)
        now = int(self._monotonic() * 1e6)
        counted = self._count(self._caller(ex), tokens, now)
        if counted is not None:
            self.admitted += 1
            ex.state[self] = counted
            return
        if tokens > self._most_tokens:
            raise self._too_large(tokens)
        limits = self._limits
        result = limits.take(self._callers_of(ex), tokens, now)
        self.crowded = limits.crowded
        self._decide(ex, result, now)

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """As `RateLimiting`."""
        state = ex.state
        counted: Counted | None = state.get(self)
        if counted is None or RateLimiting in state:
            RateLimiting.on_response(self, ex, head)
            return
        state[RateLimiting] = self
        now = int(self._monotonic() * 1e6)
        fields: Headers = []
        for limit, remaining, reset, at in self._told:
            fields += (limit, (remaining, b"%d" % counted[at]), (reset, duration(counted[at + 1] - now)))
        if fields:
            head.headers = [field for field in head.headers if is_kept[field[0]]] + fields

    def on_done(self, ex: Exchange) -> None:
        """Give slots back, and correct the tokens."""
        counted: Counted | None = ex.state.get(self)
        if counted is None:
            granted = self._to_settle(ex)
            if granted is not None:
                self._limits.settle(granted, used(ex), int(self._monotonic() * 1e6))
            return
        usage = ex.usage
        tokens = usage.prompt_tokens + usage.completion_tokens if usage is not None else 0
        self._recount(counted, tokens or used(ex))

    def _standing(self, ex: Exchange) -> Standing:
        counted: Counted | None = ex.state.get(self)
        if counted is None:
            return super()._standing(ex)
        requests, tokens = self._numbers
        return (
            Report(requests, counted[0], counted[1]) if requests is not None else None,
            Report(tokens, counted[2], counted[3]) if tokens is not None else None,
        )


def _nothing(ex: Exchange) -> int:
    return 0


def _nobody(ex: Exchange) -> str:
    return ""


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
