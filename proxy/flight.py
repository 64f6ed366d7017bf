"""One call for all who ask the same at the same time: a leader, whose exchange makes it, and followers.

    leader ──┐                     ┌─ Replay 1 ─▶ the leader's client
    follower ┼─ Flight ◀─ Leading ─┤─ Replay 2 ─▶ a follower's client
    follower ┘   tape     filters  └─ Replay 3 ─▶ …
                          below, call

To the run that makes the call (leading.py) the flight is a client like any other; to each client it is the source of an
answer of its own. So the leader's client is one of several: whoever leaves breaks nobody, and the call is given up when
the last one has left. Whose exchange began the call pays for it: where its client leaves early, its record waits for
the end of the call, and says what all of it cost; followers cost nothing.

The provider is held up only while nobody keeps up (ring.py). Who is too far behind is cut; who comes while the
beginning is still there gets it first. Before an answer has begun, a failure at a provider is everybody's: the call was
tried as often as the retry policy says, and a crowd at a failing provider helps nobody. Who is refused before any
provider was asked is refused alone, and the next in line leads.
"""

from __future__ import annotations

from math import inf
from secrets import token_hex
from typing import TYPE_CHECKING, Final, ParamSpec

from .cache_note import note_hit, note_joined, note_miss
from .edge.downstream import NOBODY, AnswerSink
from .leading import Leading
from .replay import Replay
from .replies import NO_RETRY, internal_error
from .ring import LAG_SECONDS
from .tape import Tape
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .accounting.record import Outcome
    from .dialect import StreamReader
    from .ending import Ending
    from .engine import Engine
    from .errors import GatewayError
    from .flight_owner import Owner
    from .ring import Place
    from .run import Run
    from .tape import Recorded

P = ParamSpec("P")

MARK: Final = b": headgate %b\n\n" % token_hex(16).encode()
"""Stands for our comment between a reader and the tape, and is seen by nobody else."""


class Flight(AnswerSink):
    """See above. A `DeadlineHolder`. `key`: what all who share it have asked."""

    __slots__ = (
        "_busy", "_call", "_charged", "_electing", "_landed", "_leader", "_owner", "_parted", "_paused", "_replays",
        "_watched", "called", "deadline", "engine", "key", "tape",
    )  # fmt: skip

    def __init__(self, key: bytes, owner: Owner) -> None:
        self.key = key
        self.called = False
        """Somebody makes the call, or made it."""
        self.engine: Engine
        """Set with the first client."""
        self.tape = Tape()
        self.deadline = inf
        self._owner = owner
        self._replays: dict[Replay, Place] = {}
        self._leader: Ending | None = None
        self._call: Leading | None = None
        self._parted: tuple[Ending, Outcome, int] | None = None
        """The leader, where its client has gone and the call goes on; and how its exchange ended."""
        self._charged = 0
        self._paused = False
        self._busy = False
        self._electing = False
        self._watched = False
        self._landed = False

    @property
    def joinable(self) -> bool:
        """Whether one more may come: it would miss nothing."""
        return not self._landed and self.tape.ring.keeps

    # -- from the clients

    def board(self, run: Run) -> None:
        """One more client. Ask `joinable` first."""
        place = self.tape.ring.join()
        assert place is not None  # noqa: S101 - narrows for the type checker: it was asked
        replay = Replay(run, self.tape, place, self)
        self.engine = run.engine
        first = not self._replays
        self._replays[replay] = place
        if self._call is not None:
            note_joined(run.ex)
            self._owner.noted("joined")
            replay.start()
            self.caught_up()
        elif first:
            self._owner.begins(self)

    def leave(self, replay: Replay) -> None:
        """A client has gone, or has everything. The call is given up with the last one."""
        place = self._replays.pop(replay, None)
        if place is None:
            return
        self.tape.ring.leave(place)
        self._account()
        if not self._busy:
            self._look_around()

    def caught_up(self) -> None:
        """A client that was behind reads again."""
        call = self._call
        if self._paused and call is not None and self.tape.ring.flows:
            self._paused = False
            call.on_resume()

    def outlives(self, run: Ending, outcome: Outcome, status: int) -> bool:
        """Whether the leader's exchange has to wait for the end of its call; it is then ended from here."""
        if self._call is None or self._call.done or run is not self._leader:
            return False
        run.downstream.listener = NOBODY
        self._parted = (run, outcome, status)
        return True

    def _look_around(self) -> None:
        """Somebody has left: is anybody there?"""
        if not self._replays and not self._electing:
            self._abandon()

    def _abandon(self) -> None:
        """The last one has left, unless somebody has come since."""
        call = self._call
        if self._replays or (call is not None and call.done):
            return
        if call is not None:
            call.on_gone()
        self._land(None)
        self._let_go()

    # -- from the owner

    def lead(self) -> None:
        """Nobody has the answer: the first in line makes the call. Who is refused before a provider was asked gets that
        refusal alone, and the next one leads."""
        if self._electing:
            return
        self._electing = True
        try:
            while self._replays and self._call is None and not self._landed:
                self._leader = leader = next(iter(self._replays)).run
                leader.leads = self
                note_miss(leader.ex)
                self._owner.noted("miss")
                self.called = True
                for replay in self._replays:
                    if replay.run.ex.cache is None:
                        note_joined(replay.run.ex)
                        self._owner.noted("joined")
                self._call = Leading(self, leader)
                self._call.begin()
        finally:
            self._electing = False
        self._look_around()

    def found(self, recorded: Recorded) -> None:
        """Somebody else has the answer."""
        tape = Tape.of(recorded)
        self._land(None)
        wall = self.engine.clock.wall()
        for replay in list(self._replays):
            self._replays.pop(replay)
            note_hit(replay.run.ex, recorded, wall)
            self._owner.noted("hit")
            self._tell(replay.switch, replay, tape)

    # -- from the run that makes the call, whose client this is

    def mark(self, call: Leading, reader: StreamReader) -> bytes:
        """The comment's place; what the call used is known by now."""
        call.engine.ledger.settle(call.ex, reader.facts())
        self.settle(call)
        return MARK

    def settle(self, call: Leading) -> None:
        """What the call came to so far is its leader's."""
        if self._leader is not None:
            self._leader.ex.adopt(call.ex)

    def fail(self, call: Leading, error: GatewayError) -> None:
        """There is no answer."""
        leader = self._leader
        if call.ex.attempts or leader is None:
            self.tape.error = error
            self._land(None)
            for replay in list(self._replays):
                self._tell(replay.refuse, replay, error)
            self._let_go()
            return
        self._call = None
        own = next((replay for replay in self._replays if replay.run is leader), None)
        if own is not None:
            self._tell(own.refuse, own, error)
        self._end_parted()
        self._leader = None
        self.lead()

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        fields = [field for field in headers if field != NO_RETRY]
        if length is not None:
            fields.append((b"content-length", b"%d" % length))
        self.tape.head = ResponseHead(status, fields)
        self._settle_head()
        self._busy = True
        for replay in list(self._replays):
            self._tell(replay.begin, replay)
        self._busy = False
        self._after()

    def write(self, data: bytes) -> bool:
        call, tape = self._call, self.tape
        if MARK in data:
            before, _, after = data.partition(MARK)
            tape.comment_at = tape.ring.end + len(before)
            data = before + after
        tape.over = call is None or call.done  # this is the last of it
        if not data:
            return not self._paused
        ring, last = tape.ring, tape.over
        begin = ring.end
        self._busy = True
        for place in ring.append(data, self.engine.deadlines.soon):
            self._lose(place)
        for replay, place in list(self._replays.items()):
            if not place.stalled:
                try:
                    if last or place.at != begin:
                        replay.pump()
                    else:  # what nearly every write comes to
                        place.at = ring.end
                        replay.take(data)
                except Exception as error:  # what breaks in one exchange is that one's
                    replay.run.crash(error)
        self._busy = False
        return self._after()

    def end(self) -> None:
        """The answer is whole."""
        self.tape.over = True
        call = self._call
        self._land(call.recorded(self.tape) if call is not None else None)
        for replay in list(self._replays):
            self._tell(replay.over, replay)
        self._let_go()

    def abort(self) -> None:
        """It is not."""
        call, tape = self._call, self.tape
        tape.over = True
        tape.error = (call.ex.error if call is not None else None) or internal_error()
        self._land(None)
        for replay in list(self._replays):
            self._tell(replay.over, replay)
        self._let_go()

    def reply(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        tape, call = self.tape, self._call
        tape.head = ResponseHead(status, [field for field in headers if field != NO_RETRY])
        tape.body = body
        tape.over = True
        self._settle_head()
        self._land(call.recorded(tape) if call is not None else None)
        for replay in list(self._replays):
            if call is not None:
                replay.run.ex.error = call.ex.error
            self._tell(replay.begin, replay)
        self._let_go()

    # -- from the clock

    def on_deadline(self) -> None:
        """Who has been too far behind for too long is cut."""
        ring = self.tape.ring
        for place in ring.late(self._now()):
            self._lose(place)
        since = [place.lags_since for place in ring.places if place.lags_since is not None]
        ring.lags = bool(since)
        if since and not self._landed:
            self.deadline = min(since) + LAG_SECONDS
        else:
            self._unwatch()
        self._account()

    # -- inside

    def _after(self) -> bool:
        """Bytes have been given out. Whether the provider may go on."""
        ring, call = self.tape.ring, self._call
        self._account()
        if ring.lags and not self._watched:
            self._watch()
        if call is None or call.done:
            return True
        if not self._replays:  # all have left in the middle of it; its stack is below us
            self.engine.clock.call_at(self._now(), self._abandon)
            return True
        self._paused = not ring.flows
        return not self._paused

    def _account(self) -> None:
        """Memory that is held; where it is scarce, nobody may join and nothing will be kept."""
        ring, room = self.tape.ring, self._owner.room
        held = ring.end - ring.base
        room.used += held - self._charged
        self._charged = held
        if room.used > room.most and ring.keeps and not self.tape.over:
            for place in ring.shrink():
                self._lose(place)
            room.used += ring.held - self._charged
            self._charged = ring.held

    def _settle_head(self) -> None:
        call, tape = self._call, self.tape
        if call is None:
            return
        self.settle(call)
        attempt = call.ex.attempt
        if attempt is not None:
            tape.provider, tape.model = attempt.target.cluster.name, attempt.target.model
            tape.request_id = attempt.request_id

    def _lose(self, place: Place) -> None:
        for replay, its in list(self._replays.items()):
            if its is place:
                self._owner.lost()
                self._tell(replay.too_slow, replay)

    def _tell(self, what: Callable[P, None], replay: Replay, *args: P.args, **kwargs: P.kwargs) -> None:
        """What breaks in one exchange is that one's."""
        try:
            what(*args, **kwargs)
        except Exception as error:
            replay.run.crash(error)

    def _land(self, recorded: Recorded | None) -> None:
        if not self._landed:
            self._landed = True
            self._unwatch()
            self.tape.ring.close()
            self._account()
            self._owner.landed(self, recorded)

    def _let_go(self) -> None:
        """The call is over: undo the circles of references. Who is behind reads on without it."""
        self._end_parted()
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.leads = None
        self._call = None

    def _end_parted(self) -> None:
        parted, self._parted = self._parted, None
        if parted is not None:
            run, outcome, status = parted
            run.leads = None
            run.done = False
            run.finish(outcome, status)

    def _watch(self) -> None:
        self._watched = True
        self.deadline = self._now() + LAG_SECONDS
        self.engine.deadlines.add(self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self.engine.deadlines.discard(self)

    def _now(self) -> float:
        return self.engine.clock.monotonic()
