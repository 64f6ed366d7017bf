"""Both halves in one process and one loop: `workers: 1`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ..clusters import open_check, open_url
from ..health_watch import HealthWatch
from ..jwks_watch import JwksWatch
from ..model_watch import ModelWatch
from .control_half import ControlHalf
from .data_server import DataHalf, DataServer
from .key_watch import KeyWatch
from .signals import Signals
from .sockets import listening
from .tidy import give_back
from .view import SingleView

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config import GatewayConfig
    from .source import ConfigSource, Loaded

log = structlog.get_logger("headgate")


async def run_single(
    half: DataHalf,
    source: ConfigSource,
    loaded: Loaded,
    version: str,
    announce: Callable[[GatewayConfig, int, int], None],
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads; SIGUSR2 is answered by saying that it needs workers.
    Returns the exit code.

    Raises BootError when an address is taken, and what `half.start` raises, before anything is announced.
    """
    signals = Signals()
    config = half.config
    data = listening(config.listeners.data, "listeners.data")
    admin = listening(config.listeners.admin, "listeners.admin")
    await half.start()
    server = DataServer(half, version)
    models = ModelWatch(half.clock, half.open_provider, half.take_listing)
    keys, jwks = KeyWatch(half.clock, half.read_keys), jwks_watch(half)
    control = ControlHalf(half.clock, half.deadlines, config, version, models, health_watch(half), keys, jwks)
    control.answer(half.engine.issuers)
    control.store = half.store
    await control.recall(config)

    async def apply(loaded: Loaded) -> None:
        await server.reload(loaded.config)

    async with control.running(admin, SingleView(control, server)):
        give_back()
        await server.open([data])
        announce(config, data.getsockname()[1], admin.getsockname()[1])
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(control.reload_on(signals.hangup, source, loaded, apply)),
            loop.create_task(_refuse_to_replace(signals.replace)),
        ]
        try:
            await signals.stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.info("draining", exchanges=len(half.engine.live))
            await server.drain(signals.hurry)
    log.info("stopped")
    return signals.exit_code


def jwks_watch(half: DataHalf) -> JwksWatch:
    """Finds the keys of tokens for a data half in this process."""
    watch = JwksWatch(half.clock, partial(open_url, half.clock, half.deadlines), half.take_jwks)
    half.ask_jwks = watch.ask
    return watch


def health_watch(half: DataHalf) -> HealthWatch:
    """Checks the endpoints of a data half in this process."""

    def calls(provider: str) -> int:
        cluster = half.engine.graph.clusters.get(provider)
        return cluster.rq_total if cluster is not None else 0

    opened = partial(open_check, half.clock, half.deadlines)
    watch = HealthWatch(half.clock, half.engine.rng, opened, half.take_verdict, calls)
    half.engine.leave_alone = watch.leave_alone
    return watch


async def _refuse_to_replace(asked: asyncio.Event) -> None:
    """Say each time that nothing happened: this process has nobody beside it to serve while its successor starts."""
    while True:
        await asked.wait()
        asked.clear()
        log.warning(
            "replacement_refused",
            reason="SIGUSR2 replaces workers one by one, and this is one process: nothing was done. SIGHUP reloads the "
            "config; for new code without a gap, serve with --workers 2 or more",
        )
