"""A plugin for the SDK's own pytest: says in a header of each request which test sent it, and as which of its requests.

Everything else is as the SDK sends it. It runs in the foreign environment and imports nothing of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

HEADER = "x-foreign-test"
_now: dict[str, Any] = {"test": "", "request": 0}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The requests that follow are this test's."""
    _now.update(test=item.nodeid, request=0)


def pytest_configure() -> None:
    """Every client of the process, whatever its transport, sends through one of the two."""
    for kind in (httpx2.Client, httpx2.AsyncClient):
        setattr(kind, "send", _marking(kind.send))  # noqa: B010 - not a method of this class that is assigned


def _marking(send: Callable[..., Any]) -> Callable[..., Any]:
    def marked(self: Any, request: Any, **options: Any) -> Any:
        request.headers[HEADER] = f"{quote(_now['test'], safe='/:[]')}#{_now['request']}"
        _now["request"] += 1
        return send(self, request, **options)

    return marked
