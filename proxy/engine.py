"""The data half: takes exchanges from an edge and runs each under the graph of its time."""

from __future__ import annotations

import asyncio
import secrets
from itertools import count
from typing import TYPE_CHECKING

import structlog

from .decision_inputs import Sampling
from .decisions import Decisions
from .errors import OverloadError, ShuttingDownError
from .issuers import Issuers
from .run import Run
from .stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from random import Random

    from .accounting.ledger import Ledger
    from .attempt import Attempt
    from .clock import Clock, Deadlines
    from .dialect import Dialect, Operation
    from .edge.downstream import Downstream
    from .graph import Graph
    from .upstream.shedding import Shedding


class Engine:
    """What all exchanges of one worker share. The `Acceptor` of its edges.

    `graph` is replaced whole on reload; exchanges under way keep theirs. `sampled`: the share of exchanges of which the
    inputs of their plan are kept.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        face_dialect: Dialect,
        clock: Clock,
        deadlines: Deadlines,
        rng: Random,
        ledger: Ledger,
        sampled: float = 0.0,
    ) -> None:
        self.graph = graph
        self.clock = clock
        self.deadlines = deadlines
        self.rng = rng
        self.ledger = ledger
        self.issuers = Issuers(clock, ledger)
        self.stats = Stats()
        self.decisions = Decisions()
        self.sampling = Sampling(sampled, rng)
        self.log: structlog.stdlib.BoundLogger = structlog.get_logger("headgate")
        self.live: set[Run] = set()
        self.lingering: set[Attempt] = set()
        """Attempts whose answer is whole and whose message is not: they outlive their run, by seconds at most."""
        self.waiting = 0
        """Exchanges that wait for any target of their model to be free again."""
        self.draining = False
        self.leave_alone: Callable[[str, str], object] = lambda provider, endpoint: None
        """Called when an endpoint that is checked has said by itself that it is to be left alone."""
        self.shedding: Shedding | None = None
        """Set while this worker has too much to do: asked before each new exchange."""
        self.operations: Mapping[str, Operation] = face_dialect.operations
        """What a face speaks, by the name that it gives."""
        self.next_id: Callable[[], str] = map(f"hg_{secrets.token_hex(8)}%08x".__mod__, count(1)).__next__
        """Unique without asking the system: 64 random bits of this engine, then a count."""
        self._tasks: set[asyncio.Task[None]] = set()

    def accepts(self, path: str) -> bool:
        """Whether the endpoint table has the path."""
        return self.graph.faces.serves(path)

    def accept(self, downstream: Downstream) -> None:
        """Run one exchange."""
        run = Run(self, downstream)
        if self.shedding is not None and not self.shedding.admits():
            self.stats.turned_away += 1
            wait = self.shedding.retry_after()
            run.turn_away(OverloadError("The gateway has too much to do. Try again later.", retry_after=wait))
            return
        downstream.listener = run
        run.start()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """A task that the engine owns: it is cancelled by its run, or with the engine."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, grace: float) -> int:
        """Refuse new exchanges and wait for those under way, at most `grace` seconds; returns how many are left."""
        self.draining = True
        until = self.clock.monotonic() + grace
        while self.live and (left := until - self.clock.monotonic()) > 0:
            await self.clock.sleep(min(0.05, left))
        return len(self.live)

    def cut(self) -> None:
        """End what is still under way with an error the client can see; each leaves its record."""
        for run in list(self.live):
            run.cut(ShuttingDownError("The gateway is shutting down.", retry_after=1.0))

    async def aclose(self) -> None:
        """Cut what is left and end every call and task of the engine."""
        self.draining = True
        self.cut()
        for attempt in list(self.lingering):
            attempt.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
