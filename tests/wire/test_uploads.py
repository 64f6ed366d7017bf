"""Bodies that are passed on while they arrive, over real sockets and as raw bytes."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

import pytest

from tests_support.answers import json_response
from tests_support.gateway import CLIENT_KEY, bearer, config_for, gateway_over, gateway_over_two, running_gateway
from tests_support.process import gateway_process
from tests_support.raw import RawClient, request
from tests_support.upstream import FIN, RST, FakeUpstream, Step

FILES = "/v1/files"
TRANSCRIBE = "/v1/audio/transcriptions"
MIB = 1 << 20
BOUNDARY = "0123456789abcdef"
FORM = ("content-type", f"multipart/form-data; boundary={BOUNDARY}")
FILE_OBJECT = {"id": "file-1", "object": "file", "bytes": 3, "filename": "a", "purpose": "batch"}


def part(name: str, value: bytes, more: str = "") -> bytes:
    """One field of a form."""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def file(size: int) -> bytes:
    """A file of so many bytes."""
    return part("file", b"\r\n-x" * (size // 4), '; filename="a.bin"')


def head(target: str, length: int | None, *fields: tuple[str, str]) -> bytes:
    """The head of a POST whose body follows."""
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    return request("POST", target, None, [*bearer(CLIENT_KEY), *fields, framing])


class Sink:
    """A provider that reads as fast as it may, counts and keeps nothing; `hold()` stops it, `go()` lets it read."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.port = 0
        self.head = b""
        self.received = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self.moved = asyncio.Event()
        self.lost = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in self.head.rstrip().split(b"\r\n")[1:])
                left = int(fields[b"content-length"])
                while left:
                    await self.reading.wait()
                    piece = await reader.read(min(left, 1 << 18))
                    if not piece:
                        return
                    left -= len(piece)
                    self.received += len(piece)
                    self.moved.set()
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.lost.set()
            writer.close()

    async def until(self, received: int) -> None:
        async with asyncio.timeout(30):
            while self.received < received:
                self.moved.clear()
                await self.moved.wait()

    async def __aenter__(self) -> Sink:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()


def sink_config(sink: Sink) -> dict[str, Any]:
    """A gateway before it."""
    return {**config_for(), "providers": {"up": {"base_url": sink.base_url, "api_key": "k", "list_models": False}}}


ANSWER = json_response(FILE_OBJECT)
ANSWER_BYTES = ANSWER if isinstance(ANSWER, bytes) else b"".join(step for step in ANSWER if isinstance(step, bytes))


async def test_a_body_goes_up_and_its_answer_comes_down_unchanged() -> None:
    body = bytes(range(256)) * 1024
    fields = [("content-type", "application/x-odd"), ("x-odd", "1")]
    async with gateway_over(ANSWER) as (gateway, upstream):
        answer = await gateway.send("PUT", f"{FILES}/a%20b/content?x=%2F&y", body, fields)
        [row] = await gateway.rows(1)
    [asked] = upstream.requests
    assert (asked.method, asked.target, asked.body) == ("PUT", "/v1/files/a%20b/content?x=%2F&y", body)
    assert asked.header("content-type") == "application/x-odd"
    assert asked.header("content-length") == str(len(body))
    assert answer.json() == FILE_OBJECT
    assert (row.endpoint, row.outcome, row.bytes_in, row.provider) == ("files", "ok", len(body), "up")


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "PATCH"])
async def test_a_request_without_a_body_has_none_upstream(method: str) -> None:
    async with gateway_over(ANSWER) as (gateway, upstream):
        async with RawClient(gateway.port) as client:
            await client.send(request(method, f"{FILES}/file-1", None, bearer(CLIENT_KEY)))
            answer = await client.answer(bodiless=method == "HEAD")
        [asked] = upstream.requests
        assert (answer.status, asked.method, asked.body) == (200, method, b"")
        assert asked.header("transfer-encoding") is None


async def test_a_chunked_body_goes_up_in_chunks() -> None:
    async with gateway_over(ANSWER) as (gateway, upstream), RawClient(gateway.port) as client:
        await client.send(head(FILES, None))
        await client.send(b"5\r\nhello\r\n")
        await client.send(b"6\r\n world\r\n0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert upstream.requests[0].body == b"hello world"
        await client.send(request("GET", FILES, None, bearer(CLIENT_KEY)))
        assert (await client.answer()).status == 200


async def _pour(client: RawClient, size: int, piece: bytes = b"x" * (1 << 18)) -> None:
    while size:
        await client.send(piece[: min(size, len(piece))])
        size -= min(size, len(piece))


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("size", [200 * MIB, pytest.param(2048 * MIB, marks=pytest.mark.slow)])
async def test_a_large_form_with_its_model_first_passes_in_little_memory(size: int) -> None:
    before, after = part("model", b"whisper-1") + part("file", b"", '; filename="a"')[:-2], form()
    async with (
        Sink(ANSWER_BYTES) as sink,
        running_gateway(sink_config(sink)) as gateway,
        RawClient(gateway.port, 300) as client,
    ):
        total = len(before) + size + 2 + len(after)
        await client.send(head(TRANSCRIBE, total, FORM) + before)
        piece = b"x" * (1 << 18)
        await _pour(client, 8 * MIB, piece)
        await sink.until(7 * MIB)
        base = peak = _rss()
        left = size - 8 * MIB
        while left:
            await _pour(client, 4 * MIB, piece)
            left -= 4 * MIB
            peak = max(peak, _rss())
        await client.send(b"\r\n" + after)
        assert (await client.answer()).status == 200
        assert sink.received == total
        [row] = await gateway.rows(1)
    print(f"{(peak - base) / MIB:.1f} MiB held")
    assert peak - base <= 8 * MIB, (peak - base) / MIB
    assert (row.model, row.bytes_in, row.outcome) == ("whisper-1", total, "ok")


def _rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def _peak_while(pid: int, work: asyncio.Future[Any]) -> int:
    """The most memory a process has while `work` goes on."""
    peak = 0
    while not (await asyncio.wait([work], timeout=0.02))[0]:
        peak = max(peak, _rss_of(pid))
    return peak


MANY = 200


@pytest.mark.slow
async def test_two_hundred_uploads_at_once_stay_bounded() -> None:
    """To a provider that reads nothing for a while: each holds what its two sockets do, and a read."""
    size = 16 * MIB
    before, after = part("model", b"whisper-1") + part("file", b"", '; filename="a"')[:-2], form()
    total = len(before) + size + 2 + len(after)

    async def upload(port: int) -> int:
        async with RawClient(port, 120) as client:
            await client.send(head(TRANSCRIBE, total, FORM) + before)
            await _pour(client, size)
            await client.send(b"\r\n" + after)
            return (await client.answer()).status

    async with Sink(ANSWER_BYTES) as sink, gateway_process(sink_config(sink)) as gateway:
        assert await upload(gateway.port) == 200
        sink.received = 0
        sink.reading.clear()
        base = _rss_of(gateway.pid)
        uploads = asyncio.gather(*(upload(gateway.port) for _ in range(MANY)))
        stalled = await _peak_while(gateway.pid, asyncio.ensure_future(asyncio.sleep(3)))
        assert sink.received == 0
        sink.reading.set()
        flowing = await _peak_while(gateway.pid, uploads)
        assert await uploads == [200] * MANY
        assert sink.received == MANY * total
        rows = await gateway.rows(MANY + 1)
    print(
        f"each holds {(stalled - base) / MANY / 1024:.0f} KiB stalled, {(flowing - base) / MANY / 1024:.0f} KiB flowing"
    )
    assert {(row["outcome"], row["bytes_in"]) for row in rows} == {("ok", total)}
    assert max(stalled, flowing) - base <= MANY * MIB


@pytest.mark.slow
async def test_two_hundred_forms_with_their_file_first_hold_no_more_than_the_budget() -> None:
    late = form(file(2 * MIB), part("model", b"whisper-1"))

    async def upload(port: int) -> tuple[int, str]:
        async with RawClient(port, 120) as client:
            await client.send(request("POST", TRANSCRIBE, late, [*bearer(CLIENT_KEY), FORM]))
            answer = await client.answer()
            return answer.status, "" if answer.status == 200 else answer.error["code"]

    async with Sink(ANSWER_BYTES) as sink:
        config = {**sink_config(sink), "limits": {"buffered": "64MiB"}}
        async with gateway_process(config) as gateway:
            assert (await upload(gateway.port))[0] == 200
            sink.reading.clear()
            base = _rss_of(gateway.pid)
            uploads = asyncio.gather(*(upload(gateway.port) for _ in range(MANY)))
            peak = await _peak_while(gateway.pid, asyncio.ensure_future(asyncio.sleep(3)))
            sink.reading.set()
            peak = max(peak, await _peak_while(gateway.pid, uploads))
            answers = await uploads
    print(f"{answers.count((200, ''))} accepted, {(peak - base) / MIB:.0f} MiB held")
    assert set(answers) == {(200, ""), (503, "overloaded")}
    assert peak - base <= 64 * MIB * 2 + MANY * MIB // 2


@pytest.mark.slow
@pytest.mark.parametrize(("size", "status"), [(31 * MIB, 200), (33 * MIB, 413)])
async def test_a_file_before_the_model_may_be_as_large_as_a_body(size: int, status: int) -> None:
    async with Sink(ANSWER_BYTES) as sink, running_gateway(sink_config(sink)) as gateway:
        answer = await gateway.send("POST", TRANSCRIBE, form(file(size), part("model", b"whisper-1")), [FORM])
        assert answer.status == status
        if status == 413:
            assert answer.error["code"] == "model_field_too_late"
            assert sink.received == 0


async def test_a_slow_provider_slows_the_client() -> None:
    async with (
        Sink(ANSWER_BYTES) as sink,
        running_gateway(sink_config(sink)) as gateway,
        RawClient(gateway.port, 60) as client,
    ):
        sink.reading.clear()
        size = 64 * MIB
        await client.send(head(FILES, size))
        pouring = asyncio.create_task(_pour(client, size))
        done, _ = await asyncio.wait([pouring], timeout=1.0)
        assert not done, "64 MiB were taken though nobody reads them"
        [run] = gateway.half.engine.live
        assert run.upload is not None
        assert run.ex.bytes_in < 16 * MIB  # the buffers of two sockets, and ours
        sink.reading.set()
        await pouring
        assert (await client.answer()).status == 200
        assert sink.received == size


async def test_a_client_that_leaves_in_mid_upload_closes_the_providers_connection() -> None:
    async with Sink(ANSWER_BYTES) as sink, running_gateway(sink_config(sink)) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, 10 * MIB) + b"x" * MIB)
            await sink.until(MIB)
            client.leave()
            async with asyncio.timeout(5):
                await sink.lost.wait()
        [row] = await gateway.rows(1)
    assert (row.outcome, row.status) == ("cancelled", 499)


async def test_a_provider_that_leaves_in_mid_upload_is_an_error_and_asked_once() -> None:
    async with FakeUpstream(b"", greeting=[RST]) as upstream, running_gateway(config_for(upstream)) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, 40 * MIB) + b"x" * MIB)
            answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        [row] = await gateway.rows(1)
    assert row.attempts == 1


async def test_an_early_refusal_is_relayed_and_the_rest_is_dropped() -> None:
    body = b'{"error":{"code":"too_large"}}'
    fields = b"content-type: application/json\r\ncontent-length: %d" % len(body)
    refusal = b"HTTP/1.1 413 Too Large\r\n" + fields + b"\r\n\r\n" + body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {**config_for(), "providers": {"up": {"base_url": f"http://127.0.0.1:{port}/v1"}}}
    async with running_gateway(config) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, 40 * MIB) + b"x" * MIB)
            answer = await client.answer()
            assert (answer.status, answer.body) == (413, body)
            assert answer.header("connection") == "close"
        [row] = await gateway.rows(1)
    server.close()
    assert (row.outcome, row.attempts) == ("upstream_error", 1)


async def test_a_good_answer_that_begins_early_waits_for_the_end_of_the_body() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: 5\r\n\r\nhe")
        await reader.readexactly(200_000)
        writer.write(b"llo")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {**config_for(), "providers": {"up": {"base_url": f"http://127.0.0.1:{port}/v1"}}}
    async with running_gateway(config) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, 200_000) + b"x" * 100_000)
            await asyncio.sleep(0.05)
            await client.send(b"x" * 100_000)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"hello")
        [row] = await gateway.rows(1)
    server.close()
    assert (row.outcome, row.bytes_in) == ("ok", 200_000)


async def test_a_good_answer_that_is_whole_before_the_body_ends_the_upload() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER_BYTES)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {**config_for(), "providers": {"up": {"base_url": f"http://127.0.0.1:{port}/v1"}}}
    async with running_gateway(config) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, 40 * MIB) + b"x" * 100_000)
            answer = await client.answer()
            assert (answer.status, answer.json()) == (200, FILE_OBJECT)
        assert (await gateway.rows(1))[0].outcome == "ok"
    server.close()


async def test_a_provider_that_takes_nothing_is_given_up() -> None:
    async with Sink(ANSWER_BYTES) as sink:
        sink.reading.clear()
        config = sink_config(sink)
        config["providers"]["up"]["timeouts"] = {"idle": "1s"}
        async with running_gateway(config) as gateway, RawClient(gateway.port) as client:
            await client.send(head(FILES, 64 * MIB))
            pouring = asyncio.create_task(_pour(client, 64 * MIB))
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
            pouring.cancel()
            await asyncio.wait([pouring])


async def test_the_mock_takes_a_body_and_says_that_it_does_not_speak_this() -> None:
    async with running_gateway({"providers": {"mock": {"base_url": "mock:"}}}) as gateway:
        answer = await gateway.send("POST", FILES, b"x" * 200_000)
        assert answer.status == 404
        assert (await gateway.send("GET", FILES)).status == 404


async def test_a_body_above_the_limit_is_refused() -> None:
    async with gateway_over(ANSWER, changes={"limits": {"upload": "1MiB"}}) as (gateway, upstream):
        answer = await gateway.send("POST", FILES, b"x" * (MIB + 1))
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        async with RawClient(gateway.port) as client:
            await client.send(head(FILES, None))
            await client.send(b"%x\r\n" % MIB + b"x" * MIB + b"\r\n1\r\n")
            await client.send(b"x\r\n")
            answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert not upstream.requests


async def test_two_providers_and_no_route_is_not_guessed() -> None:
    async with FakeUpstream(ANSWER) as up, FakeUpstream(ANSWER) as up2:
        config = config_for(up, up2)
        async with running_gateway(config) as gateway:
            answer = await gateway.send("GET", f"{FILES}/file-1")
            assert (answer.status, answer.error["code"]) == (409, "unknown_issuer")
            assert answer.header("x-should-retry") == "false"
        config["routes"] = [{"name": "rest", "match": {"path": "/v1/**"}, "provider": "up2"}]
        async with running_gateway(config) as gateway:
            answer = await gateway.send("GET", f"{FILES}/file-1")
            assert (answer.status, answer.header("x-headgate-route")) == (200, "rest")
            assert (await gateway.post()).header("x-headgate-provider") == "up"
    assert (len(up.requests), len(up2.requests)) == (1, 1)


async def test_the_rest_is_refused_unless_a_route_lets_it_pass() -> None:
    route = {"name": "rest", "match": {"path": "/v1/**"}, "provider": "up"}
    async with gateway_over(ANSWER) as (gateway, upstream):
        answer = await gateway.send("POST", "/v1/evals?a=b", b"{}")
        assert (answer.status, answer.error["code"]) == (404, "unknown_path")
        assert not upstream.requests
    async with gateway_over(ANSWER, changes={"routes": [route]}) as (gateway, upstream):
        assert (await gateway.send("POST", "/v1/evals?a=b", b"{}")).status == 200
        assert (await gateway.send("GET", "/v1/chat/completions?limit=1")).status == 200
        assert (await gateway.send("GET", "/v1/health")).json()["status"] == "healthy"
        assert (await gateway.send("GET", "/v2/evals")).status == 404
        assert (await gateway.send("POST", "/v1/evals", b"{}", key=None)).status == 401
    assert [one.target for one in upstream.requests] == ["/v1/evals?a=b", "/v1/chat/completions?limit=1"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/../models",
        "/v1/files/%2e%2e/models",
        "/v1/files/..%2Fmodels",
        "/v1/files//x",
        "/%761/files/a",
        "/v1/files/",
    ],
)
async def test_a_path_that_could_be_read_as_another_is_refused(path: str) -> None:
    async with gateway_over(ANSWER) as (gateway, upstream):
        assert (await gateway.send("GET", path)).status in (400, 404)
        assert not upstream.requests


async def test_usage_counts_where_it_was_made_and_not_where_it_is_shown() -> None:
    answer = json_response({"usage": {"input_tokens": 3, "output_tokens": 4}})
    async with gateway_over(answer) as (gateway, _):
        await gateway.send("POST", "/v1/responses/resp_1/more", b"{}")
        await gateway.send("GET", "/v1/responses/resp_1")
        made, shown = await gateway.rows(2)
    assert (made.prompt_tokens, made.completion_tokens, made.usage_source) == (3, 4, "reported")
    assert shown.usage_source == "none"


async def test_azures_path_names_the_model() -> None:
    path = "/openai/deployments/org%2Fm/chat/completions?api-version=1&a=b"
    async with gateway_over(json_response({"choices": []})) as (gateway, upstream):
        for body in (b'{"messages":[]}', b' { "model" : "other", "messages":[]}', b"{ }"):
            assert (await gateway.post(body, target=path)).status == 200
        rows = await gateway.rows(3)
    assert [one.json()["model"] for one in upstream.requests] == ["org/m"] * 3
    assert {one.target for one in upstream.requests} == {"/v1/chat/completions?a=b"}
    assert {row.model for row in rows} == {"org/m"}


def with_alias(*upstreams: FakeUpstream, **limits: str) -> dict[str, Any]:
    """`fast` is another model at the provider."""
    models = {
        "fast": {"targets": [{"provider": "up", "model": "whisper-large"}]},
        "*": {"targets": [{"provider": "up"}]},
    }
    return {**config_for(*upstreams), "models": models, **({"limits": limits} if limits else {})}


@pytest.mark.parametrize("size", [100, 200_000, 3 * MIB])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("asked", ["fast", "whisper-1"])
async def test_of_a_form_only_the_models_bytes_change(size: int, model_first: bool, asked: str) -> None:
    def sent(model: bytes) -> bytes:
        named = part("model", model)
        return form(named, file(size)) if model_first else form(file(size), named)

    async with (
        FakeUpstream(json_response({"text": "hi"})) as upstream,
        running_gateway(with_alias(upstream)) as gateway,
    ):
        answer = await gateway.send("POST", TRANSCRIBE, sent(asked.encode()), [FORM])
        [row] = await gateway.rows(1)
    expected = sent(b"whisper-large" if asked == "fast" else b"whisper-1")
    assert answer.json() == {"text": "hi"}
    assert upstream.requests[0].body == expected
    assert upstream.requests[0].header("content-type") == FORM[1]
    assert (row.endpoint, row.model) == ("transcriptions", asked)


async def test_a_form_whose_file_comes_first_is_held_up_to_the_limit_only() -> None:
    limits = {"body": "1MiB"}
    async with FakeUpstream(json_response({"text": "hi"})) as upstream:
        config = with_alias(upstream, **limits)
        async with running_gateway(config) as gateway:
            fits = form(file(900_000), part("model", b"fast"))
            assert (await gateway.send("POST", TRANSCRIBE, fits, [FORM])).status == 200
            late = form(file(2 * MIB), part("model", b"fast"))
            answer = await gateway.send("POST", TRANSCRIBE, late, [FORM])
            assert (answer.status, answer.error["code"]) == (413, "model_field_too_late")
            assert len(upstream.requests) == 1
        config["routes"] = [{"name": "audio", "match": {"path": TRANSCRIBE}, "provider": "up"}]
        async with running_gateway(config) as gateway:
            assert (await gateway.send("POST", TRANSCRIBE, late, [FORM])).status == 200
            [row] = await gateway.rows(1)
    assert upstream.requests[1].body == late
    assert row.model == "fast"


async def test_a_second_model_behind_the_file_ends_the_upload() -> None:
    twice = form(part("model", b"fast"), file(MIB), part("model", b"dear"))
    async with Sink(ANSWER_BYTES) as sink, running_gateway(sink_config(sink)) as gateway:
        answer = await gateway.send("POST", TRANSCRIBE, twice, [FORM])
        assert (answer.status, answer.error["code"]) == (400, "duplicate_field")
        assert sink.received < len(twice)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(file(100)), "missing_model"),
        (form(part("model", b"")), "missing_model"),
        (part("model", b"m"), "invalid_request"),
        (b"nonsense", "invalid_request"),
    ],
)
async def test_a_form_that_cannot_be_understood_is_refused(body: bytes, code: str) -> None:
    async with gateway_over(ANSWER) as (gateway, upstream):
        answer = await gateway.send("POST", TRANSCRIBE, body, [FORM])
        assert (answer.status, answer.error["code"]) == (400, code)
        answer = await gateway.send("POST", TRANSCRIBE, b"{}", [("content-type", "application/json")])
        assert answer.status == 415
        assert not upstream.requests


async def test_a_small_form_is_tried_again() -> None:
    failing: list[Step] = [FIN]
    async with gateway_over_two(failing, json_response({"text": "hi"})) as (gateway, _, up2):
        body = form(part("model", b"whisper-1"), file(1000))
        assert (await gateway.send("POST", TRANSCRIBE, body, [FORM])).status == 200
        assert up2.requests[0].body == body
        [row] = await gateway.rows(1)
    assert row.attempts == 2


async def test_image_edits_come_as_json_too() -> None:
    body = b'{"model":"gpt-image-1","prompt":"x","images":[]}'
    async with gateway_over(json_response({"usage": {"input_tokens": 5, "output_tokens": 7}})) as (gateway, upstream):
        assert (await gateway.send("POST", "/v1/images/edits", body)).status == 200
        edit = form(file(100), part("prompt", b"x"))
        assert (await gateway.send("POST", "/v1/images/edits", edit, [FORM])).status == 200
        rows = await gateway.rows(2)
    assert [one.body for one in upstream.requests] == [body, edit]
    assert [(row.model, row.completion_tokens) for row in rows] == [("gpt-image-1", 7), ("", 7)]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_body_that_was_begun_is_never_sent_twice(begun: bool) -> None:
    """A kept connection that dies under an upload is replaced only where nothing of the body had gone."""
    connections: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(b"")
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER_BYTES)
            asked = await reader.readuntil(b"\r\n\r\n")
            if begun:
                await reader.readexactly(100_000)
            connections[-1] = asked
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {**config_for(), "providers": {"up": {"base_url": f"http://127.0.0.1:{port}/v1"}}}
    async with running_gateway(config) as gateway:
        assert (await gateway.send("GET", FILES)).status == 200
        async with RawClient(gateway.port) as client:
            body = b"x" * 100_000 if begun else b""
            await client.send(request("POST", FILES, body, bearer(CLIENT_KEY)))
            answer = await client.answer()
    server.close()
    assert answer.status == (502 if begun else 200)
    assert len(connections) == (1 if begun else 2)
