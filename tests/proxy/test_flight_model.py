"""Flight, whatever happens in whatever order: everybody gets the answer or hears that it is not whole, has one row, and
the provider's bill is paid once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests_support.answers import DONE, LAST_CHUNK, USAGE, chat_chunk, chunk, event, response_head
from tests_support.cached import STREAM, CachedRelay
from tests_support.traffic import error_events, without_ours

if TYPE_CHECKING:
    from tests_support.calls import FakeCall
    from tests_support.downstream import FakeDownstream

HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
TEXT = [event(chat_chunk({"content": f"word {n} " * (60_000 if n in (3, 5, 6) else 1)})) for n in range(8)]
FINISH = event(chat_chunk({}, finish_reason="stop"))
USED = event(chat_chunk(None, usage=USAGE))
WHOLE = [*TEXT, FINISH, USED, event(DONE)]
SHOWN = b"".join([*TEXT, FINISH, event(DONE)])
COST = (USAGE["prompt_tokens"] * 1.0 + USAGE["completion_tokens"] * 2.0) / 1e6


@settings(max_examples=40, stateful_step_count=40)
class Flights(RuleBasedStateMachine):
    """Clients come, stall, read on, leave and lose patience; calls go on, break and end."""

    def __init__(self) -> None:
        super().__init__()
        self.it = CachedRelay(retry=None, ttl="5s", size="2MiB")
        self.clients: list[FakeDownstream] = []
        self.fed: dict[int, int] = {}
        self.billed = 0
        """Calls of which the provider has said what they cost."""

    @property
    def here(self) -> list[FakeDownstream]:
        return [one for one in self.clients if not one.finished]

    @property
    def open_calls(self) -> list[FakeCall]:
        return [call for call in self.it.calls if not call.over and not call.paused]

    @rule(room=st.sampled_from([None, None, 10, 500_000]), patience=st.sampled_from([None, None, 3000]))
    def come(self, room: int | None, patience: int | None) -> None:
        headers = [(b"x-headgate-timeout-ms", b"%d" % patience)] if patience is not None else []
        self.clients.append(self.it.ask(STREAM, room=room, headers=headers))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.here)).leave()

    @precondition(lambda self: self.here)
    @rule(data=st.data(), room=st.sampled_from([None, 10, 100_000]))
    def read_on(self, data: st.DataObject, room: int | None) -> None:
        one = data.draw(st.sampled_from(self.here))
        if one.room is not None and one.room <= 0:
            one.resume(room)

    @precondition(lambda self: self.open_calls)
    @rule(data=st.data(), events=st.integers(1, 4))
    def answer(self, data: st.DataObject, events: int) -> None:
        self.feed(data.draw(st.sampled_from(self.open_calls)), events)

    @precondition(lambda self: self.open_calls)
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.open_calls)).rst()

    @rule(seconds=st.sampled_from([0.1, 1.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.it.relay.clock.advance(seconds)

    def feed(self, call: FakeCall, events: int) -> None:
        for _ in range(events):
            at = self.fed.get(id(call), -1)
            if call.over or call.paused or at > len(WHOLE):
                return
            self.fed[id(call)] = at + 1
            if at < 0:
                call.feed(HEAD)
            elif at < len(WHOLE):
                call.feed(chunk(WHOLE[at]))
                self.billed += WHOLE[at] is USED
            else:
                call.feed(LAST_CHUNK)

    @invariant()
    def what_has_gone_down_is_the_answer_s_own(self) -> None:
        for one in self.clients:
            if one.status == 200:
                said = without_ours(one.received)
                assert SHOWN.startswith(said) or (one.ended and error_events(said))

    @invariant()
    def memory_is_bounded(self) -> None:
        assert 0 <= self.it.cache.room.used <= 2 * 1024 * 1024 + 600_000 * len(self.it.calls)

    def teardown(self) -> None:
        for _ in range(60):
            for one in self.here:
                if one.room is not None and one.room <= 0:
                    one.resume()
            for call in self.open_calls:
                self.feed(call, 2)
        assert not self.here
        assert self.it.at_rest()
        rows = self.it.rows()
        assert len(rows) == len(self.clients)
        for row in rows:
            assert row.cache in ("miss", "joined", "hit")
            assert row.cost_usd == 0.0 or row.cache == "miss"
        assert sum(row.cost_usd == COST for row in rows) == self.billed
        assert sum(row.attempts for row in rows) == len(self.it.calls)
        for one in self.clients:
            if one.ended and one.status == 200 and not error_events(one.received):
                assert without_ours(one.received) == SHOWN


TestFlights = Flights.TestCase
