"""The least a reverse proxy in Python needs when it stands on httpx2: the class of gateway most Python projects
start as.

It copies heads and streams bodies both ways, nothing else. Started by the benchmark with uvicorn, never part of the
gateway.
"""

import contextlib
import os
from collections.abc import AsyncIterator

import httpx2
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

PROVIDER = os.environ.get("PROVIDER", "http://127.0.0.1:9")
HOP_BY_HOP = {"host", "connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "accept-encoding"}


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx2.AsyncClient(base_url=PROVIDER, limits=limits, timeout=600) as client:
        app.state.client = client
        yield


async def forward(request: Request) -> StreamingResponse:
    client: httpx2.AsyncClient = request.app.state.client
    headers = [(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP]
    upstream = client.build_request(request.method, request.url.path, headers=headers, content=await request.body())
    answer = await client.send(upstream, stream=True)
    kept = {k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))


app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)
