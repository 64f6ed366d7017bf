"""asgi_app: an ASGI app behind the edge gets whole bodies and true disconnects; its failures are answered in JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from headgate.proxy.edge.asgi_app import BODY_LIMIT
from headgate.proxy.errors import AdminKeyRequiredError
from tests_support.edge import EchoAcceptor, running_edge
from tests_support.raw import RawClient, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

PATH = "/admin"


async def test_starlette_runs_on_it() -> None:
    async def show(request: Request) -> JSONResponse:
        body = await request.body()
        return JSONResponse({"path": request.url.path, "query": dict(request.query_params), "body": body.decode()})

    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for number in range(3):
                yield f"part {number}\n"

        return StreamingResponse(parts(), media_type="text/plain")

    app = Starlette(
        routes=[Route("/show/{name}", show, methods=["POST"]), Route("/stream", stream)],
        exception_handlers={404: lambda *_: PlainTextResponse("nowhere", 404)},
    )
    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        assert edge.context.app.accepts("/anything")
        await client.send(request("POST", "/show/a%20b?x=1", b"hello"))
        assert (await client.answer()).json() == {"path": "/show/a b", "query": {"x": "1"}, "body": "hello"}
        await client.send(request("GET", "/stream"))
        answer = await client.answer()
        assert (answer.body, answer.whole) == (b"part 0\npart 1\npart 2\n", True)
        await client.send(request("HEAD", "/stream"))
        assert (await client.answer(bodiless=True)).status == 200
        await client.send(request("GET", "/elsewhere"))
        assert (await client.answer()).status == 404
        assert edge.context.stats.accepted == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(ZeroDivisionError("a secret"), 500, "internal_error"), (AdminKeyRequiredError("No."), 403, "admin_key_required")],
)
async def test_an_app_that_raises_is_answered_for(error: Exception, status: int, code: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    async with running_edge(EchoAcceptor(), app=app) as edge:
        answer = await edge.ask(request("GET", PATH))
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.header("x-request-id") == answer.error["request_id"]
    assert b"secret" not in answer.raw


async def test_an_app_that_raises_in_mid_answer_cuts_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        await client.send(request("GET", PATH))
        assert not (await client.answer()).whole


@pytest.mark.parametrize("begins", [False, True])
async def test_an_app_that_says_nothing_is_answered_for(begins: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async with running_edge(EchoAcceptor(), app=app) as edge:
        assert (await edge.ask(request("GET", PATH))).status == 500


async def test_an_announced_length_is_kept_in_a_streamed_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Length", b"6"), (b"X-Thing", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with running_edge(EchoAcceptor(), app=app) as edge:
        answer = await edge.ask(request("GET", PATH))
    assert (answer.body, answer.header("content-length"), answer.header("x-thing")) == (b"onetwo", "6", "1")


async def test_a_body_too_large_for_the_app_is_a_413() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async with running_edge(EchoAcceptor(), app=app) as edge:
        answer = await edge.ask(request("POST", PATH, None, [("content-length", str(BODY_LIMIT + 1))]))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


async def test_an_app_learns_that_its_answer_is_whole() -> None:
    learned: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        learned.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        await send({"type": "http.response.body", "body": b"late"})
        learned.append((await receive())["type"])

    async with running_edge(EchoAcceptor(), app=app) as edge:
        assert (await edge.ask(request("GET", PATH))).status == 204
        await asyncio.sleep(0.01)
    assert learned == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("body_first", [False, True])
async def test_an_app_learns_that_the_client_left(body_first: bool) -> None:
    learned: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2 if body_first else 1):
            learned.put_nowait((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"nobody"})

    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        data = request("POST", PATH, b"hello")
        await client.send(data if body_first else data[:-1])
        if body_first:
            assert await learned.get() == "http.request"
        else:
            await asyncio.sleep(0.02)
        client.leave()
        async with asyncio.timeout(5):
            assert await learned.get() == "http.disconnect"


async def test_an_app_waits_for_a_client_that_is_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(200):
            sent.append(number)
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    sent: list[int] = []
    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        await client.send(request("GET", PATH))
        await client.head()
        await asyncio.sleep(0.05)
        assert len(sent) < 200
        size = 0
        while piece := await client.piece():
            size += len(piece)
        assert size == 200 * 65536


async def test_a_client_that_leaves_while_behind_frees_the_app() -> None:
    done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        done.set()

    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        await client.send(request("GET", PATH))
        await client.head()
        await asyncio.sleep(0.05)
        client.leave()
        async with asyncio.timeout(5):
            await done.wait()


async def test_closing_cancels_an_app_that_runs_on() -> None:
    cancelled: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async with running_edge(EchoAcceptor(), app=app) as edge, RawClient(edge.port) as client:
        await client.send(request("GET", PATH))
        await asyncio.sleep(0.02)
        await edge.server.aclose()
        assert cancelled == [True]
