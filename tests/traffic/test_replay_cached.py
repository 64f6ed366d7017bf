"""Recorded traffic through the cache: leader, follower, late joiner and hit get the provider's bytes, at every place
where a stream may be cut into reads, and whatever a filter above does with its events."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from headgate.proxy.filter import Event, Filter
from tests_support.answers import LAST_CHUNK, chunk, response, response_head
from tests_support.cached import CachedRelay
from tests_support.traffic import Row, chat_rows, error_events, ids, other_rows, without_ours

pytestmark = pytest.mark.shared_data

OPEN: dict[str, Any] = {
    "tools": True,
    "operations": ["chat", "completions", "responses", "embeddings", "moderations", "rerank", "images"],
}
ROWS = [*chat_rows(), *other_rows()]


class Looker(Filter):
    """Takes every stream off the byte path, and changes nothing."""

    name = "looker"

    def on_event(self, ex: object, event: Event) -> Event:
        return event


def pieces(row: Row, rng: Random) -> list[bytes]:
    """The body, cut anywhere."""
    cuts = sorted(rng.randrange(len(row.body) + 1) for _ in range(6))
    return [row.body[start:end] for start, end in zip([0, *cuts], [*cuts, len(row.body)], strict=True) if end > start]


@pytest.mark.parametrize("above", [False, True], ids=["bytes", "events"])
@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
def test_everybody_gets_the_provider_s_bytes(row: Row, above: bool) -> None:
    it = CachedRelay(above=[Looker()] if above else [], retry=None, **OPEN)
    path = row.path
    leader, follower = it.ask(row.sent, path=path), it.ask(row.sent, path=path)
    if len(it.calls) == 2:  # nobody's to share: each asks for itself
        for call in it.calls:
            call.feed(response(row.status, row.body, row.headers))
        assert [without_ours(one.received) for one in (leader, follower)] == [row.expected] * 2
        assert {one.header(b"x-headgate-cache") for one in (leader, follower)} == {b"bypass"}
        assert it.cache.stored == 0
        assert it.at_rest()
        return
    it.feed(response_head(row.status, [*row.headers, ("transfer-encoding", "chunked")]))
    first, *rest = map(chunk, pieces(row, Random(len(row.body))))
    it.feed(first)
    late = it.ask(row.sent, path=path)
    it.feed(*rest, LAST_CHUNK)
    clients = [leader, follower, late]
    if it.cache.stored:
        clients.append(it.ask(row.sent, path=path))
        assert clients[-1].header(b"x-headgate-cache") == b"hit"
        assert row.status == 200
        assert not error_events(row.body)
    assert {without_ours(one.received) for one in clients} == {row.expected}
    assert len(it.calls) == 1
    assert it.at_rest()
