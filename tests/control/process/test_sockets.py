"""sockets: an address that cannot be had names the setting to change."""

from __future__ import annotations

import errno
import socket

import pytest

from headgate.config import Listener
from headgate.control.process import sockets
from headgate.control.process.errors import BootError
from headgate.control.process.sockets import bound, listening


def test_a_free_port_is_bound() -> None:
    with listening(Listener(port=0), "listeners.data") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EADDRINUSE, "port 80 of 127.0.0.1 is in use: stop what listens there, or set a.port to another"),
        (errno.EACCES, "this user may not listen on port 80: set a.port to one above 1023"),
        (errno.EADDRNOTAVAIL, "cannot listen on 127.0.0.1 port 80: Cannot assign requested address; check a.address"),
    ],
)
def test_each_refusal_says_what_to_do(number: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(address: str, port: int) -> socket.socket:
        raise OSError(number, "Cannot assign requested address")

    monkeypatch.setattr(sockets, "bind", refused)
    with pytest.raises(BootError) as error:
        listening(Listener(port=80), "a")
    assert str(error.value) == why


def test_a_name_that_does_not_resolve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(address: str, port: int) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(sockets, "bind", unknown)
    with pytest.raises(BootError, match="cannot listen on nowhere port 0: Name or service not known; check --address"):
        bound("nowhere", 0, "--port", "--address")
