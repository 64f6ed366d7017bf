"""jwks_watch: asked at the start, every five minutes, and for unknown keys at most twice a minute; stale is served."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from headgate.config import GatewayConfig, parse_config
from headgate.control.clusters import open_url
from headgate.control.jwks_watch import FRESH_SECONDS, MOST_BYTES, REST_SECONDS, JwksWatch
from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.errors import ConnectError
from tests_support.answers import error_response, json_response
from tests_support.caller import eventually
from tests_support.clock import FakeClock
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.proxy.upstream.call import Endpoint

URL = "https://id.example/keys?v=1"


def config(url: str | None = URL) -> GatewayConfig:
    auth = f"{{jwt: {{issuer: i, audience: a, jwks_url: '{url}'}}}}" if url is not None else "{}"
    return parse_config(f"filters: [{{auth: {auth}}}]", env={})


class Watched:
    """A watch whose issuer says `answer`, or is away where that is None; `published` where it is of use."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.answer: bytes | None = b"one"
        self.asked: list[tuple[float, str]] = []
        self.published: list[bytes] = []
        self.watch = JwksWatch(self.clock, self._open, self._publish)
        self.watch._get = self._get  # type: ignore[method-assign]

    def _open(self, url: str) -> Endpoint:
        raise NotImplementedError

    async def _get(self, url: str) -> bytes:
        self.asked.append((self.clock.monotonic(), url))
        if self.answer is None:
            raise ConnectError("away")
        return self.answer

    def _publish(self, url: str, jwks: bytes) -> None:
        if jwks == b"bad":
            raise ValueError("of no use")
        self.published.append(jwks)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    watched.watch.follow(config())
    await asyncio.sleep(0)
    yield watched
    await watched.watch.aclose()


async def test_it_asks_at_once_and_then_every_five_minutes(watched: Watched) -> None:
    await watched.clock.run(FRESH_SECONDS - 2)
    assert len(watched.asked) == 1
    await watched.clock.run(4)
    assert len(watched.asked) == 2
    assert watched.published == [b"one", b"one"]


async def test_a_flood_of_unknown_keys_is_one_look_in_thirty_seconds(watched: Watched) -> None:
    for _ in range(300):
        watched.watch.ask()
        await watched.clock.run(1)
    times = [at for at, _ in watched.asked]
    assert 8 <= len(times) <= 11
    assert all(later - earlier >= REST_SECONDS for earlier, later in pairwise(times))


async def test_what_was_known_stays_while_the_issuer_is_away_or_says_nonsense(watched: Watched) -> None:
    for answer in (None, b"bad"):
        watched.answer = answer
        watched.watch.ask()
        await watched.clock.run(3 * REST_SECONDS)
    assert watched.published == [b"one"]
    assert watched.watch.found == (URL, b"one")
    watched.answer = b"two"
    await watched.clock.run(REST_SECONDS + 2)
    assert watched.published == [b"one", b"two"]


async def test_the_log_shows_no_query_because_a_key_may_stand_there(watched: Watched) -> None:
    watched.answer = b"bad"
    watched.watch.ask()
    with capture_logs() as logged:
        await watched.clock.run(REST_SECONDS + 2)
    assert [line["url"] for line in logged] == ["https://id.example/keys?***"]


async def test_while_nothing_is_known_it_asks_sooner() -> None:
    watched = Watched()
    watched.answer = None
    watched.watch.follow(config())
    await asyncio.sleep(0)
    await watched.clock.run(8)
    assert [round(at - watched.asked[0][0]) for at, _ in watched.asked] == [0, 1, 3, 7]
    watched.answer = b"one"
    await watched.clock.run(9)
    assert watched.published == [b"one"]
    await watched.watch.aclose()


async def test_a_reload_tells_again_and_another_url_is_asked(watched: Watched) -> None:
    await watched.clock.run(1)
    watched.watch.follow(config())
    assert watched.published == [b"one", b"one"]
    watched.watch.follow(config("https://other.example/"))
    await watched.clock.run(1)
    assert [url for _, url in watched.asked] == [URL, "https://other.example/"]
    watched.watch.follow(config(None))
    await watched.clock.run(1000)
    assert len(watched.asked) == 2


@pytest.mark.parametrize(
    ("answer", "published"),
    [
        (json_response({"keys": []}), [b'{"keys":[]}']),
        (error_response(404, "no"), []),
        (json_response({"more": "x" * MOST_BYTES}), []),
    ],
)
async def test_what_the_issuer_really_says_is_published_if_it_is_whole_and_200(
    answer: bytes, published: list[bytes]
) -> None:
    found: list[bytes] = []
    clock = LoopClock()
    async with FakeUpstream(answer) as issuer:
        url = issuer.base_url + "/keys?v=1"
        opened = partial(open_url, clock, Deadlines(clock))
        watch = JwksWatch(clock, opened, lambda _, jwks: found.append(jwks.replace(b" ", b"")))
        watch.follow(config(url))
        await eventually(lambda: found or len(issuer.requests) == 2)  # what was refused is asked for again
        await watch.aclose()
    assert found == published
    assert issuer.requests[0].target == "/v1/keys?v=1"
    assert issuer.requests[0].header("authorization") is None
