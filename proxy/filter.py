"""The contract of a filter: an immutable config and up to ten moments in the life of an exchange.

A filter is built once from its config and serves every exchange; what belongs to one exchange it keeps in `ex.state`,
under itself or a type of its own. It overrides only the moments it needs: the chain is compiled at load, and a moment
nobody overrides costs nothing. `on_request` and `on_answer` may take their time; the others run between two bytes.

    class Shout(Filter):
        def on_request(self, ex):
            ex.head.headers.append((b"x-shout", b"yes"))

`on_done` runs once for each filter whose `on_request` was reached, whatever happened in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Mapping

    from .accounting.record import Done
    from .attempt import Attempt
    from .errors import GatewayError
    from .exchange import Exchange
    from .replies import Reply
    from .run import Run
    from .snapshot import Resting
    from .upstream.call import ResponseHead


class SkipTarget(Exception):  # noqa: N818 - not an error: a filter's word to the dispatcher
    """Raised by `on_attempt`: not this target. `reason` stands in the message if no other is left; with `error` it may
    say more."""

    def __init__(self, reason: str, error: GatewayError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


class Shared(Protocol):
    """An answer that several exchanges get (flight.py, replay.py)."""

    def board(self, run: Run) -> None:
        """Answer one of them, now or later. May raise GatewayError."""


class Event:
    """One event of a stream, its bytes with the blank line that ends it. `state`: where a filter keeps, under itself,
    what belongs to this stream; another attempt is another stream."""

    __slots__ = ("raw", "state")

    def __init__(self, raw: bytes, state: dict[object, Any] | None = None) -> None:
        self.raw = raw
        self.state: dict[object, Any] = {} if state is None else state


class Filter:
    """A link of the chain. `name` is its name in the config, unique within the chain."""

    after: ClassVar[tuple[str, ...]] = ()
    """Kinds of filters this one must come after; a violating order is a config error."""
    reads_body: bool = True
    """False: may run before the body has been read, when nothing before it reads the body and no route overrides it."""
    admits: ClassVar[bool] = False
    """True: what this filter refuses never became an exchange, so it leaves no record (auth)."""

    reserves: ClassVar[bool] = False
    """True: `on_request` runs once more before the plan, where a filter has changed `ex.model` since."""

    name: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Filter:
        """Build a user-written filter from its `config:` mapping; the default passes the keys as keyword arguments."""
        return cls(**config)

    def left_alone(self) -> Mapping[tuple[str, str], Resting]:
        """Targets that it leaves alone of its own accord now, by (provider, upstream model), for /clusters."""
        return {}

    def on_request(self, ex: Exchange) -> Reply | Shared | Awaitable[Reply | Shared | None] | None:
        """Let pass (None), answer (a Reply, or what others get, too), or refuse (raise GatewayError). May be
        `async def`, or give a coroutine where it has to wait; that is cancelled when the client leaves."""

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        """An attempt is about to start; raise SkipTarget to try another target, GatewayError to refuse."""

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        """An attempt ended: exactly once for each that started, and for each that this filter's `on_attempt` let pass
        and a filter below stopped. `attempt.error` says what failed; `attempt.cancelled`, that nobody waited for it."""

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """The committed answer's head; fields may be edited in place. An answer that a filter gave by itself passes
        the filters above that one."""

    def on_bytes(self, ex: Exchange, data: bytes) -> None:
        """Bytes of the answer's body on their way down; look, do not touch. What raises is logged, and is not asked
        again in this exchange."""

    def on_answer(self, ex: Exchange, head: ResponseHead, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        """An answer that is no stream, whole, with the provider's head: keep or replace its body, or raise
        AnswerRefusedError. May give a coroutine where it has to wait; that is cancelled when the client leaves. A chain
        with one refuses texts that are too large to be collected, and kinds it cannot read."""
        return body

    def on_event(self, ex: Exchange, event: Event) -> Event | list[Event] | None:
        """An event of a stream: keep, replace, split or drop it, or raise AnswerRefusedError. A chain with one leaves
        the byte path."""
        return event

    def on_usage(self, ex: Exchange) -> None:
        """One more answer of a session over a WebSocket is paid for: `ex.usage` and `ex.cost_usd` say what all have
        come to. Raise GatewayError to end the session."""

    def on_done(self, ex: Exchange) -> None:
        """The exchange is over. Must not fail it: what is raised here is logged."""

    def on_record(self, ex: Exchange, record: Done | None) -> None:
        """After every `on_done`, and as often as it: what the exchange has left in the ledger; None where it leaves
        nothing there, or no ledger is kept. What is raised here is logged."""

    async def aclose(self) -> None:
        """No exchange will reach it any more: let go of what it holds."""
