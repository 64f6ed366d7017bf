"""The same requests through sidecar, middleware and transport: the same decisions, bytes, headers and records.

Two scripted providers stand behind all three. What is compared: status, every header but those of time and identity,
every byte of the body, whether it was whole, what reached the providers, and the row on the ledger.
"""

from __future__ import annotations

import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import pytest

from headgate import GatewayMiddleware, GatewayTransport
from headgate.control.events.tailer import Tailer
from headgate.proxy.clock import LoopClock
from tests_support.asgi import Lifespan, ask
from tests_support.cases import BODY_LIMIT, MODELS, Case, make_case
from tests_support.embedded import ledger
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, load, running_gateway, written
from tests_support.raw import RawClient, request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests_support.upstream import Request, Step

SEED = "three ways"
BATCH = 200
TIMES = {"x-headgate-latency-ms", "x-headgate-upstream-ms", "x-headgate-overhead-ms", "server-timing", "date"}
FRAMING = {"connection", "transfer-encoding", "keep-alive"}
OF_ITS_OWN = {"id", "at", "duration_ms", "ttft_ms", "upstream_ms", "overhead_ms"}
_ID = re.compile(rb"hg_[0-9a-f]{24}")
_TIME = re.compile(rb'"(latency_ms|ttft_ms)":[0-9.e-]+')


@dataclass
class Seen:
    """What a client saw."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool

    def comparable(self) -> tuple[Any, ...]:
        """Without what differs between any two exchanges."""
        headers = [
            (name, _ID.sub(b"ID", value.encode("latin-1")))
            for name, value in self.headers
            if name not in TIMES | FRAMING
        ]
        return self.status, headers, _timeless(self.body), self.whole


def _timeless(body: bytes) -> bytes:
    return _TIME.sub(rb'"\1":0', _ID.sub(b"ID", body))


class Way(Protocol):
    """One of the three."""

    async def __call__(self, case: Case) -> Seen: ...


@asynccontextmanager
async def sidecar(text: str, folder: Path) -> AsyncIterator[Way]:
    async with running_gateway(text) as gateway:

        async def send(case: Case) -> Seen:
            async with RawClient(gateway.port) as client:
                await client.send(request(case.method, case.path, case.body, case.headers))
                if case.leave_at is None:
                    answer = await client.answer()
                else:
                    answer = await client.head()
                    while case.leave_at not in answer.body and await client.piece():
                        pass
                return Seen(answer.status, answer.headers, answer.body, answer.whole)

        yield send
    tailer = Tailer(
        folder / "events.db", folder / "spool", retention=1e9, max_size=1 << 40, clock=LoopClock(), interval=1.0
    )
    assert await tailer.flush()
    tailer.close()


@asynccontextmanager
async def middleware(text: str, folder: Path) -> AsyncIterator[Way]:
    async def no_application(scope: Any, receive: Any, send: Any) -> None:
        """Every case is of the endpoint table, so only the lifespan comes here."""
        assert scope["type"] == "lifespan"

    app = GatewayMiddleware(no_application, load(text))

    async def send(case: Case) -> Seen:
        leave_at = case.leave_at
        leave_when = None if leave_at is None else lambda body: leave_at in body
        answer = await ask(app, case.method, case.path, case.body or b"", case.headers, leave_when=leave_when)
        return Seen(answer.status, answer.headers, answer.body, answer.whole)

    async with Lifespan(app):
        yield send


@asynccontextmanager
async def transport(text: str, folder: Path) -> AsyncIterator[Way]:
    async with GatewayTransport(load(text)) as inside:

        async def send(case: Case) -> Seen:
            headers = [("host", "localhost"), *case.headers]
            url = f"http://localhost{case.path}"
            answer = await inside.handle_async_request(
                httpx2.Request(case.method, url, headers=headers, content=case.body)
            )
            seen = Seen(answer.status_code, list(answer.headers.multi_items()), b"", False)
            try:
                async for piece in answer.stream:
                    seen.body += piece
                    if case.leave_at is not None and case.leave_at in seen.body:
                        break
                else:
                    seen.whole = True
            except httpx2.RemoteProtocolError:
                seen.whole = False
            await answer.aclose()
            return seen

        yield send


WAYS: dict[str, Callable[[str, Path], AbstractAsyncContextManager[Way]]] = {
    "sidecar": sidecar,
    "middleware": middleware,
    "transport": transport,
}


def config(folder: Path, *upstreams: FakeUpstream) -> str:
    """Two providers for the models of the cases, and room for any number of retries."""
    names = [f"up{n}" for n in range(len(upstreams))]
    targets = {"targets": [{"provider": name} for name in names]}
    own = {"key": CLIENT_KEY, "name": "app"}
    return written(
        {
            "providers": {
                name: {"base_url": upstream.base_url, "api_key": PROVIDER_KEY, "list_models": False}
                for name, upstream in zip(names, upstreams, strict=True)
            },
            "models": dict.fromkeys((*MODELS, "named", "org/other:free"), targets),
            "filters": [
                {"auth": {"keys": [own]}},
                {"retry": {"budget": {"percent": 100, "min_per_second": 1000}}},
            ],
            "limits": {"body": BODY_LIMIT},
        },
        folder,
    )


def asked(upstreams: Sequence[FakeUpstream]) -> dict[tuple[str, int], list[Any]]:
    """What reached each provider, by case, but for the address it was sent to."""
    found: dict[tuple[str, int], list[Any]] = {}
    for place, upstream in enumerate(upstreams):
        for one in upstream.requests:
            fields = [field for field in one.headers if field[0] != "host"]
            found.setdefault((one.header("x-case") or "", place), []).append((one.method, one.target, fields, one.body))
    return found


async def run(name: str, cases: Sequence[Case], folder: Path, *upstreams: FakeUpstream) -> dict[str, Any]:
    """Every case through one way: case number to what was seen, sent on and recorded."""
    for upstream in upstreams:
        upstream.requests.clear()
    folder.mkdir()  # noqa: ASYNC240 - nothing else runs
    async with WAYS[name](config(folder, *upstreams), folder) as way:
        # One after the other, because the estimator learns from each.
        seen = [await way(case) for case in cases]
    rows = {row["client_request_id"]: row for row in ledger(folder)}
    passed = asked(upstreams)
    shutil.rmtree(folder)
    return {
        f"case-{case.number}": (
            got.comparable(),
            [passed.get((str(case.number), place)) for place in range(len(upstreams))],
            _row(rows.get(f"case-{case.number}"), got),
        )
        for case, got in zip(cases, seen, strict=True)
    }


def _row(row: dict[str, Any] | None, seen: Seen) -> dict[str, Any] | None:
    if row is None:
        return None
    kept = {name: value for name, value in row.items() if name not in OF_ITS_OWN}
    times = len(_ID.sub(b"ID", seen.body)) - len(_timeless(seen.body))
    return {**kept, "bytes_out": row["bytes_out"] - times, "had_a_first_token": row["ttft_ms"] is not None}


def _differences(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """The smallest parts that differ."""
    (seen, passed, row), (other_seen, other_passed, other_row) = one, other
    parts = zip(("status", "headers", "body", "whole"), seen, other_seen, strict=True)
    pairs = [*parts, ("sent on", passed, other_passed)]
    rows = (row or {}).keys() | (other_row or {}).keys()
    pairs += [(f"row.{name}", (row or {}).get(name), (other_row or {}).get(name)) for name in sorted(rows)]
    return ((what, here, there) for what, here, there in pairs if here != there)


async def compare(numbers: range, folder: Path) -> None:
    cases = {number: make_case(number, SEED) for number in numbers}

    def script(place: int) -> Callable[[Request], Sequence[Step]]:
        return lambda asked: cases[int(asked.header("x-case") or 0)].scripts[place]

    async with FakeUpstream(script(0)) as first, FakeUpstream(script(1)) as second:
        results = {name: await run(name, list(cases.values()), folder / "state", first, second) for name in WAYS}
    reference = results["sidecar"]
    differences = [
        f"{case!r} {name}: {what}: {repr(there)[:600]} and not {repr(here)[:600]}"
        for name, found in results.items()
        for case in cases.values()
        for what, here, there in _differences(reference[f"case-{case.number}"], found[f"case-{case.number}"])
    ]
    kinds = {case.kind for case in cases.values()}
    print(f"{len(cases)} requests of {len(kinds)} kinds, {len(WAYS)} ways: {len(differences)} differences")
    assert not differences, "\n".join(differences[:5])
    recorded = [row for _, _, row in reference.values() if row is not None]
    assert {row["outcome"] for row in recorded} >= {"ok", "cancelled", "truncated", "refused", "upstream_error"}
    assert any(row["cost_usd"] for row in recorded)
    assert any(row["attempts"] == 2 for row in recorded)


async def test_two_hundred_requests_differ_in_nothing(tmp_path: Path) -> None:
    await compare(range(BATCH), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(1, 50))
async def test_nor_do_ten_thousand(batch: int, tmp_path: Path) -> None:
    await compare(range(batch * BATCH, (batch + 1) * BATCH), tmp_path)
