"""A plugin for the SDK's own pytest: says in headers of each request which test sent it, and what answer would do.

The provider that records the requests answers with just that. Everything else is as the SDK sends it. Runs in the
foreign environment and imports nothing of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
from openai import _base_client
from valid_answers import answer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

MARK, ANSWER = "x-foreign-test", "x-foreign-answer"
_now: dict[str, Any] = {"test": "", "request": 0, "answer": ""}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The requests that follow are this test's."""
    _now.update(test=item.nodeid, request=0)


def pytest_configure() -> None:
    """Whatever its transport, a request has one of two beginnings, and is sent by one of two clients."""
    for api in (_base_client.SyncAPIClient, _base_client.AsyncAPIClient):
        setattr(api, "request", _expecting(api.request))  # noqa: B010 - a method, which is not assigned to
    for client in (httpx2.Client, httpx2.AsyncClient):
        setattr(client, "send", _marking(client.send))  # noqa: B010 - as above


def _expecting(request: Callable[..., Any]) -> Callable[..., Any]:
    def expecting(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        _now["answer"] = answer(cast_to, stream=bool(how.get("stream")))
        return request(self, cast_to, options, **how)

    return expecting


def _marking(send: Callable[..., Any]) -> Callable[..., Any]:
    def marking(self: Any, request: Any, **options: Any) -> Any:
        request.headers[MARK] = f"{quote(_now['test'], safe='/:[]')}#{_now['request']}"
        request.headers[ANSWER] = _now["answer"]
        _now["request"] += 1
        return send(self, request, **options)

    return marking
