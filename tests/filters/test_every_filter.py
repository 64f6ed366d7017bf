"""Every built-in filter works alone, counts what it decides, and is in the manual and the root file in full."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from headgate.config.chain import FilterEntry
from headgate.control.telemetry.families import FILTER_PLACES
from headgate.proxy.errors import GatewayError
from headgate.proxy.observe import filter_counters
from headgate.proxy.stats import OTHER
from tests_support.admin import KEYS, RunningAdmin, config_with, running_admin

if TYPE_CHECKING:
    from headgate.proxy.filter import Filter

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "filters.md").read_text()
SAMPLE = (ROOT / "gateway.yaml").read_text()
KINDS = sorted(set(get_args(FilterEntry.model_fields["kind"].annotation)) - {"use"})
SETTINGS: dict[str, Any] = {
    "access_log": {},
    "auth": {
        "keys": [{"name": "app", "key": KEYS["app"]}, {"name": "viewer", "key": KEYS["viewer"], "roles": ["viewer"]}]
    },
    "budget": {"per": "key", "usd_per_day": 5, "unknown_price": "allow"},
    "cache": {},
    "circuit_breaker": {},
    "guard": {"rules": [{"name": "email", "pattern": "email"}]},
    "headers": {"request": {"deny": ["x-unwanted"]}},
    "rate_limit": {},
    "retry": {},
}
ORDER = ("auth", "rate_limit", "budget", "cache", "circuit_breaker", "guard", "headers", "access_log", "retry")


def section(kind: str) -> str:
    """The filter's own chapter."""
    return re.split(r"^## ", MANUAL.partition(f"\n## {kind}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def links(admin: RunningAdmin) -> dict[str, Filter]:
    return {link.name: link for link in admin.gateway.half.engine.graph.default.chain.filters}


async def counted(admin: RunningAdmin) -> dict[tuple[str, str], float]:
    """(filter, counter) of every series of a filter."""
    stats = (await admin.get("/stats?filter=headgate_", key="viewer")).json()["stats"]
    found = {}
    for one in stats:
        labels = one.get("labels", {})
        if one["name"] == "headgate_filter_total":
            found[labels["filter"], labels["counter"]] = one["value"]
        elif one["name"].startswith("headgate_auth_"):
            found[labels["filter"], one["name"].removeprefix("headgate_auth_").removesuffix("_total")] = one["value"]
    return found


def test_the_tables_of_this_test_name_every_kind() -> None:
    assert sorted(SETTINGS) == sorted(ORDER) == KINDS


@pytest.mark.parametrize("kind", KINDS)
async def test_it_works_alone_and_each_of_its_counters_is_a_series(kind: str) -> None:
    async with running_admin(config_with(filters=[{kind: SETTINGS[kind]}])) as admin:
        answer = await admin.gateway.post()
        refused = await admin.gateway.post(b"{")
        [link] = links(admin).values()
        found = await counted(admin)
    assert answer.status == 200
    assert answer.json()["choices"]
    assert refused.status == 400
    counters = filter_counters(link)
    assert set(found) == {(kind, name) for name in counters}
    assert kind == "retry" or counters


async def test_all_of_them_together_work_and_no_counter_shares_its_series() -> None:
    filters = [{kind: SETTINGS[kind]} for kind in ORDER]
    filters.insert(2, {"rate_limit": {"name": "per-model", "per": "model", "requests_per_minute": 1000}})
    async with running_admin(config_with(filters=filters)) as admin:
        assert (await admin.gateway.post()).status == 200
        expected = {(name, counter) for name, link in links(admin).items() for counter in filter_counters(link)}
        found = await counted(admin)
    assert not [labels for labels in found if OTHER in labels]
    assert set(found) == expected
    assert len(expected) < FILTER_PLACES / 2  # as many again for an operator's own


@pytest.mark.parametrize("kind", KINDS)
async def test_the_manual_names_every_counter(kind: str) -> None:
    async with running_admin(config_with(filters=[{kind: SETTINGS[kind]}])) as admin:
        [link] = links(admin).values()
    missing = {name for name in filter_counters(link) if not re.search(rf"(\b|_){name}(\b|_)", section(kind))}
    assert missing == set()
    if kind == "retry":
        assert "headgate_retries_total" in section(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manual_names_every_code_that_clients_may_read(kind: str) -> None:
    module = importlib.import_module(f"headgate.filters.{kind}")
    source = Path(str(module.__file__)).read_text()
    made = {
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, GatewayError) and re.search(rf"\b{one.__name__}\(", source)
    }
    assert {error.code for error in made if f"`{error.code}`" not in section(kind)} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_how_stable_it_is_and_stands_in_the_contents_and_in_the_root_file(kind: str) -> None:
    module = importlib.import_module(f"headgate.filters.{kind}")
    assert "Status:" in (module.__doc__ or "")
    assert kind in re.findall(r"\[(\w+)\]\(#\w+\)", MANUAL.partition("```")[0])
    assert re.search(rf"^ +(# )?- {kind}\b", SAMPLE, re.MULTILINE)
