"""Keeps the keys of the issuer of tokens: asked in the background, never while a request waits.

An answer is good for five minutes and is served for as long as no better one comes: an issuer that is away costs
nothing but its news. A token with a key that nobody knows brings the next look forward, yet never closer than 30 s to
the one before, so whoever invents keys makes us ask twice a minute and no more.

Not here: how keys are read, and what they are good for (filters/tokens.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from ..config.chain import shown_url
from ..proxy.errors import GatewayError
from ..proxy.upstream.call import UpstreamRequest
from ..proxy.upstream.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import GatewayConfig
    from ..proxy.clock import Clock
    from ..proxy.upstream.call import Endpoint

    Open = Callable[[str], Endpoint]
    """A connection to the server of a URL. Whoever opens it closes it."""

FRESH_SECONDS = 300.0
REST_SECONDS = 30.0
"""Between two looks, whatever is asked."""
FIRST_PAUSE = 1.0
"""After a failure while nothing is known yet; the next one is twice as long, up to REST_SECONDS."""
ASK_SECONDS = 3.0
MOST_BYTES = 256 * 1024
POLL_SECONDS = 1.0
log = structlog.get_logger("headgate")


class JwksWatch:
    """`publish` takes what was found, and raises ValueError where it is of no use. The task ends with `aclose`."""

    def __init__(self, clock: Clock, open_url: Open, publish: Callable[[str, bytes], object]) -> None:
        self._clock = clock
        self._open = open_url
        self._publish = publish
        self._url: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self.found: tuple[str, bytes] | None = None
        """The URL, and what was last found there."""

    def follow(self, config: GatewayConfig) -> None:
        """Ask the issuer of this config from now on; what is known of the same one is told again."""
        jwt = config.auth.jwt if config.auth is not None else None
        url = jwt.jwks_url if jwt is not None else None
        if url == self._url:
            if self.found is not None:
                self._tell(*self.found)
            return
        if self._task is not None:
            self._task.cancel()
        self._url, self._task, self.found = url, None, None
        if url is not None:
            self._task = asyncio.get_running_loop().create_task(self._watch(url))

    def ask(self) -> None:
        """A token names a key that is not known."""
        self._asked = True

    async def aclose(self) -> None:
        """Stop asking."""
        task, self._task, self._url = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, url: str) -> None:
        failures = 0
        while True:
            self._asked = False
            try:
                jwks = await self._get(url)
                self._publish(url, jwks)
            except (GatewayError, TimeoutError, ValueError) as error:
                failures += 1
                if failures == 1:
                    log.warning("jwks_not_read", url=shown_url(url), reason=str(error) or "timeout")
            except Exception as error:  # a bug, which must not be the end of asking
                failures += 1
                log.error("jwks_not_read", url=shown_url(url), exc_info=error)
            else:
                failures = 0
                self.found = url, jwks
            if self.found is None:
                await self._clock.sleep(min(FIRST_PAUSE * 2.0 ** min(failures - 1, 10), REST_SECONDS))
                continue
            await self._clock.sleep(REST_SECONDS)
            until = self._clock.monotonic() + (FRESH_SECONDS - REST_SECONDS if not failures else 0.0)
            while not self._asked and self._clock.monotonic() < until:
                await self._clock.sleep(POLL_SECONDS)

    async def _get(self, url: str) -> bytes:
        """Raises GatewayError, TimeoutError, ValueError."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        fields = [(b"accept", b"application/json"), (b"accept-encoding", b"identity"), (b"user-agent", b"headgate")]
        endpoint = self._open(url)
        try:
            request = UpstreamRequest(b"GET", target.encode("ascii"), fields, b"")
            head, body = await fetch(endpoint, request, most=MOST_BYTES, seconds=ASK_SECONDS)
        finally:
            await endpoint.aclose()
        if head.status != 200:
            raise ValueError(f"status {head.status}")
        return body

    def _tell(self, url: str, jwks: bytes) -> None:
        try:
            self._publish(url, jwks)
        except ValueError as error:
            log.warning("jwks_not_read", url=shown_url(url), reason=str(error))
