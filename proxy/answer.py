"""The committed answer, on its way down: nothing of it is taken back, and nothing is made up.

A stream goes down event by event as it comes. If it ends any other way than by its own terminal event, by the
provider's own error event, or by a clean end with a finish for every choice, it was cut: the client gets one error
event and no `[DONE]`, or, where half an event has already gone down, a closed connection. Bodies that are not streams
of events are relayed as they are and a cut closes the connection.

What the exchange used is settled here, where the last of its text is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .accounting.prices import format_usd
from .errors import BrokenAnswerError, GatewayError
from .headers import to_downstream
from .replies import NO_RETRY
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    from .dialect import StreamReader
    from .dispatch import Attempt, WholeAnswer
    from .edge.downstream import Headers
    from .run import Run

CONFIG_ORDER = (b"x-headgate-strategy", b"config-order")
_encode = msgspec.json.encode


class Answer:
    """One answer and its client. `reader` None: not a stream of events."""

    __slots__ = ("_attempt", "_reader", "_run", "_settled")

    def __init__(self, run: Run, attempt: Attempt, reader: StreamReader | None) -> None:
        self._run = run
        self._attempt = attempt
        self._reader = reader
        self._settled = False
        if reader is not None:
            # Set before the first byte is read: a whole stream may come in one piece.
            reader.before_terminal = self._comment if self._wants_comment() else None
            reader.rewrite = self._rewrite if run.chain.events else None

    # -- whole

    def send(self, whole: WholeAnswer) -> None:
        """A collected answer, in one piece with everything we know about it."""
        run, body = self._run, whole.body
        ex = run.ex
        status = whole.head.status
        if whole.facts is not None:
            run.engine.ledger.settle(ex, whole.facts.usage, whole.facts.text_bytes)
        self._settled = True
        head = self._head(whole.head)
        head.headers += self._usage_fields()
        head.headers += self._timing_fields()
        if ex.error is not None and len(ex.attempts) > 1:
            head.headers.append(NO_RETRY)
        if run.dispatch is not None:
            run.dispatch.end_attempt(self._attempt, self._attempt.error)
        if not run.respond(head):
            return
        for observe in run.chain.observers:
            observe(ex, body)
        ex.bytes_out = len(body)
        failed = status >= 400 or ex.error is not None
        run.finish("upstream_error" if failed else "ok", status)
        run.downstream.reply(head.status, head.headers, body)

    # -- as it comes

    def begin(self, taken: bytes) -> None:
        """The head goes down with the first bytes."""
        run, reader = self._run, self._reader
        upstream = self._attempt.head
        assert upstream is not None  # noqa: S101 - an attempt commits after its head
        head = self._head(upstream)
        length: int | None = None
        if reader is None:
            announced = upstream.header(b"content-length")
            length = int(announced) if announced is not None else None
        else:
            if upstream.header(b"cache-control") is None:
                head.headers.append((b"cache-control", b"no-cache"))
            cost = run.engine.ledger.estimate_cost(run.ex)
            if cost is not None:
                head.headers.append((b"x-headgate-cost-estimate-usd", format_usd(cost).encode()))
        head.headers += self._timing_fields()
        if not run.respond(head):
            return
        run.downstream.start(head.status, head.headers, length)
        if reader is not None and reader.finished:
            self.complete(taken)
        elif taken:
            self._down(taken)

    def on_data(self, data: bytes) -> None:
        """More of the body."""
        if self._run.done:
            return
        reader = self._reader
        if reader is None:
            self._down(data)
            return
        ready = reader.feed(data)
        if reader.committed and self._run.ex.first_token_at is None:
            self._run.ex.first_token_at = self._run.engine.clock.monotonic()
        if reader.finished:
            self.complete(ready)
        elif ready:
            self._down(ready)

    def _down(self, data: bytes) -> None:
        run = self._run
        for observe in run.chain.observers:
            observe(run.ex, data)
        run.ex.bytes_out += len(data)
        if not run.downstream.write(data):
            self._attempt.pause()

    def on_resume(self) -> None:
        """The client reads again."""
        if not self._run.done:
            self._attempt.resume()

    def on_end(self, clean: bool) -> None:
        """The message ended. Whole, or cut?"""
        if self._run.done:
            return
        reader = self._reader
        if reader is None:
            if clean:
                self.complete()
            else:
                self.cut(BrokenAnswerError("The provider's answer was cut short."))
            return
        last, whole = reader.end() if clean else (b"", False)
        if whole or reader.whole or reader.failed:
            self.complete(last)
        else:
            if last:
                self._down(last)
            self.cut(BrokenAnswerError("The provider's stream was cut short."))

    def on_error(self, error: GatewayError) -> None:
        """The connection broke, or the provider fell silent."""
        if self._run.done:
            return
        if self._reader is not None and (self._reader.whole or self._reader.failed):
            self.complete()
        else:
            self.cut(error)

    # -- the ends

    def complete(self, last: bytes = b"") -> None:
        """The answer is as whole as the provider made it, once `last` has gone down.

        The record is written first: a client that holds a whole answer has its row, whenever this process dies.
        """
        run, reader = self._run, self._reader
        failed = reader is not None and reader.failed
        self._settle()
        self._attempt.linger()
        if run.dispatch is not None:
            run.dispatch.end_attempt(self._attempt, None)
        if last:
            for observe in run.chain.observers:
                observe(run.ex, last)
            run.ex.bytes_out += len(last)
        run.finish("upstream_error" if failed or run.ex.status >= 400 else "ok", run.ex.status)
        if last:
            run.downstream.write(last)
        run.downstream.end()

    def cut(self, error: GatewayError) -> None:
        """Say that the answer is not whole, in the way this answer still allows."""
        run, reader = self._run, self._reader
        if run.done:
            return
        run.ex.error = error
        self._settle()
        self._attempt.stop()
        if run.dispatch is not None:
            run.dispatch.end_attempt(self._attempt, error)
        event = b""
        if reader is not None and not reader.mid_event and run.dispatch is not None:
            event = run.dispatch.operation.error_event(error)
            run.ex.bytes_out += len(event)
        run.finish("truncated", run.ex.status)
        if event:
            run.downstream.write(event)
            run.downstream.end()
        else:
            run.downstream.abort()

    def stop(self) -> None:
        """The client left."""
        self._settle()
        self._attempt.stop()
        if self._run.dispatch is not None:
            self._run.dispatch.end_attempt(self._attempt, None)

    def _settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        reader = self._reader
        if reader is not None:
            self._run.engine.ledger.settle(self._run.ex, reader.usage, reader.text_bytes, reader.text_events)

    # -- what we add

    def _head(self, upstream: ResponseHead) -> ResponseHead:
        run, attempt = self._run, self._attempt
        upstream_id = upstream.header(b"x-request-id")
        headers = to_downstream(upstream.headers)
        headers += run.own_headers(upstream_id)
        headers += attempt.target.fields
        scorer = run.ex.scorer
        headers.append(CONFIG_ORDER if scorer is None else (b"x-headgate-strategy", scorer.name.encode()))
        return ResponseHead(upstream.status, headers)

    def _usage_fields(self) -> Headers:
        ex = self._run.ex
        usage = ex.usage
        if usage is None or usage.source == "none":
            return []
        fields = [
            (b"x-headgate-tokens-prompt", b"%d" % usage.prompt_tokens),
            (b"x-headgate-tokens-completion", b"%d" % usage.completion_tokens),
        ]
        if ex.cost_usd is not None:
            fields.append((b"x-headgate-cost-usd", format_usd(ex.cost_usd).encode()))
        return fields

    def _timing_fields(self) -> Headers:
        """Milliseconds so far: in all, at the provider (all attempts), and the difference, which is ours."""
        run, attempt = self._run, self._attempt
        now = run.engine.clock.monotonic()
        total = (now - run.ex.started) * 1000
        upstream = run.ex.upstream_seconds(now) * 1000
        if self._reader is not None and attempt.head_at is not None:
            upstream -= (now - attempt.head_at) * 1000
        upstream = max(0.0, upstream)
        return [
            (b"x-headgate-latency-ms", b"%.1f" % total),
            (b"x-headgate-upstream-ms", b"%.1f" % upstream),
            (b"x-headgate-overhead-ms", b"%.1f" % max(0.0, total - upstream)),
            (b"server-timing", b"upstream;dur=%.1f, gateway;dur=%.1f" % (upstream, max(0.0, total - upstream))),
        ]

    def _wants_comment(self) -> bool:
        wish = self._run.ex.head.header(b"x-headgate-stream-metadata")
        return wish is None or wish.lower() != b"off"

    def _comment(self) -> bytes:
        """`: headgate {…}`: what the head of a stream could not know. A comment, because every SDK skips comments."""
        self._settle()
        ex = self._run.ex
        now = self._run.engine.clock.monotonic()
        facts: dict[str, object] = {"request_id": ex.id, "latency_ms": round((now - ex.started) * 1000, 1)}
        if ex.first_token_at is not None:
            facts["ttft_ms"] = round((ex.first_token_at - ex.started) * 1000, 1)
        usage = ex.usage
        if usage is not None and usage.source != "none":
            facts["tokens_prompt"] = usage.prompt_tokens
            facts["tokens_completion"] = usage.completion_tokens
            facts["usage"] = usage.source
        if ex.cost_usd is not None:
            facts["cost_usd"] = ex.cost_usd
        return b": headgate %b\n\n" % _encode(facts)

    def _rewrite(self, event: bytes) -> bytes:
        return self._run.chain.rewrite(self._run.ex, event)
