"""The listener itself: TLS with certificates that are renewed, pages of other origins, proxies in front."""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trustme
from openai import AsyncOpenAI

from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.proxies import TrustedProxies
from tests_support.answers import chat_completion, json_response
from tests_support.edge import EchoAcceptor, running_edge
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

GOOD = json_response(chat_completion())
PAGE = "https://chat.example"


class Files:
    """A certificate on disk, and the authority behind it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        made = self.authority.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(str(self.key))
        self.cert.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        self.serial = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def listener(self, **more: Any) -> dict[str, Any]:
        return {"tls": {"cert": str(self.cert), "key": str(self.key), **more}}

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def shown(port: int, context: ssl.SSLContext) -> bytes:
    """The certificate that the listener shows."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def with_listener(upstream: FakeUpstream, **settings: Any) -> dict[str, Any]:
    return {**config_for(upstream), "listeners": {"data": {"port": 0, **settings}, "admin": {"port": 0}}}


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_sdk_talks_tls_and_a_renewed_certificate_is_shown(workers: int, tmp_path: Path) -> None:
    files = Files(tmp_path)
    async with (
        FakeUpstream(GOOD) as upstream,
        gateway_process(with_listener(upstream, **files.listener()), workers=workers) as gateway,
        httpx2.AsyncClient(verify=files.trusting()) as http,
    ):
        client = AsyncOpenAI(api_key=CLIENT_KEY, base_url=f"https://127.0.0.1:{gateway.port}/v1", http_client=http)
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content
        assert "https://" in gateway.log or workers
        first = shown(gateway.port, files.trusting())
        assert first == files.serial
        files.renew()
        past = time.time() - 5
        os.utime(files.cert, (past, past))
        await gateway.until(lambda: shown(gateway.port, files.trusting()) == files.serial, "the new certificate", 20)
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


async def test_a_client_without_a_certificate_is_turned_away(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = files.listener(client_ca=str(tmp_path / "ca.pem"))
    async with FakeUpstream(GOOD) as upstream, gateway_process(with_listener(upstream, **settings)) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/v1/health"
        async with httpx2.AsyncClient(verify=files.trusting()) as nobody:
            with pytest.raises(httpx2.TransportError):
                await nobody.get(url)
        known = files.trusting()
        files.authority.issue_cert("client@example.org").configure_cert(known)
        async with httpx2.AsyncClient(verify=known) as somebody:
            assert (await somebody.get(url)).status_code == 200


async def test_a_page_of_a_listed_origin_may_ask_and_others_may_not() -> None:
    async with (
        FakeUpstream(GOOD) as upstream,
        gateway_process(with_listener(upstream, cors={"origins": [PAGE]})) as gateway,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}") as browser,
    ):
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        preflight = await browser.options("/v1/chat/completions", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"origin": PAGE, "authorization": f"Bearer {CLIENT_KEY}"}
        answer = await browser.post("/v1/chat/completions", json=body, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        wrong = await browser.post("/v1/chat/completions", json=body, headers={"origin": PAGE})
        assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (401, PAGE)
        other = await browser.options("/v1/chat/completions", headers=asked | {"origin": "https://evil.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("not a certificate", "these are no certificate and key in PEM form"),
        (None, "the key does not belong to the certificate"),
    ],
)
async def test_a_bad_certificate_stops_the_boot_with_the_reason(text: str | None, why: str, tmp_path: Path) -> None:
    files, other = Files(tmp_path), tmp_path / "other"
    other.mkdir()
    files.cert.write_bytes(text.encode() if text is not None else Files(other).cert.read_bytes())
    async with FakeUpstream(GOOD) as upstream:
        with pytest.raises(Exception, match=why):
            async with gateway_process(with_listener(upstream, **files.listener())):
                pass


async def test_a_proxys_word_on_the_client_is_taken_where_it_is_trusted() -> None:
    acceptor = EchoAcceptor()
    async with running_edge(acceptor, guard=Guard(open_to_all=False)) as edge:
        for trusted in (None, ["127.0.0.0/8"]):
            edge.context.proxies = TrustedProxies(trusted) if trusted is not None else None
            async with RawClient(edge.port) as client:
                for _ in range(4):
                    await client.send(request("POST", CHAT, b"{}", [("x-forwarded-for", "203.0.113.7")]))
                    await client.answer()
    assert [seen.downstream.head.client for seen in acceptor.seen] == ["127.0.0.1"] * 4 + ["203.0.113.7"] * 4
