"""GatewayMiddleware: an application serves the OpenAI API beside its own routes, and notices nothing else of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from headgate import GatewayMiddleware
from headgate.control.endpoints import FACES
from tests_support.answers import LAST_CHUNK, chat_chunks, chat_completion, chunk, event, json_response, response_head
from tests_support.asgi import Lifespan, ask, http_scope, served
from tests_support.embedded import MESSAGES, embedded_config, ledger
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, config_for
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FIN, STALL, FakeUpstream, Pause, Request, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.requests import Request as OwnRequest
    from starlette.websockets import WebSocket

SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
EVENTS = [event(one) for one in chat_chunks()]
BEARER = [("authorization", f"Bearer {CLIENT_KEY}"), ("content-type", "application/json")]
STREAM_BODY = CHAT_BODY[:-1] + b',"stream":true}'
LOCAL = [("host", "localhost")]
OPERATOR = "hg-operator-canary-4Rt6yH8j"
KEYS = [{"name": "app", "key": CLIENT_KEY}, {"name": "op", "key": OPERATOR, "roles": ["admin"]}]


def provider(asked: Request) -> Sequence[Step]:
    if asked.json().get("stream"):
        return [SSE, *map(chunk, EVENTS), LAST_CHUNK]
    return [json_response(chat_completion())]


async def home(request: OwnRequest) -> PlainTextResponse:
    return PlainTextResponse(f"home of {request.url.path}")


def application(**settings: Any) -> Starlette:
    return Starlette(routes=[Route("/", home), Route("/v1/own", home)], **settings)


class Untouched:
    """An application that only notes what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append((scope, receive, send))


async def test_the_sdk_is_served_beside_the_applications_own_routes(tmp_path: Path, no_leaks: None) -> None:
    async with FakeUpstream(provider) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        async with served(app) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key=CLIENT_KEY, max_retries=0) as client:
            answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
            said = "".join([one.choices[0].delta.content or "" async for one in stream])
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="sk-wrong-key-00001").models.list()
            own = await client._client.get(f"{url}/")
            health = await client._client.get(f"{url}/v1/health")
    assert answer.choices[0].message.content == said == "Hello there."
    assert own.text == "home of /"
    assert (health.status_code, health.json()["status"]) == (200, "healthy")
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok", "ok"]


async def test_it_is_added_the_way_starlette_adds_middleware(tmp_path: Path) -> None:
    async with FakeUpstream(provider) as upstream:
        app = application()
        app.add_middleware(GatewayMiddleware, config=embedded_config(tmp_path, upstream))
        async with Lifespan(app):
            answer = await ask(app, "POST", CHAT, CHAT_BODY, BEARER)
            own = await ask(app, "GET", "/v1/own")
    assert (answer.status, own.body) == (200, b"home of /v1/own")
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok"]


@pytest.mark.parametrize(
    "scope",
    [
        http_scope("POST", "/"),
        http_scope("GET", "/v1"),
        http_scope("POST", "/v1/own", [("x", "y")], query=b"a=1"),
        http_scope("POST", "/v2/chat/completions"),
        {**http_scope("GET", CHAT), "type": "websocket"},
        {"type": "something.new"},
    ],
    ids=lambda scope: f"{scope['type']} {scope.get('path')}",
)
async def test_what_is_not_ours_passes_untouched(scope: dict[str, Any], tmp_path: Path) -> None:
    """The very objects, and the gateway does not even start for it."""
    inner = Untouched()
    app = GatewayMiddleware(inner, embedded_config(tmp_path))
    before = json.dumps(scope, default=repr)

    async def receive() -> Any:
        raise AssertionError("nobody may receive in its place")

    async def send(message: Any) -> None:
        raise AssertionError("nobody may send in its place")

    await app(scope, receive, send)
    [(got_scope, got_receive, got_send)] = inner.calls
    assert got_scope is scope
    assert (got_receive, got_send) == (receive, send)
    assert json.dumps(scope, default=repr) == before
    assert not app.gateway.ready


async def test_every_row_of_the_endpoint_table_is_ours(tmp_path: Path) -> None:
    inner = Untouched()
    app = GatewayMiddleware(inner, embedded_config(tmp_path))
    async with Lifespan(app):
        for face in FACES:
            path = face.path + "x" if face.path.endswith("/") else face.path
            answer = await ask(app, face.method, path, b"{}")
            refusal = (426, "upgrade_required") if face.websocket else (401, "invalid_api_key")
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == refusal, face
        wrong = await ask(app, "DELETE", CHAT)
    assert (wrong.status, wrong.header("allow")) == (405, "POST")
    assert [call[0]["type"] for call in inner.calls] == ["lifespan"]


async def test_it_is_up_before_the_application_and_down_after_it(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append(("up", wrapped.gateway.ready))
        yield {"own": "state"}
        seen.append(("down", wrapped.gateway.ready))

    wrapped = GatewayMiddleware(application(lifespan=lifespan), embedded_config(tmp_path))
    async with Lifespan(wrapped):
        assert wrapped.gateway.ready
    assert seen == [("up", True), ("down", True)]
    assert not wrapped.gateway.ready


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_application_without_lifespan_gets_ours(how: str, tmp_path: Path, no_leaks: None) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" and how == "raises":
            raise NotImplementedError("http only")

    async with FakeUpstream(provider) as upstream:
        app = GatewayMiddleware(bare, embedded_config(tmp_path, upstream))
        async with Lifespan(app):
            assert (await ask(app, "POST", CHAT, CHAT_BODY, BEARER)).status == 200
    assert not app.gateway.ready
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok"]


async def test_an_application_that_fails_to_start_takes_the_gateway_down(tmp_path: Path, no_leaks: None) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    app = GatewayMiddleware(application(lifespan=lifespan), embedded_config(tmp_path))
    server = Lifespan(app)
    assert await server.startup() == "lifespan.startup.failed"
    assert "no database" in server.said[-1]["message"]
    assert server._task is not None
    with pytest.raises(ValueError, match="no database"):
        await server._task
    assert not app.gateway.ready


async def test_an_application_that_fails_to_stop_takes_the_gateway_down(tmp_path: Path, no_leaks: None) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise ValueError("no database")

    app = GatewayMiddleware(application(lifespan=lifespan), embedded_config(tmp_path))
    server = Lifespan(app)
    assert await server.startup() == "lifespan.startup.complete"
    assert await server.order("shutdown") == "lifespan.shutdown.failed"
    assert server._task is not None
    with pytest.raises(ValueError, match="no database"):
        await server._task
    assert not app.gateway.ready


async def test_a_gateway_that_cannot_start_says_why_and_the_application_stays_down(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inner = Untouched()
    config = embedded_config(tmp_path, changes={"events": {"spool": {"path": str(tmp_path / "file" / "spool")}}})
    server = Lifespan(GatewayMiddleware(inner, config))
    with capture_logs() as logs:
        assert await server.startup() == "lifespan.startup.failed"
    assert "events.spool.path" in server.said[-1]["message"]
    assert "not_started" in [line["event"] for line in logs]
    assert inner.calls == []


async def test_without_a_lifespan_the_first_requests_start_it_once(tmp_path: Path, no_leaks: None) -> None:
    async with FakeUpstream(provider) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        answers = await asyncio.gather(*(ask(app, "POST", CHAT, CHAT_BODY, BEARER) for _ in range(10)))
        assert len(list((tmp_path / "spool").glob("0-*.lock"))) == 1
        await app._embedded.aclose()
    assert [answer.status for answer in answers] == [200] * 10
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok"] * 10


async def test_health_starts_it_too(tmp_path: Path) -> None:
    app = GatewayMiddleware(application(), embedded_config(tmp_path))
    scope = http_scope("GET", "/v1/health")
    answer = await ask(app, "GET", "/v1/health")
    wrong = await ask(app, "POST", "/v1/health")
    await app._embedded.aclose()
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "healthy")
    assert (wrong.status, json.loads(wrong.body)["error"]["code"]) == (405, "method_not_allowed")
    assert "app" not in scope


async def test_shutdown_drains(tmp_path: Path) -> None:
    """What runs finishes, what is new is turned away, and then it is over."""
    pause = Pause()
    script: list[Step] = [SSE, *map(chunk, EVENTS[:2]), pause, *map(chunk, EVENTS[2:]), LAST_CHUNK]
    async with FakeUpstream(script) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        server = Lifespan(app)
        assert await server.startup() == "lifespan.startup.complete"
        running = asyncio.create_task(ask(app, "POST", CHAT, STREAM_BODY, BEARER))
        await pause.reached()
        stopping = asyncio.create_task(server.order("shutdown"))
        async with asyncio.timeout(5):
            while app.gateway.ready:  # noqa: ASYNC110 - a flag tells nobody
                await asyncio.sleep(0.005)
        late = await ask(app, "POST", CHAT, CHAT_BODY, BEARER)
        health = await ask(app, "GET", "/v1/health")
        assert not stopping.done()
        pause.go()
        answer = await running
        assert await stopping == "lifespan.shutdown.complete"
    assert answer.whole
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert (late.status, json.loads(late.body)["error"]["code"]) == (503, "shutting_down")
    assert (health.status, json.loads(health.body)["status"]) == (503, "draining")
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok", "refused"]


async def test_a_client_that_leaves_cancels_the_provider(tmp_path: Path) -> None:
    script: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL]
    async with FakeUpstream(script) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        async with Lifespan(app):
            await ask(app, "POST", CHAT, STREAM_BODY, BEARER, leave_when=lambda body: b"Hel" in body)
            await upstream.wait_closed()
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]


async def test_a_stream_that_cannot_be_made_whole_is_not_ended(tmp_path: Path) -> None:
    """The server then closes the connection, which is all a body of sound can be told by."""
    head = response_head(200, [("content-type", "audio/mpeg"), ("content-length", "9")])
    async with FakeUpstream([head, b"half"]) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream, timeouts={"total": "1s"}))
        async with Lifespan(app):
            body = b'{"model":"m","input":"x","voice":"v"}'
            answer = await ask(app, "POST", "/v1/audio/speech", body, BEARER)
    assert (answer.status, answer.whole, answer.body) == (200, False, b"half")


async def test_an_answer_that_breaks_before_its_first_byte_is_no_page_of_the_server(tmp_path: Path) -> None:
    head = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
    async with FakeUpstream([head, FIN]) as upstream:
        app = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        async with served(app) as url, RawClient(int(url.rpartition(":")[2])) as client:
            await client.send(request("POST", "/v1/audio/speech", b'{"model":"m","input":"x","voice":"v"}', BEARER))
            answer = await client.answer()
    assert (answer.status, answer.body, answer.whole) == (200, b"", False)


@pytest.mark.parametrize("prefix", ["/llm", "/a b"])
async def test_it_may_be_mounted_below_a_path(prefix: str, tmp_path: Path) -> None:
    async with FakeUpstream(provider) as upstream:
        inner = GatewayMiddleware(application(), embedded_config(tmp_path, upstream))
        app = Starlette(routes=[Mount(prefix, app=inner)])
        answer = await ask(app, "POST", prefix + CHAT, CHAT_BODY, BEARER)
        behind = await ask(inner, "POST", CHAT, CHAT_BODY, BEARER, root_path=prefix)
        own = await ask(app, "GET", prefix + "/v1/own")
        await inner._embedded.aclose()
    assert (answer.status, behind.status) == (200, 200)
    assert own.body.decode().endswith("/v1/own")


async def test_a_websocket_of_the_application_works(tmp_path: Path) -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    def talk() -> str:
        app = GatewayMiddleware(Starlette(routes=[WebSocketRoute("/v1/own", echo)]), embedded_config(tmp_path))
        with TestClient(app) as client, client.websocket_connect("/v1/own") as connection:
            connection.send_text("hello")
            return str(connection.receive_text())

    assert await asyncio.to_thread(talk) == "hello"


def test_a_test_client_without_lifespan_may_ask_again_and_again(tmp_path: Path) -> None:
    """It runs every request on a loop of its own."""
    client = TestClient(GatewayMiddleware(application(), embedded_config(tmp_path)))
    assert [client.get("/v1/models").status_code for _ in range(3)] == [401] * 3
    with client:
        assert client.get("/v1/models").status_code == 401


async def test_admin_is_there_to_be_mounted_and_asks_for_a_key(tmp_path: Path) -> None:
    """On a listener of the application's, no address is known to be this machine's alone."""
    async with FakeUpstream(provider) as upstream:
        config = embedded_config(tmp_path, upstream, auth=False, changes={"filters": [{"auth": {"keys": KEYS}}]})
        gateway = GatewayMiddleware(application(), config)
        app = Starlette(routes=[Mount("/ops", app=gateway.admin), Mount("/", app=gateway)])
        operator = [("authorization", f"Bearer {OPERATOR}"), *LOCAL]
        asked = {
            path: (await ask(app, "GET", path, b"", operator)).status
            for path in ("/ops/ready", "/ops/metrics", "/ops/clusters", "/ops/config_dump", "/ops/")
        }
        assert (await ask(app, "POST", CHAT, CHAT_BODY, BEARER)).status == 200
        metrics = await ask(app, "GET", "/ops/metrics", b"", operator)
        stranger = [
            await ask(app, "GET", path, b"", [("host", "localhost")]) for path in ("/ops/ready", "/ops/metrics")
        ]
        unknown = await ask(app, "GET", "/ops/nowhere", b"", operator)
        drain = await ask(app, "POST", "/ops/drain", b"", operator)
        late = await ask(app, "POST", CHAT, CHAT_BODY, BEARER)
        await gateway._embedded.aclose()
    assert asked == dict.fromkeys(asked, 200)
    assert b"headgate_exchanges_total" in metrics.body
    assert [answer.status for answer in stranger] == [200, 401]
    assert json.loads(stranger[0].body) == {"state": "LIVE"}
    assert (unknown.status, drain.status, late.status) == (404, 200, 503)


async def test_admin_without_a_key_tells_no_more_than_ready(tmp_path: Path) -> None:
    gateway = GatewayMiddleware(application(), embedded_config(tmp_path, auth=False))
    statuses = [(await ask(gateway.admin, "GET", path, b"", LOCAL)).status for path in ("/ready", "/metrics", "/")]
    await gateway._embedded.aclose()
    assert statuses == [200, 403, 403]


async def test_what_is_unused_and_what_is_odd_is_said_once(tmp_path: Path) -> None:
    changes = {"workers": 3, "listeners": {"data": {"port": 8071}}}
    app = GatewayMiddleware(application(), embedded_config(tmp_path, auth=False, changes=changes))
    with capture_logs() as logs:
        for _ in range(2):
            assert (await ask(app, "GET", "/v1/models")).status == 200
    await app._embedded.aclose()
    said = [line["message"] for line in logs if line["event"] == "config"]
    assert said[0] == "listeners and workers: not used inside an application"
    assert len([line for line in said if "auth is open" in line]) == 1
    assert len(said) == 2
    assert app.gateway.config.workers == 1


async def test_nothing_is_said_to_be_unused_that_was_not_written(tmp_path: Path) -> None:
    app = GatewayMiddleware(application(), embedded_config(tmp_path))
    with capture_logs() as logs:
        await ask(app, "GET", "/v1/models")
    await app._embedded.aclose()
    assert [line for line in logs if line["event"] == "config"] == []


async def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    async with FakeUpstream(provider) as upstream:
        file = tmp_path / "gateway.yaml"
        events = {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}}
        file.write_text(json.dumps({**config_for(upstream), "events": events}))
        app = GatewayMiddleware(application(), file)
        async with Lifespan(app):
            assert (await ask(app, "POST", CHAT, CHAT_BODY, BEARER)).status == 200
