"""resolver: the system is asked in a few threads that nobody waits for; addresses and localhost need none."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.upstream.resolver import Address, Resolver, literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.upstream.resolver import Found

V4, V6 = socket.AF_INET, socket.AF_INET6


def answers(*places: tuple[int, str]) -> Callable[..., list[Any]]:
    """A system that finds these, by family and address, each under two protocols."""
    return lambda host, port, **_: [
        (family, socket.SOCK_STREAM, protocol, "", (at, port)) for family, at in places for protocol in (6, 132)
    ]


async def found(resolver: Resolver, host: str = "a.example") -> Found:
    answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
    resolver.look_up(host, 443, answer.set_result)
    async with asyncio.timeout(5):
        return await answer


async def test_families_take_turns_in_the_system_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers((V6, "::1"), (V6, "::2"), (V6, "::3"), (V4, "127.0.0.1")))
    assert await found(Resolver()) == [
        Address(family, (at, 443)) for family, at in [(V6, "::1"), (V4, "127.0.0.1"), (V6, "::2"), (V6, "::3")]
    ]


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "try again"), UnicodeError("label"), KeyError(1)])
async def test_what_the_system_raises_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert isinstance(await found(Resolver()), OSError)


async def test_no_address_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers())
    assert isinstance(await found(Resolver()), OSError)


async def test_the_system_itself_is_asked() -> None:
    assert isinstance(await found(Resolver(), "nowhere.invalid"), OSError)
    answer = await found(Resolver(), "127.0.0.1")
    assert answer == [Address(V4, ("127.0.0.1", 443))]


async def test_a_system_that_hangs_holds_a_few_threads_and_not_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    free, hanging = threading.Event(), threading.Semaphore(0)
    most = threading.active_count()

    def hang(host: str, port: int, **_: object) -> list[Any]:
        hanging.release()
        assert free.wait(10)
        return answers((V4, host))(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    resolver = Resolver(2)
    asked = [asyncio.ensure_future(found(resolver, f"127.0.0.{n}")) for n in range(6)]
    await asyncio.sleep(0.05)
    assert hanging.acquire(timeout=0)
    assert hanging.acquire(timeout=0)
    assert not hanging.acquire(timeout=0), "a third one runs"
    assert threading.active_count() == most + 2
    free.set()
    assert [answer[0].sockaddr[0] for answer in await asyncio.gather(*asked) if isinstance(answer, list)] == [
        f"127.0.0.{n}" for n in range(6)
    ]
    assert all(one.daemon for one in threading.enumerate() if one.name == "headgate-resolver")


def test_a_loop_that_has_ended_meanwhile_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    free, over = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        assert free.wait(10)
        return answers((V4, "127.0.0.1"))("", 1)

    resolver = Resolver(1)

    async def ask() -> None:
        resolver.look_up("a.example", 1, lambda _: None)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    asyncio.run(ask())
    free.set()

    async def again() -> None:
        assert await found(resolver) == [Address(V4, ("127.0.0.1", 1))]
        over.set()

    asyncio.run(again())
    assert over.is_set()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.2", [(V4, ("127.0.0.2", 80))]),
        ("::1", [(V6, ("::1", 80, 0, 0))]),
        ("localhost", [(V4, ("127.0.0.1", 80)), (V6, ("::1", 80, 0, 0))]),
        ("vllm.localhost", [(V4, ("127.0.0.1", 80)), (V6, ("::1", 80, 0, 0))]),
        ("a.example", None),
        ("fe80::1%lo", None),
        ("notlocalhost", None),
    ],
)
def test_addresses_and_this_machine_need_no_resolver(host: str, expected: list[tuple[int, Any]] | None) -> None:
    assert literal(host, 80) == (tuple(Address(*one) for one in expected) if expected else None)
