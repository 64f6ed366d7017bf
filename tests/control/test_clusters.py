"""clusters: what active checks say of hosts outlives a config exactly as long as somebody asks."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from headgate.control.clusters import ClusterSet
from headgate.dialects.openai import OpenAI
from headgate.proxy.clock import Deadlines
from headgate.proxy.upstream.cluster import COOLING
from headgate.proxy.upstream.health import Verdict
from tests_support.clock import FakeClock
from tests_support.gateway import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headgate.config import Provider
    from headgate.proxy.upstream.place import Holder


def providers(*names: str, checked: bool = True, **settings: Any) -> Mapping[str, Provider]:
    """One, with endpoints of these names."""
    provider = {"endpoints": [{"url": f"http://{name}/v1"} for name in names], **settings}
    if checked:
        provider["health_check"] = {}
    return load(json.dumps({"providers": {"p": provider}})).providers


class Kept:
    """The clusters of one config after the other."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.set = ClusterSet({"openai": OpenAI()}, clock, Deadlines(clock), Random(1))

    def update(self, *names: str, **settings: Any) -> None:
        self.set.update(providers(*names, **settings), 1)

    def judge(self, name: str, healthy: bool) -> bool:
        return self.set.judge(Verdict("p", f"http://{name}:80", healthy))

    @property
    def available(self) -> str:
        """The names of those who take calls."""
        return "".join(host.name[7] for host in self.set.clusters["p"].hosts if host.available)

    @property
    def health(self) -> str:
        return self.set.clusters["p"].health


@pytest.fixture
async def kept() -> Kept:
    return Kept()


async def test_at_the_start_all_are_used_until_their_first_check(kept: Kept) -> None:
    kept.update("a", "b")
    assert kept.available == "ab"
    assert not kept.judge("a", False)
    assert kept.available == "b"


async def test_what_is_said_of_the_provider_changes_with_its_last_endpoint(kept: Kept) -> None:
    kept.update("a", "b")
    assert kept.health == "configured"
    assert not kept.judge("a", False)
    assert kept.judge("b", False)
    assert kept.health == "unhealthy"
    assert not kept.judge("b", False)
    assert kept.judge("b", True)
    assert kept.health == "configured"
    kept.update("a", "b", api_key="${NONE:-}")
    assert kept.health == "unconfigured"


async def test_an_endpoint_that_joins_waits_for_its_first_check_where_others_serve(kept: Kept) -> None:
    kept.update("a")
    kept.update("a", "b")
    assert kept.available == "a"
    kept.judge("b", True)
    assert kept.available == "ab"
    kept.update("c", "d")
    assert kept.available == "cd", "nobody else is there"
    kept.update("c", "e", checked=False)
    assert kept.available == "ce", "nobody will ask"


@pytest.mark.parametrize("change", [{"api_key": "other"}, {"http2": False}, {"slow_start": "1s"}])
async def test_a_reload_keeps_what_is_known(kept: Kept, change: dict[str, Any]) -> None:
    kept.update("a", "b")
    kept.judge("a", False)
    kept.update("a", "b", **change)
    assert kept.available == "b"


async def test_a_key_that_rests_goes_on_resting_when_another_joins_it(kept: Kept) -> None:
    keys = [{"name": "a", "key": "one"}, {"name": "b", "key": "two"}]
    kept.update("x", api_keys=keys[:1])
    old = kept.set.clusters["p"]
    assert old._credentials is not None
    limited = SimpleNamespace(credential=old._credentials.pick("m", 0.0))
    old.limited(cast("Holder", limited), "m", 0.0, 60.0)
    assert old.objection("m", 0.0) == COOLING
    kept.update("x", api_keys=keys[:1], slow_start="1s")
    assert kept.set.clusters["p"].strained
    assert kept.set.clusters["p"].objection("m", 0.0) == COOLING
    kept.update("x", api_keys=keys)
    new = kept.set.clusters["p"]
    assert new is not old
    assert new.objection("m", 0.0) is None
    assert new._credentials is not None
    assert [str(new._credentials.pick("m", 0.0)) for _ in range(2)] == ["<Credential b>"] * 2
    assert new.objection("m", 61.0) is None
    assert not new.strained


async def test_without_checks_everybody_is_well_again_and_late_words_are_ignored(kept: Kept) -> None:
    kept.update("a", "b")
    kept.judge("a", False)
    kept.update("a", "b", checked=False)
    assert kept.available == "ab"
    assert not kept.judge("a", False)
    assert not kept.set.judge(Verdict("gone", "http://a:80", False))
    assert kept.available == "ab"
