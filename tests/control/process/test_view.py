"""view: what admin sees of one process; warnings, readiness, and whose key it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headgate.config import ConfigError
from headgate.control.events.tailer import ELSEWHERE
from headgate.proxy.errors import UnauthorizedError
from tests_support.admin import AUTH, KEYS, MOCK, config_with, running_admin
from tests_support.gateway import load, written

if TYPE_CHECKING:
    from headgate.control.process.view import SingleView


async def test_it_shows_what_the_halves_have() -> None:
    async with running_admin() as admin:
        view: SingleView = admin.view
        control = admin.control
        assert (view.config, view.clock, view.stats) == (control.config, control.clock, control.stats)
        assert (view.started, view.tailer) == (control.started, control.tailer)
        assert view.readiness() == []
        assert view.snapshot().ready
        assert [one.worker for one in view.workers()] == ["0"]
        assert [chain["route"] for chain in view.chains()] == ["default"]


async def test_a_full_spool_and_a_store_that_is_away_are_warnings_and_not_unready() -> None:
    async with running_admin() as admin:
        before = admin.view.warnings()
        assert admin.gateway.half.spool is not None
        admin.gateway.half.spool.full = True
        admin.control.tailer.last_error = "disk I/O error"
        added = [warning for warning in admin.view.warnings() if warning not in before]
        assert [warning.partition(";")[0].partition(":")[0] for warning in added] == [
            "the spool is full",
            "the event store is away",
        ]
        assert admin.view.readiness() == []


async def test_records_that_go_to_another_ledger_are_a_warning() -> None:
    async with running_admin() as admin:
        before = admin.view.warnings()
        admin.control.tailer._ingest.elsewhere = True
        assert [warning for warning in admin.view.warnings() if warning not in before] == [ELSEWHERE]


async def test_drain_turns_readiness_off_and_keeps_the_process() -> None:
    async with running_admin() as admin:
        await admin.view.drain()
        await admin.view.drain()
        assert admin.view.readiness() == ["draining"]
        assert (await admin.gateway.post(key=None)).status == 503


async def test_without_auth_everybody_is_anonymous() -> None:
    async with running_admin() as admin:
        assert admin.view.identify(b"Bearer whatever").name == "-"


async def test_keys_are_known_and_those_of_a_reload_replace_them() -> None:
    async with running_admin(config_with(auth=True)) as admin:
        assert admin.view.identify(f"Bearer {KEYS['admin']}".encode()).roles == {"admin"}
        assert admin.view.identify(KEYS["app"].encode()).roles == frozenset()
        with pytest.raises(UnauthorizedError):
            admin.view.identify(b"Bearer nobody")
        with pytest.raises(UnauthorizedError):
            admin.view.identify(None)
        fewer = {"auth": {"keys": AUTH["auth"]["keys"][:1]}}
        config = {**config_with(), "filters": [fewer]}
        await admin.gateway.half.reload(load(written(config, admin.gateway.folder)))
        with pytest.raises(UnauthorizedError):
            admin.view.identify(KEYS["admin"].encode())
        assert admin.view.identify(KEYS["app"].encode()).name == "app"


async def test_a_reload_of_the_data_half_shows_in_the_chains_or_not_at_all() -> None:
    async with running_admin() as admin:
        server = admin.gateway.server
        await server.reload(load(written({"providers": MOCK, "filters": ["retry"]}, admin.gateway.folder)))
        [chain] = admin.view.chains()
        assert "retry" in str(chain)
        with pytest.raises(ConfigError):
            await server.reload(load(written({"providers": MOCK, "workers": 2}, admin.gateway.folder)))
        assert admin.view.chains() == [chain]
