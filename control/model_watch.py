"""Which models do the providers have? Asked in the background, never while a request waits.

Only those are asked whose list says something the config does not: the targets of a wildcard, and providers that can
be addressed directly. An answer is good for ten minutes. One that fails, is late or too large changes nothing: what was
known stays, and the provider is asked again after a pause that doubles up to the same ten minutes.

Not here: how an answer is read (a `Dialect`), what becomes of it (proxy/model_list.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from ..proxy.catalog import Listing
from ..proxy.errors import GatewayError
from ..proxy.upstream.call import UpstreamRequest
from ..proxy.upstream.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import GatewayConfig, Provider
    from ..proxy.catalog import ListedModel
    from ..proxy.clock import Clock
    from ..proxy.dialect import Dialect
    from ..proxy.upstream.call import Endpoint

    OpenProvider = Callable[[Provider], tuple[Endpoint, Dialect]]
    """A connection to a provider, with its credential, and its language. Whoever opens it closes it."""

FRESH_SECONDS = 600.0
FIRST_PAUSE = 15.0
"""After a failure; the next one is twice as long."""
ASK_SECONDS = 20.0
"""For one answer, from connect to its last byte."""
MOST_BYTES = 4 * 1024 * 1024
log = structlog.get_logger("headgate")


def asked(config: GatewayConfig) -> list[str]:
    """The providers whose own list matters under this config."""
    wanted = set(config.providers)
    if config.models:
        wanted = {name for name, provider in config.providers.items() if provider.direct}
        for pattern, model in config.models.items():
            if pattern.endswith("*"):
                wanted.update(target.provider for target in model.targets if target.model is None)
    return [
        name
        for name, provider in config.providers.items()
        if name in wanted and provider.list_models and not (provider.unconfigured or provider.is_mock)
    ]


class ModelWatch:
    """Keeps `listings` up to date for the config it follows, and tells `publish` of each that is new.

    Its tasks end with `aclose`.
    """

    def __init__(self, clock: Clock, open_provider: OpenProvider, publish: Callable[[Listing], object]) -> None:
        self.listings: dict[str, Listing] = {}
        self._clock = clock
        self._open = open_provider
        self._publish = publish
        self._tasks: dict[str, tuple[object, asyncio.Task[None]]] = {}

    def follow(self, config: GatewayConfig) -> None:
        """Ask the providers of `config` from now on. Of one that is not in it, or elsewhere, or has another credential,
        everything is forgotten. What is known of the others is told again: a reload may have made their clusters anew.
        """
        wanted = {name: _identity(config.providers[name]) for name in asked(config)}
        for name in [name for name, (identity, _) in self._tasks.items() if wanted.get(name) != identity]:
            self._tasks.pop(name)[1].cancel()
            self.listings.pop(name, None)
        for listing in self.listings.values():
            self._publish(listing)
        for name, identity in wanted.items():
            if name not in self._tasks:
                task = asyncio.get_running_loop().create_task(self._watch(name, config.providers[name]))
                self._tasks[name] = identity, task

    async def aclose(self) -> None:
        """Stop asking."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, name: str, provider: Provider) -> None:
        failures = 0
        while True:
            try:
                models = await self._ask(provider)
            except (GatewayError, TimeoutError, ValueError) as error:
                failures += 1
                if failures == 1:
                    log.info("models_not_listed", provider=name, reason=str(error) or "timeout")
            except Exception as error:  # a bug, which costs the list of one provider
                failures += 1
                log.error("models_not_listed", provider=name, exc_info=error)
            else:
                failures = 0
                listing = self.listings[name] = Listing(name, provider.address, tuple(models))
                self._publish(listing)
            pause = FIRST_PAUSE * 2.0 ** min(failures - 1, 10) if failures else FRESH_SECONDS
            await self._clock.sleep(min(pause, FRESH_SECONDS))

    async def _ask(self, provider: Provider) -> list[ListedModel]:
        """Raises GatewayError, TimeoutError, ValueError."""
        endpoint, dialect = self._open(provider)
        fields = [(b"accept", b"application/json"), (b"accept-encoding", b"identity"), (b"user-agent", b"headgate")]
        request = UpstreamRequest(b"GET", dialect.models_target, fields, b"")
        try:
            head, body = await fetch(endpoint, request, most=MOST_BYTES, seconds=ASK_SECONDS)
        finally:
            await endpoint.aclose()
        if head.status != 200:
            raise ValueError(f"status {head.status}")
        return dialect.read_models(body)


def _identity(provider: Provider) -> object:
    key = provider.credentials[0].key.reveal() if provider.credentials else None
    return provider.address, provider.dialect, key
