"""shared: whoever dies while it counts, between any two writes, lets nobody in above a limit and holds nothing.

What a process leaves is what it had written when it was killed, and a write is one word. So a death is a write that did
not take place, and neither did any after it; the lock is the kernel's to give back. Real processes are killed by real
signals in test_shared_kills.py.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores.meters import Debt
from headgate.filters.stores.rules import Granted, Kind, Rule
from headgate.filters.stores.shared import SharedLimits
from headgate.filters.stores.shared_memory import Berths, SharedMemory
from headgate.filters.stores.shared_table import Table
from tests_support.limits import ShortWay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.filters.stores.rules import Limits

S = 1_000_000
REQUESTS = Rule(Kind("requests", ("user",), "minute"), 3)
TOKENS = Rule(Kind("tokens", ("user",), "minute"), 100)
EVENLY = Rule(Kind("tokens", ("user",), "minute", continuous=True), 100)
AT_ONCE = Rule(Kind("concurrent", ("user",), ""), 3)
LENGTH = 60 * S
WORKERS = 3
CALLERS = "abc"


class KilledError(Exception):
    """The process is no more."""


class MortalWords:
    """The words of shared memory, for a process that can be killed between two writes."""

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words
        self.writes_left: int | None = None

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: int, word: int) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise KilledError
            self.writes_left -= 1
        self.words[at] = word

    def release(self) -> None:
        self.words.release()


@dataclass(frozen=True)
class Step:
    """What one process does. `dies`: after so many writes, if there are as many."""

    takes: bool
    worker: int
    caller: int
    tokens: int
    pause: int
    dies: int | None = None


@dataclass
class Call:
    """One that was let in, and between what bounds its tokens must be counted."""

    granted: Granted[Any]
    caller: str
    guess: int
    least: int
    most: int


class Worker:
    """A process: an opening of its own, and the calls it has open."""

    def __init__(self, memory: SharedMemory, berths: Berths, rules: Sequence[Rule], rows: int, *, short: bool) -> None:
        self.berth = berths.take()
        self.memory = SharedMemory.attach(memory.file)
        self.words = MortalWords(self.memory.words)
        self.memory.words = cast("memoryview[int]", self.words)
        limits = SharedLimits(self.memory, Table(self.memory, 0, rows + 1, 1), self.berth, "it", rules)
        self.limits: Limits = ShortWay(limits, rules) if short else limits
        self.open: list[Call] = []
        self.is_dead = False


class Host:
    """Some workers, what they say they let in, and whether that is so."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.memory = SharedMemory.create(WORKERS + 1)
        self.berths = Berths(self.memory)
        self.rows = len(CALLERS) * len(rules)
        """As many as the callers need, so that rows of one are given to another."""
        self.begun = 0
        self.workers = [self._worker() for _ in range(WORKERS)]
        self.now = 0
        self.deaths = 0
        self.doubt = 0
        """Tokens of calls whose process died before it could say whether they were let in."""
        self.requests: dict[tuple[str, int], int] = defaultdict(int)
        self.tokens: dict[tuple[str, int], list[Call]] = defaultdict(list)
        self.debts = {caller: Debt(LENGTH) for caller in CALLERS}
        """What is owed at least."""
        self.window = dict.fromkeys(CALLERS, -LENGTH)

    def run(self, steps: Sequence[Step]) -> bool:
        """Whether one died."""
        before = self.deaths
        for step in steps:
            self.now += step.pause
            worker = self.workers[step.worker]
            if worker.is_dead:
                worker = self.workers[step.worker] = self._buried(worker)
            worker.words.writes_left = step.dies
            (self._take if step.takes else self._settle)(worker, step)
            worker.words.writes_left = None
        return self.deaths > before

    def close(self) -> None:
        """At last nobody holds anything: a newcomer has all there is."""
        for worker in self.workers:
            for call in worker.open:
                if not worker.is_dead:
                    worker.limits.settle(call.granted, call.guess, self.now)
            worker.memory.close()
            self.berths.leave(worker.berth)
        newcomer = Worker(self.memory, self.berths, [AT_ONCE], self.rows, short=False)
        for caller in CALLERS:
            answers = [newcomer.limits.take([caller], 0, self.now) for _ in range(AT_ONCE.limit + 1)]
            assert [isinstance(answer, Granted) for answer in answers] == [True] * AT_ONCE.limit + [False]
        assert not newcomer.limits.crowded
        newcomer.memory.close()
        self.memory.close()

    def _worker(self) -> Worker:
        """Two of three go the short way, where there is one."""
        self.begun += 1
        return Worker(self.memory, self.berths, self.rules, self.rows, short=self.begun % 3 > 0)

    def _die(self, worker: Worker) -> None:
        self.deaths += 1
        worker.is_dead = True

    def _buried(self, worker: Worker) -> Worker:
        """The supervisor has heard of it: another has its place."""
        worker.memory.close()
        self.berths.leave(worker.berth)
        return self._worker()

    def _take(self, worker: Worker, step: Step) -> None:
        caller, guess = CALLERS[step.caller], step.tokens
        try:
            answer = worker.limits.take([caller] * len(self.rules), guess, self.now)
        except KilledError:
            self.doubt += guess
            self._die(worker)
            return
        dead = sum(one.is_dead for one in self.workers)
        at_once = sum(call.caller == caller for one in self.workers for call in one.open if not one.is_dead)
        if not isinstance(answer, Granted):
            self._check_refusal(answer.rule, answer.report.resets_at, caller, guess, at_once + AT_ONCE.limit * dead)
            return
        call = Call(answer, caller, guess, guess, guess)
        worker.open.append(call)
        assert AT_ONCE not in self.rules or at_once < AT_ONCE.limit
        if answer.requests is not None:
            window = self._in_window(caller, answer.requests.resets_at)
            self.requests[window] += 1
            known = self.requests[window]
            assert known <= REQUESTS.limit - answer.requests.left <= known + self.deaths
        assert answer.tokens is not None
        if EVENLY in self.rules:
            debt = self.debts[caller]
            assert debt.wait(EVENLY.limit, guess, self.now) == 0
            debt.take(EVENLY.limit, guess, self.now)
            assert answer.tokens.left <= debt.left(EVENLY.limit, self.now) <= answer.tokens.left + self._slack
        else:
            calls = self.tokens[self._in_window(caller, answer.tokens.resets_at)]
            calls.append(call)
            counted = TOKENS.limit - answer.tokens.left
            assert sum(call.least for call in calls) <= counted <= sum(call.most for call in calls) + self.doubt

    @property
    def _slack(self) -> int:
        return 10**9 if self.deaths else 0

    def _in_window(self, caller: str, closes: int) -> tuple[str, int]:
        """Windows follow each other, and each has its length."""
        before = self.window[caller]
        assert self.now < closes <= self.now + LENGTH
        assert closes == before or closes - LENGTH >= before or self.deaths
        self.window[caller] = closes
        return caller, closes

    def _check_refusal(self, rule: Rule, closes: int, caller: str, guess: int, at_once: int) -> None:
        """Only where there is no room, but for what the dead may have taken."""
        if rule is REQUESTS:
            assert self.requests[caller, closes] + self.deaths >= rule.limit
        elif rule is TOKENS:
            most = sum(call.most for call in self.tokens[caller, closes])
            assert most + self.doubt + guess > rule.limit
        elif rule is EVENLY:
            assert self.deaths or self.debts[caller].wait(rule.limit, guess, self.now)
        else:
            assert at_once >= rule.limit

    def _settle(self, worker: Worker, step: Step) -> None:
        if not worker.open:
            return
        call, used = worker.open.pop(0), step.tokens
        debt = self.debts[call.caller]
        try:
            worker.limits.settle(call.granted, used, self.now)
        except KilledError:
            call.least, call.most = min(call.guess, used), max(call.guess, used)
            debt.settle(EVENLY.limit, 0, call.guess, call.least, self.now)
            self._die(worker)
        else:
            call.least = call.most = used
            debt.settle(EVENLY.limit, 0, call.guess, used, self.now)


SETS = {"windows": [REQUESTS, TOKENS, AT_ONCE], "even refill": [EVENLY, AT_ONCE]}
STEPS = st.builds(
    Step,
    takes=st.booleans(),
    worker=st.integers(0, WORKERS - 1),
    caller=st.integers(0, len(CALLERS) - 1),
    tokens=st.integers(0, 60),
    pause=st.sampled_from([0, 1, 5 * S, 61 * S]),
    dies=st.none() | st.integers(0, 20),
)


@pytest.mark.parametrize("rules", SETS.values(), ids=list(SETS))
@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_is_killed_and_whenever(rules: list[Rule], steps: list[Step]) -> None:
    host = Host(rules)
    host.run(steps)
    host.close()


@pytest.mark.parametrize("rules", SETS.values(), ids=list(SETS))
@pytest.mark.parametrize("seed", range(8))
def test_every_write_of_a_history_is_the_last_of_its_process_once(rules: list[Rule], seed: int) -> None:
    rng = Random(seed)
    steps = [
        Step(
            takes := rng.random() < 0.6,
            rng.randrange(2),
            rng.randrange(1 + seed % 3),
            30 if takes else rng.randrange(60),
            rng.choice([0, 7, 40 * S]),
        )
        for _ in range(16)
    ]
    writes = short = 0
    for at, step in enumerate(steps):
        for dies in count():
            host = Host(rules)
            host.run(steps[:at])
            died = host.run([replace(step, dies=dies)])
            host.run(steps[at + 1 :])
            host.close()
            short += sum(worker.limits.short for worker in host.workers if isinstance(worker.limits, ShortWay))
            if not died:
                break
            writes += 1
    assert writes > 60
    assert (short > 0) == (EVENLY not in rules)


@pytest.mark.parametrize("dies", range(4))
def test_slots_in_a_row_that_counted_tokens_before_are_never_fewer_than_are_held(dies: int) -> None:
    """Whoever dies while its cell changes from tokens to slots, before the supervisor hears of it."""
    memory = SharedMemory.create(2)
    table = Table(memory, 0, 2, 1)
    later = 2 * LENGTH
    memory.expect(1)
    before = SharedLimits(memory, table, 0, "it", [TOKENS])
    call = before.take(["ann"], 90, 0)
    assert isinstance(call, Granted)
    before.settle(call, 10, 0)  # the cell says 80 less
    alive = SharedLimits(memory, table, 1, "it", [AT_ONCE])
    assert [isinstance(alive.take(["ann"], 0, later), Granted) for _ in range(3)] == [True] * 3
    words = MortalWords(memory.words)
    words.writes_left = dies
    memory.words = cast("memoryview[int]", words)
    dying = SharedLimits(memory, table, 0, "it", [AT_ONCE._replace(limit=4)])
    with suppress(KilledError):
        dying.take(["ann"], 0, later)
    assert not isinstance(alive.take(["ann"], 0, later), Granted)
    memory.close()


@pytest.mark.parametrize("dies", range(8))
def test_what_is_owed_is_never_forgotten_for_who_comes_next(dies: int) -> None:
    """Whoever dies while it writes when a debt is paid back."""
    memory = SharedMemory.create(1)
    table = Table(memory, 0, 2, 1)
    words = MortalWords(memory.words)
    memory.words = cast("memoryview[int]", words)
    limits = SharedLimits(memory, table, 0, "it", [EVENLY])
    assert isinstance(limits.take(["ann"], 1, 0), Granted)
    words.writes_left = dies
    with suppress(KilledError):
        limits.take(["ann"], 90, 0)
    words.writes_left = None
    soon = LENGTH // 10  # the first is paid back, the second is not
    owed = EVENLY.limit - debt_left(limits, "ann", soon)
    another = SharedLimits(memory, table, 0, "it", [EVENLY])
    assert isinstance(another.take(["bob"], 0, soon), Granted)
    assert another.crowded >= (owed > 0)
    assert owed > 0 or dies < 7
    memory.close()


def debt_left(limits: SharedLimits, caller: str, now: int) -> int:
    """What a refusal says is left."""
    answer = limits.take([caller], EVENLY.limit + 1, now)
    assert not isinstance(answer, Granted)
    return answer.report.left
