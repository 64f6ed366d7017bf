"""From an exchange to its two records: `open` at admission, `done` at the end, and what it used and cost in between.

The one place that decides what an exchange is charged: what the provider reported; else, where text was delivered, an
estimate marked as one; else nothing. A client that left, or a stream that broke, pays for what was delivered, also
where the provider had reported something earlier.

Not here: writing (spool.py), storing (control/events/), prices (price_lookup.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ..errors import OverloadError
from .estimate import BYTES_PER_TOKEN, delivered_tokens
from .record import Done, Opened, encode
from .spool import SpoolFullError
from .usage import MOST_SECONDS, NO_USAGE, Usage, add_usage

if TYPE_CHECKING:
    from ..dialect import AnswerFacts
    from ..exchange import Exchange
    from ..plan import Target
    from .estimate import Estimator
    from .prices import Price
    from .record import Forgotten, Issued, Reserved, Spent
    from .spool import Spool

BYTES_PER_SECOND: Final = 1000
"""Of sound in a request whose length nobody knows: Opus at 8 kbit/s, the tightest that speech is understood at."""
SHORT_BODY: Final = 8192
"""Bytes of a request that needs no reading to be weighed: an image or a file in it would be a tiny one."""


class Ledger:
    """Writes the records of one worker. `spool` None keeps none (tests, tools)."""

    __slots__ = ("_held", "_worker", "estimator", "rows", "spool")

    def __init__(self, spool: Spool | None, estimator: Estimator, worker: str = "0") -> None:
        self.spool = spool
        self._held = b""
        self._worker = worker
        self.estimator = estimator
        self.rows = 0

    def admit(self, ex: Exchange) -> None:
        """The exchange exists from now on. Raises OverloadError when the spool is full and its policy is to refuse."""
        ex.admitted = True
        spool = self.spool
        if spool is None:
            return
        principal = ex.principal
        try:
            spool.append(
                encode(
                    Opened(
                        ex.id,
                        ex.wall,
                        self._worker,
                        principal.name,
                        principal.team or "",
                        principal.owner or "",
                        ex.face.name,
                        client_request_id=ex.client_request_id.decode("ascii") if ex.client_request_id else "",
                    )
                )
            )
        except SpoolFullError:
            ex.admitted = False
            raise OverloadError(
                "The gateway cannot record this request: its ledger is full.", retry_after=5.0
            ) from None

    def write(self, record: Issued | Forgotten | Reserved | Spent) -> None:
        """What became of an object at a provider, or of somebody's money."""
        if self.spool is not None:
            self.spool.append(encode(record))

    def hold(self, record: Spent) -> None:
        """As `write`, for what a filter has to say when an exchange is over: it goes out with the `done` that follows
        at once, or with `flush`."""
        if self.spool is not None:
            self._held += encode(record)

    def flush(self) -> None:
        """Write what is held: no `done` follows."""
        if self._held and self.spool is not None:
            held, self._held = self._held, b""
            self.spool.append(held)

    def settle(self, ex: Exchange, said: AnswerFacts) -> None:
        """Set `ex.usage` and `ex.cost_usd` from the provider's report, or from what was delivered; once."""
        attempt = ex.attempt
        if ex.usage is not None or attempt is None:
            return
        target, usage = attempt.target, said.usage
        price = ex.graph.price(target)
        if usage is not None and said.usage_is_final:
            if ex.rough_prompt is not None:
                self.estimator.observe(target.model, ex.rough_prompt, usage.prompt_tokens)
        else:
            usage = self._usage(ex, target.model, said, price)
        ex.usage = usage
        if price is not None:
            cost = price.cost(usage)
            ex.cost_usd = cost + ex.lost_cost_usd if cost is not None else None
            ex.cost_source = price.source

    @staticmethod
    def add(ex: Exchange, usage: Usage) -> None:
        """One more of the answers in an exchange that has several: each at its own price, for steps go by the prompt of
        each. Once the price of one is unknown, that of all is."""
        attempt = ex.attempt
        if attempt is None:
            return
        price = ex.graph.price(attempt.target)
        cost = price.cost(usage) if price is not None else None
        if ex.usage is None:
            ex.usage, ex.cost_usd = usage, cost
        else:
            ex.usage = add_usage(ex.usage, usage)
            ex.cost_usd = ex.cost_usd + cost if ex.cost_usd is not None and cost is not None else None
        ex.cost_source = price.source if price is not None else ""

    def charge_prompt(self, ex: Exchange, target: Target) -> None:
        """An attempt was given up for a faster one: its provider has read the prompt, and will charge for that much at
        least."""
        price, facts = ex.graph.price(target), ex.facts
        if price is None or facts is None:
            return
        prompt = ex.rough_prompt or self.estimator.estimate_prompt(target.model, facts.body)
        cost = price.cost(Usage(prompt.tokens, 0, source="estimated")) or 0.0
        ex.lost_cost_usd += cost
        if ex.cost_usd is not None:  # an answer that came in one piece was settled before it was the answer
            ex.cost_usd += cost

    @staticmethod
    def unsettle(ex: Exchange) -> None:
        """Another answer takes the place of the one that was settled."""
        ex.usage = ex.cost_usd = None
        ex.cost_source = ""

    def _usage(self, ex: Exchange, model: str, said: AnswerFacts, price: Price | None) -> Usage:
        """Where no report is the last word: what was delivered, or spoken."""
        facts, usage = ex.facts, said.usage
        delivered = delivered_tokens(said.text_bytes, said.text_events)
        if usage is not None:
            if ex.rough_prompt is not None:
                self.estimator.observe(model, ex.rough_prompt, usage.prompt_tokens)
            return replace(usage, completion_tokens=max(delivered, usage.completion_tokens), source="estimated")
        if facts is None:
            return NO_USAGE
        if not delivered:
            return _spoken(facts.characters, price) if facts.characters and price is not None else NO_USAGE
        prompt = ex.rough_prompt or self.estimator.estimate_prompt(model, facts.body)
        return Usage(prompt.tokens, delivered, source="estimated")

    def prompt_tokens(self, ex: Exchange) -> int:
        """The estimated prompt; 0 for what has none."""
        prompt, facts = ex.rough_prompt, ex.facts
        if prompt is None:
            if facts is None or not facts.body:
                return 0
            prompt = ex.rough_prompt = self.estimator.estimate_prompt(ex.model, facts.body)
        return prompt.tokens

    def estimate_tokens(self, ex: Exchange) -> int:
        """What a call may use in all: the estimated prompt and the output it is allowed. 0 for what has no prompt."""
        facts = ex.facts
        if facts is None or not facts.body:
            return 0
        prompt = ex.rough_prompt
        if prompt is None:
            prompt = ex.rough_prompt = self.estimator.estimate_prompt(ex.model, facts.body)
        return prompt.tokens + (facts.max_tokens or self.estimator.assume_output_tokens) * facts.n

    def weigh(self, ex: Exchange) -> int:
        """As `estimate_tokens`, but only as well as sharing calls out over endpoints needs it."""
        facts = ex.facts
        if facts is None or not facts.body:
            return 0
        prompt = ex.rough_prompt
        if prompt is not None:
            tokens = prompt.tokens
        elif len(facts.body) > SHORT_BODY:
            return self.estimate_tokens(ex)
        else:
            tokens = len(facts.body) // BYTES_PER_TOKEN
        return tokens + (facts.max_tokens or self.estimator.assume_output_tokens) * facts.n

    def estimate_cost(self, ex: Exchange) -> float | None:
        """What a stream that begins now may cost: the estimated prompt and the output it is allowed. None:
        price unknown."""
        facts, attempt = ex.facts, ex.attempt
        price = ex.graph.price(attempt.target) if attempt is not None else None
        if facts is None or attempt is None or price is None:
            return None
        prompt = ex.rough_prompt = self.estimator.estimate_prompt(attempt.target.model, facts.body)
        output = (facts.max_tokens or self.estimator.assume_output_tokens) * facts.n
        return price.cost(Usage(prompt.tokens, output, source="estimated"))

    def foresee(self, ex: Exchange, target: Target, output: int | None) -> float | None:
        """US dollars that the exchange may cost at `target`, with so many tokens for its answer where it sets no limit
        itself; None for `output`: its prompt alone. None: price unknown.

        What its price has no rate for is left out: the answer of an embedding, the prompt of speech."""
        price, facts = ex.graph.price(target), ex.facts
        if price is None or facts is None:
            return None
        flat, completion = price.flat, 0
        if output is not None:
            completion = (facts.max_tokens or output) * facts.n
        if flat is not None:
            of_input, of_output = flat
            prompt = ex.rough_prompt
            tokens = prompt.tokens if prompt is not None else self.prompt_tokens(ex)
            return (of_input * tokens + of_output * completion) / 1_000_000
        rates = price.rates
        seconds = 0.0
        if rates.audio_hour is not None:
            seconds = min(_body_bytes(ex) / BYTES_PER_SECOND, MOST_SECONDS)
        return rates.cost(
            Usage(
                self.prompt_tokens(ex) if rates.input is not None else 0,
                completion if rates.output is not None else 0,
                source="estimated",
                audio_seconds=seconds,
                characters=facts.characters if rates.million_characters is not None else 0,
            )
        )

    def close(self, ex: Exchange, now: float) -> Done | None:
        """Write the `done` record, and what is held; once for each admitted exchange. Gives that record, where records
        are kept."""
        self.rows += 1
        spool = self.spool
        if spool is None:
            return None
        principal = ex.principal
        attempt = ex.attempt
        usage = ex.usage or NO_USAGE
        duration = now - ex.started
        if attempt is None:
            provider = model = request_id = ""
            upstream_ms = overhead_ms = None
        else:
            target = attempt.target
            provider = target.cluster.name
            model = target.model
            request_id = attempt.request_id
            upstream = ex.upstream_seconds(now)
            upstream_ms = _ms(upstream)
            overhead_ms = _ms(duration - upstream) if duration > upstream else 0.0
        # By position, in the order of the fields: by name, each is looked for among all, at four times the cost. The
        # last ten apart: arguments of a call that has more than 30 are put into a list one by one.
        done = Done(
            ex.id,
            ex.wall,
            ex.status,
            ex.outcome,
            ex.error.code if ex.error is not None else "",
            principal.name,
            principal.team or "",
            principal.owner or "",
            ex.face.name,
            ex.route.name if ex.route is not None else "",
            ex.model,
            provider,
            model,
            request_id,
            ex.client_request_id.decode("ascii") if ex.client_request_id else "",
            ex.facts is not None and ex.facts.stream,
            len(ex.attempts),
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
            usage.audio_input_tokens,
            usage.audio_output_tokens,
            usage.source,
            usage.service_tier or "",
            ex.cost_usd,
            ex.cost_source,
            _ms(duration),
            *(
                _ms(ex.first_token_at - ex.started) if ex.first_token_at is not None else None,
                upstream_ms,
                overhead_ms,
                ex.bytes_in,
                ex.bytes_out,
                ex.graph.version,
                self._worker,
                usage.audio_seconds,
                usage.characters,
                ex.cache.verdict if ex.cache is not None else "",
            ),
        )
        line = encode(done)
        if self._held:
            line = self._held + line
            self._held = b""
        spool.append(line)
        return done


def _spoken(characters: int, price: Price) -> Usage:
    """Speech that is charged by the text that was sent; nobody reports it, so it is an estimate, if an exact one."""
    if price.rates.million_characters is None:
        return NO_USAGE
    return Usage(source="estimated", characters=characters)


def _body_bytes(ex: Exchange) -> int:
    """Of a request that may still be arriving."""
    announced = ex.head.header(b"content-length")
    if announced is not None and announced.isdigit():
        return int(announced)
    return ex.bytes_in


def _ms(seconds: float) -> float:
    """Milliseconds to the microsecond; `round` costs three times as much."""
    return int(seconds * 1e6 + 0.5) / 1000
