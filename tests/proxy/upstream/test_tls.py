"""TLS to a provider: verified or nothing. Each bad handshake is a connect failure, and the key stays here."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trustme

from headgate.proxy.upstream.tls import client_context
from tests_support.answers import LAST_CHUNK, chunk, response
from tests_support.caller import Caller, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Pause, Repeat, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


HELLO = response(200, b"hello")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
KEY = b"Bearer sk-canary"
HOST = "127.0.0.1"
PAST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """What the gateway would use, plus the test's own authority."""
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return client_context(str(path))


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.usefixtures("no_leaks")
async def test_calls_go_over_one_verified_connection(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    server = serving(authority.issue_cert(HOST))
    server.set_alpn_protocols(["h2", "http/1.1"])
    async with (
        FakeUpstream(HELLO, tls=server) as upstream,
        Caller(upstream.base_url, tls=trusting, credential=[(b"authorization", KEY)]) as caller,
    ):
        for _ in range(3):
            heard = caller.ask()
            assert await heard.over() == "clean"
            assert heard.body == b"hello"
        assert len(upstream.connections) == 1
        secured = upstream.connections[0]._transport.get_extra_info("ssl_object")
        assert secured.selected_alpn_protocol() == "http/1.1"
        assert upstream.requests[0].header("authorization") == KEY.decode()


@pytest.mark.usefixtures("no_leaks")
async def test_a_provider_without_alpn_hears_http_1_1(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with (
        FakeUpstream(HELLO, tls=serving(authority.issue_cert(HOST))) as upstream,
        Caller(upstream.base_url, tls=trusting) as caller,
    ):
        assert await caller.ask().over() == "clean"


def _wrong_name(authority: trustme.CA) -> ssl.SSLContext:
    return serving(authority.issue_cert("elsewhere.example"))


def _expired(authority: trustme.CA) -> ssl.SSLContext:
    return serving(authority.issue_cert(HOST, not_before=PAST[0], not_after=PAST[1]))


def _unknown_authority(_: trustme.CA) -> ssl.SSLContext:
    return serving(trustme.CA().issue_cert(HOST))


def _self_signed(_: trustme.CA) -> ssl.SSLContext:
    own = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with own.cert_pem.tempfile() as chain, own.private_key_pem.tempfile() as key:
        context.load_cert_chain(chain, key)
    return context


def _old_version(authority: trustme.CA) -> ssl.SSLContext:
    context = serving(authority.issue_cert(HOST))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("broken", [_wrong_name, _expired, _unknown_authority, _self_signed, _old_version])
async def test_a_provider_that_cannot_be_verified_hears_nothing(
    authority: trustme.CA, trusting: ssl.SSLContext, broken: Callable[[trustme.CA], ssl.SSLContext]
) -> None:
    async with (
        FakeUpstream(HELLO, tls=broken(authority)) as upstream,
        Caller(upstream.base_url, tls=trusting, credential=[(b"authorization", KEY)]) as caller,
    ):
        heard = caller.ask()
        assert await heard.over() == "ConnectError"
        assert heard.error is not None
        assert heard.error.condition == "connect-failure"
        assert "elsewhere" not in heard.error.message
        assert HOST not in heard.error.message
        assert HOST in str(heard.error.detail)
        assert heard.events == ["error"]
        assert upstream.requests == []
        assert caller.stats.cx_connect_fail == 1


@pytest.mark.usefixtures("no_leaks")
async def test_a_reset_in_the_handshake_is_a_connect_failure(trusting: ssl.SSLContext) -> None:
    for how in (RST, FIN):
        async with FakeUpstream(greeting=[how]) as upstream:
            url = upstream.base_url.replace("http:", "https:")
            async with Caller(url, tls=trusting) as caller:
                assert await caller.ask().over() == "ConnectError"


@pytest.mark.usefixtures("no_leaks")
async def test_a_stall_in_the_handshake_is_cut_by_the_connect_time_out(trusting: ssl.SSLContext) -> None:
    clock = FakeClock()
    async with FakeUpstream(greeting=[STALL]) as upstream:
        url = upstream.base_url.replace("http:", "https:")
        async with Caller(url, tls=trusting, clock=clock, credential=[(b"authorization", KEY)]) as caller:
            heard = caller.ask()
            await eventually(lambda: upstream.connections and upstream.connections[0].received)
            await clock.run(5.1)
            assert heard.outcome == "ConnectTimeoutError"
            await upstream.wait_closed()
            assert KEY not in upstream.connections[0].received


@pytest.mark.usefixtures("no_leaks")
async def test_plain_http_is_not_taken_for_tls(trusting: ssl.SSLContext) -> None:
    async with (
        FakeUpstream(greeting=[HELLO]) as upstream,
        Caller(upstream.base_url.replace("http:", "https:"), tls=trusting) as caller,
    ):
        assert await caller.ask().over() == "ConnectError"


@pytest.mark.usefixtures("no_leaks")
async def test_the_engine_keeps_its_promises_under_tls(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    hold = Pause()
    scripts = in_turn(
        [CHUNKED + chunk(b"hello") + LAST_CHUNK + b"more"],
        [CHUNKED + chunk(b"hello"), FIN],
        [CHUNKED + chunk(b"hello"), RST],
        [CHUNKED + chunk(b"hello"), hold],
        [CHUNKED, Repeat(chunk(b"x" * 65_536), 200), LAST_CHUNK],
        HELLO,
        [FIN],
        HELLO,
    )
    async with (
        FakeUpstream(scripts, tls=serving(authority.issue_cert(HOST))) as upstream,
        Caller(upstream.base_url, tls=trusting) as caller,
    ):
        assert await caller.ask().over() == "clean"
        assert await caller.ask().over() == "BrokenAnswerError"
        assert await caller.ask().over() == "BrokenAnswerError"
        left = caller.ask()
        await left.heard("data")
        left.cancel()
        await upstream.wait_until(lambda: not upstream.open_connections, "all of them to be closed")
        large = caller.ask(body=b"y" * 3_000_000)
        assert await large.over() == "clean"
        assert len(large.body) == 200 * 65_536
        assert len(upstream.requests[-1].body) == 3_000_000
        assert await caller.ask().over() == "clean"
        assert await caller.ask().over() == "clean"
        assert caller.stats.rq_retry == 1


@pytest.mark.usefixtures("no_leaks")
async def test_a_paused_receiver_holds_the_provider_back_under_tls_too(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    megabyte = chunk(b"x" * (1 << 20))
    async with (
        FakeUpstream([CHUNKED, Repeat(megabyte, 100), LAST_CHUNK], tls=serving(authority.issue_cert(HOST))) as upstream,
        Caller(upstream.base_url, tls=trusting) as caller,
    ):
        heard = caller.ask(Recorder({"data": lambda call: call.pause()}))
        await heard.heard("data")
        written = -1
        while written != upstream.connections[0].written:  # until the socket buffers of both sides are full
            written = upstream.connections[0].written
            await asyncio.sleep(0.1)
        assert 0 < len(heard.body) <= 512 * 1024
        assert written < 20 << 20
        heard.cancel()
        await upstream.wait_closed()


def test_the_default_context_verifies_names_and_refuses_what_is_older_than_tls_1_2() -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_context() is context


def test_the_certificate_file_of_the_environment_is_honoured(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    context = client_context.__wrapped__()
    assert len(context.get_ca_certs()) == 1
