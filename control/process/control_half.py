"""The control half: admin listener, ledger, reload, what providers are asked. It runs beside the data half in one
process, or in the supervisor of several."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
from anyio import to_thread

from ...config import ConfigError
from ...proxy.edge.context import EdgeContext, EdgeLimits
from ...proxy.edge.guard import Guard
from ...proxy.edge.listen import serve
from ..admin.app import admin_app
from ..admin.view import ControlStats
from ..budgets import recall, thresholds_of, where_counted
from ..events.lookups import Lookups
from ..events.tailer import Tailer
from ..filter_set import refused
from ..redis_watch import on_each_connection
from .errors import BootError
from .file_watch import FileWatch, marks
from .front import Front

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from ...config import GatewayConfig
    from ...proxy.clock import Clock, Deadlines
    from ...proxy.edge.downstream import Downstream
    from ...proxy.issuers import Issuers
    from ..admin.view import AdminView
    from ..budgets import Totals
    from ..health_watch import HealthWatch
    from ..jwks_watch import JwksWatch
    from ..model_watch import ModelWatch
    from .key_watch import KeyWatch
    from .source import ConfigSource, Loaded

ADMIN_CONNECTIONS = 256
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
MANY_CRASHES = 3
"""Crashes of the tailer in a row after which readiness says so."""
FORGIVEN_SECONDS = 60.0
"""A tailer that has run this long since its last crash is well again."""
WATCH_SECONDS = 1.0
"""Between two looks at the files that the config names; a change is taken over within two of them."""
log = structlog.get_logger("headgate")


class Nobody:
    """An acceptor of nothing: every path of the admin listener is the app's."""

    def accepts(self, path: str) -> bool:
        """Never."""
        return False

    def accept(self, downstream: Downstream) -> None:
        """Never called."""
        raise NotImplementedError


class ControlHalf:
    """Everything that is not on a request's path."""

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        config: GatewayConfig,
        version: str,
        models: ModelWatch | None = None,
        health: HealthWatch | None = None,
        keys: KeyWatch | None = None,
        jwks: JwksWatch | None = None,
    ) -> None:
        events = config.events
        self.clock = clock
        self.config = config
        self.version = version
        self.started = clock.wall()
        self.loaded: Loaded | None = None
        """What is served, where it came from a source."""
        self.stats = ControlStats()
        self.models = models
        self.health = health
        self.keys = keys
        self.jwks = jwks
        self.tailer = Tailer(
            events.path,
            events.spool.path,
            retention=events.retention.total_seconds(),
            max_size=events.max_size,
            clock=clock,
        )
        self.lookups = Lookups(events.path, events.spool.path, self.tailer, clock)
        self.store: Totals | None = None
        """Where exchanges are counted, if that has to be told what was spent before."""
        self._context = EdgeContext(
            Nobody(),
            clock=clock,
            deadlines=deadlines,
            guard=Guard(open_to_all=config.auth_is_open),
            limits=EdgeLimits(connections=ADMIN_CONNECTIONS),
        )
        self._front = Front(config.listeners.admin, "listeners.admin")
        self._front.adopt(self._context, open_to_all=config.auth_is_open)
        self._crashes = 0
        self._crashed_at = 0.0

    @asynccontextmanager
    async def running(self, admin: socket.socket, view: AdminView) -> AsyncIterator[None]:
        """Serve admin and tail the ledger."""
        server = await serve(admin_app(view), self._context, [admin], self._front.tls)
        try:
            async with self.working():
                yield
        finally:
            await server.aclose()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Warn, tail the ledger and answer from it, ask providers for their models and their health; at the end the
        ledger holds what was written by then."""
        self._warn()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._tail()), loop.create_task(self.lookups.run())]
        if self.keys is not None:
            self.keys.follow(self.config)
            tasks.append(loop.create_task(self.keys.run()))
        if self.jwks is not None:
            self.jwks.follow(self.config)
        self._follow(self.config)
        redis = self.config.stores.redis
        if redis is not None and self.config.stores.in_redis and self.store is not None and thresholds_of(self.config):
            tasks.append(loop.create_task(on_each_connection(redis, self.clock, self._recall_for_redis)))
        try:
            yield
        finally:
            if self.models is not None:
                await self.models.aclose()
            if self.health is not None:
                await self.health.aclose()
            if self.jwks is not None:
                await self.jwks.aclose()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.lookups.close()
            # Where another gateway holds the ledger, it takes over what this one leaves.
            if not await self.tailer.flush() and (self.tailer.holder or self.tailer.last_error is not None):
                log.warning("ledger_behind", spool=str(self.config.events.spool.path))
            self.tailer.close()

    async def recall(self, config: GatewayConfig) -> None:
        """Before exchanges are served under `config`: what was spent of its budgets. Raises BootError."""
        if self.store is not None:
            await recall(config, where_counted(config, self.store, self.clock), self.tailer, self.clock)
        self.tailer.watch(thresholds_of(config))

    async def _recall_for_redis(self) -> None:
        """It may have lost what it knew. A ledger that cannot say now leaves it to the next connection."""
        try:
            await self.recall(self.config)
        except BootError as error:
            log.warning("budgets_not_told", reason=str(error))

    def answer(self, issuers: Issuers) -> None:
        """Be the one whom a data half in this process asks."""
        issuers.ask = lambda number, ids: self.lookups.ask(ids, partial(issuers.answered, number))

    def not_ready(self) -> list[str]:
        """What of the control half should keep traffic away."""
        crashing = self._crashes >= MANY_CRASHES and not self._is_forgiven()
        return ["the ledger keeps crashing"] if crashing else []

    async def reload_on(
        self, hangup: asyncio.Event, source: ConfigSource, loaded: Loaded, apply: Callable[[Loaded], Awaitable[None]]
    ) -> None:
        """Reload for ever: from `source` each time `hangup` is set, by the text that is served when a file it names has
        changed. An edit of the config file itself is nobody's wish before somebody says so."""
        self.loaded = loaded
        while True:
            watch = FileWatch(self.loaded.marks)
            while not hangup.is_set():
                if changed := await self._changed(hangup, watch):
                    log.info("file_changed", files=", ".join(map(str, changed)))
                    break
            text = None if hangup.is_set() else self.loaded.text
            hangup.clear()
            before = await to_thread.run_sync(marks, self.loaded.marks)
            if not await self.reload(partial(source.loaded, text), apply):
                self.loaded = self.loaded._replace(marks=before)

    async def _changed(self, hangup: asyncio.Event, watch: FileWatch) -> list[Path]:
        """Look once, after a while or when there is a hangup; where there is nothing to watch, wait for the hangup."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS if watch else None):
                await hangup.wait()
        return [] if hangup.is_set() else await to_thread.run_sync(watch.changed)

    async def reload(self, load: Callable[[], Loaded], apply: Callable[[Loaded], Awaitable[None]]) -> bool:
        """Read the config again and serve under it; a bad one changes nothing and says every reason.

        `load` runs in a thread: a hostile file takes its time.
        """
        try:
            loaded = await to_thread.run_sync(load)
            await self._recall(loaded.config)
            await apply(loaded)
        except ConfigError as error:
            self.stats.reloads_refused += 1
            files = self.config.files
            for problem in error.in_file(str(files[0]) if files else "").problems:
                log.error("reload_refused", problem=str(problem))
            return False
        except Exception as error:
            self.stats.reloads_refused += 1
            log.error("reload_failed", exc_info=error)
            return False
        config = loaded.config
        self.loaded, self.config = loaded, config
        self._front.adopt(self._context, open_to_all=config.auth_is_open)
        if (flaw := self._front.renew()) is not None:
            log.error("certificate_not_renewed", problem=flaw)
        self._follow(config)
        self.stats.reloads += 1
        self._warn()
        log.info("reloaded", config=config.digest)
        return True

    async def _recall(self, config: GatewayConfig) -> None:
        try:
            await self.recall(config)
        except BootError as error:
            raise refused(str(error)) from error

    def _follow(self, config: GatewayConfig) -> None:
        if self.models is not None:
            self.models.follow(config)
        if self.health is not None:
            self.health.follow(config)
        if self.keys is not None:
            self.keys.follow(config)
        if self.jwks is not None:
            self.jwks.follow(config)

    def _warn(self) -> None:
        for warning in self.config.warnings:
            log.warning("config", message=warning)

    async def _tail(self) -> None:
        """Tail for ever; a crash is logged, and answered with a pause and another try."""
        while True:
            try:
                await self.tailer.run()
            except Exception as error:
                self._crashes = 1 if self._is_forgiven() else self._crashes + 1
                self._crashed_at = self.clock.monotonic()
                log.error("tailer_crashed", exc_info=error)
                await self.clock.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._crashes, 10)))

    def _is_forgiven(self) -> bool:
        return self.clock.monotonic() - self._crashed_at > FORGIVEN_SECONDS
