"""Gateway: what a reload keeps, what it changes in place, what it makes anew; and an end that leaves nothing behind."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from headgate.config import ConfigError, GatewayConfig, RetryConfig
from headgate.control.filter_factory import make_filter
from headgate.control.process.errors import BootError
from headgate.filters.auth import Auth
from headgate.filters.retry import Retry
from headgate.gateway import Gateway, check_buildable, check_reload, check_startable
from headgate.proxy.clock import LoopClock
from headgate.proxy.filter import Filter
from headgate.proxy.upstream.http_endpoint import HttpEndpoint
from tests_support.answers import chat_chunks, chat_completion, chunk, event, json_response, response_head
from tests_support.caller import eventually
from tests_support.downstream import FakeDownstream
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, config_for, load, running_gateway, written
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import has_done
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests_support.gateway import RunningGateway
    from tests_support.upstream import Request, Step

WHOLE = json_response(chat_completion())
UP = "http://127.0.0.1:9/v1"


@asynccontextmanager
async def started(config: GatewayConfig, **options: Any) -> AsyncIterator[Gateway]:
    """Without a listener and without records."""
    gateway = Gateway(config, spool=False, **options)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.aclose()


def config(text: str, **env: str) -> GatewayConfig:
    """Of a text."""
    return load(text, env)


def providers(**urls: str) -> str:
    """The providers of a config, a key each."""
    written = {name: {"base_url": url, "api_key": "${KEY:-k}"} for name, url in urls.items()}
    return f"providers: {json.dumps(written)}\n"


async def test_a_reload_that_leaves_address_and_key_alone_keeps_the_cluster_and_changes_it_in_place() -> None:
    async with started(config(providers(up=UP) + "limits: {json_depth: 9}")) as gateway:
        before, old = gateway.engine.graph, gateway.resources.clusters["up"]
        settings = "price_as: openai, timeouts: {total: 7s}, limits: {connections: 3}"
        await gateway.reload(config(f"providers: {{up: {{base_url: '{UP}', api_key: k, {settings}}}}}"))
        kept = gateway.resources.clusters["up"]
        endpoint = kept.hosts[0].endpoint
        assert kept is old
        assert gateway.engine.graph is not before
        assert (kept.timeouts.total, kept.price_as) == (7.0, "openai")
        assert isinstance(endpoint, HttpEndpoint)
        assert endpoint.limits.max_connections == 3
        assert gateway.engine.graph.version == gateway.config.digest != before.version


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (providers(up="http://127.0.0.1:10/v1"), {}),
        (providers(up=UP), {"KEY": "another"}),
        (f"providers: {{up: {{base_url: '{UP}', api_key: k, http2: true}}}}", {}),
    ],
    ids=["address", "key", "version of HTTP"],
)
async def test_another_address_key_or_version_of_http_makes_another_cluster(text: str, env: dict[str, str]) -> None:
    async with started(config(providers(up=UP, other=UP))) as gateway:
        old = dict(gateway.resources.clusters)
        await gateway.reload(config(text, **env))
        assert list(gateway.resources.clusters) == ["up"]
        assert gateway.resources.clusters["up"] not in old.values()


async def test_a_change_of_how_calls_are_shared_out_takes_effect_and_keeps_the_hosts() -> None:
    both = "endpoints: [{url: 'http://127.0.0.1:9/v1'}, {url: 'http://127.0.0.1:10/v1'}]"
    async with started(config(f"providers: {{up: {{{both}}}}}")) as gateway:
        old = gateway.resources.clusters["up"]
        await gateway.reload(config(f"providers: {{up: {{{both}, panic_threshold: 0}}}}"))
        new = gateway.resources.clusters["up"]
        assert new is not old
        assert new.hosts == old.hosts
        await gateway.reload(
            config("providers: {up: {endpoints: [{url: 'http://127.0.0.1:10/v1', weight: 3}], panic_threshold: 0}}")
        )
        assert gateway.resources.clusters["up"] is new
        assert [(host.name, host.weight) for host in new.hosts] == [("http://127.0.0.1:10", 3)]


async def test_limits_of_a_provider_are_shared_out_over_the_workers() -> None:
    text = f"workers: 3\nproviders: {{up: {{base_url: '{UP}', limits: {{connections: 10, pending: 2}}}}}}"
    async with started(config(text)) as gateway:
        endpoint = gateway.resources.clusters["up"].hosts[0].endpoint
        assert isinstance(endpoint, HttpEndpoint)
        assert (endpoint.limits.max_connections, endpoint.limits.max_pending) == (4, 1)


async def test_filters_with_equal_settings_keep_their_counters() -> None:
    keys = "filters: [{auth: {header: x-key, keys: [{name: app, key: '%s'}]}}, {retry: {attempts: %d}}]"
    async with started(config(keys % (CLIENT_KEY, 3))) as gateway:
        auth, retry = gateway.engine.graph.default.chain.filters
        await gateway.reload(config(keys % (CLIENT_KEY, 4)))
        same, other = gateway.engine.graph.default.chain.filters
        assert same is auth
        assert other is not retry
        assert gateway.engine.graph.own_fields == {b"x-key"}  # authorization never goes up anyway


BAD_RELOADS = [
    ("filters: [{use: 'nowhere_at_all:X'}]", "cannot be imported"),
    ("filters: [{retry: {attempts: 9}}, {use: 'mine:Picky'}]", "not today"),
    ("prices: {file: FOLDER/bad.yaml}", "prices.file: "),
    ("listeners: {data: {port: 1}}", "listeners: a change needs a restart"),
    ("workers: 2", "workers: a change needs a restart"),
    ("events: {retention: 1d}", "events: a change needs a restart"),
    ("workers: 3\nlisteners: {admin: {port: 2}}\nevents: {path: x}", "listeners, workers, events: a change needs"),
]


@pytest.mark.parametrize(("text", "why"), BAD_RELOADS, ids=[why for _, why in BAD_RELOADS])
async def test_a_reload_that_is_refused_leaves_everything_as_it_was(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(Filter):
        def __init__(self) -> None:
            raise ValueError("not today")

    module = ModuleType("mine")
    module.__dict__["Picky"] = Picky
    monkeypatch.setitem(sys.modules, "mine", module)
    (tmp_path / "bad.yaml").write_text("models: 7")
    good = config(providers(up=UP) + "filters: [retry]")
    async with started(good) as gateway:
        graph, clusters = gateway.engine.graph, gateway.resources.clusters
        bad = config(providers(up="http://127.0.0.1:10/v1") + text.replace("FOLDER", str(tmp_path)))
        with pytest.raises(ConfigError, match=why):
            await gateway.reload(bad)
        assert gateway.engine.graph is graph
        assert gateway.config is good
        assert gateway.resources.clusters == clusters
        await gateway.reload(good.model_copy(update={"limits": config("limits: {json_depth: 9}").limits}))
        assert gateway.engine.graph.default.chain.filters == graph.default.chain.filters
        assert gateway.resources.clusters == clusters


def test_what_a_restart_is_not_needed_for_is_let_through() -> None:
    before = config("filters: [retry]")
    after = config(
        providers(a=UP) + "filters: []\nlimits: {drain: 1s}\nprices: {}\nmodels: {x: {targets: [{provider: a}]}}"
    )
    check_reload(before, after)


def stream_or_whole(rest: list[Step]) -> Any:
    """A script: plain answers at once, streams up to the pause."""
    events = [chunk(event(one)) for one in chat_chunks()]
    head = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])

    def script(asked: Request) -> list[Step]:
        if asked.json().get("stream"):
            return [head, *events[:2], *rest, *events[2:], b"0\r\n\r\n"]
        return [WHOLE]

    return script


STREAM = request("POST", CHAT, b'{"model":"m","stream":true}', [("authorization", f"Bearer {CLIENT_KEY}")])


async def test_a_stream_under_the_old_config_ends_where_it_began_and_its_cluster_then_closes() -> None:
    pause = Pause()
    async with (
        FakeUpstream(stream_or_whole([pause])) as old,
        FakeUpstream(WHOLE) as new,
        running_gateway(config_for(old)) as gateway,
        RawClient(gateway.port) as client,
    ):
        await client.send(STREAM)
        before = (await client.head()).header("x-headgate-config")
        await pause.reached()
        await reload(gateway, config_for(new))
        [retired] = [host for gone in gateway.half._retiring.values() for host in gone.hosts]
        answer = await gateway.post()
        assert (answer.status, len(new.requests)) == (200, 1)
        assert answer.header("x-headgate-config") != before
        pause.go()
        assert has_done((await client.rest()).body) == 1
        await eventually(lambda: not gateway.half._retiring)
        await old.wait_closed()
        assert all(retired not in cluster.hosts for cluster in gateway.half.resources.clusters.values())


async def test_an_exchange_that_was_accepted_before_a_reload_is_sent_after_it() -> None:
    body = b'{"model":"m","messages":[]}'
    async with (
        FakeUpstream(WHOLE) as old,
        FakeUpstream(WHOLE) as new,
        running_gateway(config_for(old)) as gateway,
        RawClient(gateway.port) as client,
    ):
        whole = request("POST", CHAT, body, [("authorization", f"Bearer {CLIENT_KEY}")])
        await client.send(whole[:-5])
        await eventually(lambda: gateway.half.engine.live)
        await reload(gateway, config_for(new))
        await client.send(whole[-5:])
        assert (await client.answer()).status == 200
        assert (len(old.requests), len(new.requests)) == (1, 0)


async def reload(gateway: RunningGateway, changed: dict[str, Any]) -> None:
    """As the control half does, with the folders the gateway has."""
    await gateway.server.reload(load(written(changed, gateway.folder)))


async def test_two_gateways_in_one_process_do_not_know_each_other() -> None:
    async with (
        FakeUpstream(WHOLE) as one_up,
        FakeUpstream(WHOLE) as other_up,
        running_gateway(config_for(one_up)) as one,
        running_gateway(config_for(other_up, auth=False)) as other,
    ):
        assert (await one.post()).status == 200
        assert (await other.post(key=None)).status == 200
        assert (await one.post(key=None)).status == 401
        await one.rows(1)
        await other.rows(1)
        assert (len(one_up.requests), len(other_up.requests)) == (1, 1)
        await reload(one, config_for(one_up, retry=False))
        assert one.half.config.digest != other.half.config.digest
        assert len(other.half.engine.graph.default.chain.filters) == 1
        await one.server.drain()
        assert (await other.post(key=None)).status == 200


async def test_two_gateways_may_share_a_spool_folder(tmp_path: Path) -> None:
    shared = load(written({"providers": {"mock": {"base_url": "mock:"}}}, tmp_path))
    one, other = Gateway(shared), Gateway(shared)
    await one.start()
    await other.start()
    await one.aclose()
    await other.aclose()
    assert len(list((tmp_path / "spool").glob("*.lock"))) == 2


@pytest.mark.usefixtures("no_leaks")
async def test_a_closed_gateway_leaves_no_task_and_no_descriptor() -> None:
    async with FakeUpstream(stream_or_whole([Pause()])) as upstream:
        for _ in range(3):
            async with running_gateway(config_for(upstream)) as gateway, RawClient(gateway.port) as client:
                assert (await gateway.post()).status == 200
                await client.send(STREAM)
                await client.head()
                await reload(gateway, config_for(upstream, provider_key="sk-other-canary-3Wn8cB6yHg1JfXeU"))
                gateway.half.config = gateway.half.config.model_copy(
                    update={"limits": config("limits: {drain: 10ms}").limits}
                )


@pytest.mark.usefixtures("no_leaks")
async def test_a_gateway_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    gateway = Gateway(config(providers(up=UP) + f"events: {{spool: {{path: {tmp_path}/file/spool}}}}"))
    with pytest.raises(BootError, match=r"cannot write records to .*/file/spool: Not a directory"):
        await gateway.start()
    assert not gateway.ready
    with pytest.raises(BootError, match=r"set events\.spool\.path"):
        check_startable(gateway.config, LoopClock())


async def test_a_price_table_that_cannot_be_had_stops_the_start_and_refuses_a_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from headgate.control import parts
    from headgate.proxy.accounting.price_table import PriceTableError

    def fails(**_: Any) -> None:
        raise PriceTableError("cannot compile the price table: no such module")

    async with started(config(providers(up=UP))) as gateway:
        monkeypatch.setattr(parts, "load_price_table", fails)
        graph = gateway.engine.graph
        with pytest.raises(ConfigError, match="cannot compile the price table"):
            await gateway.reload(config(providers(up="http://127.0.0.1:10/v1")))
        assert gateway.engine.graph is graph
    with pytest.raises(BootError, match="it needs the package genai-prices"):
        await Gateway(config(providers(up=UP)), spool=False).start()


def test_a_gateway_takes_a_config_a_path_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("limits: {json_depth: 9}")
    monkeypatch.chdir(tmp_path)
    assert Gateway(str(file)).config.limits.json_depth == Gateway(file).config.limits.json_depth == 9
    assert Gateway(config("limits: {json_depth: 7}")).config.limits.json_depth == 7
    assert Gateway().config.limits.json_depth == 64


def test_the_built_in_filters_are_known_by_their_settings() -> None:
    auth = config(f"filters: [{{auth: {{keys: [{{name: a, key: {CLIENT_KEY}}}]}}}}]").auth
    assert isinstance(make_filter(auth), Auth)
    assert isinstance(make_filter(RetryConfig()), Retry)
    with pytest.raises(TypeError, match="no filter for int"):
        make_filter(7)


def test_check_finds_what_only_building_shows(tmp_path: Path) -> None:
    check_buildable(config(providers(up=UP) + "filters: [retry]"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        check_buildable(config("filters: [{use: 'nowhere_at_all:X'}]"))


async def test_the_mock_answers_only_while_nobody_else_can() -> None:
    targets = [{"provider": "up"}, {"provider": "mock", "priority": 1}]
    async with FakeUpstream(WHOLE) as upstream:
        up = {"base_url": upstream.base_url, "api_key": "${KEY:-}"}
        text = json.dumps(
            {"providers": {"mock": {"base_url": "mock:"}, "up": up}, "models": {"*": {"targets": targets}}}
        )
        answered = []
        for env in ({}, {"KEY": "sk-x"}):
            async with started(config(text, **env)) as gateway:
                answered.append(await answered_by(gateway))
    assert answered == [b"mock", b"up"]


async def answered_by(gateway: Gateway) -> bytes | None:
    """Which provider answers a request now."""
    downstream = FakeDownstream(CHAT_BODY)
    gateway.engine.accept(downstream)
    downstream.deliver()
    await eventually(lambda: downstream.finished)
    return downstream.header(b"x-headgate-provider")
