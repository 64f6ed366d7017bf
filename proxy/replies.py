"""Errors become answers here, and nowhere else.

Every error has OpenAI's shape with all four keys, a request id, and neither a traceback nor a host name nor a secret.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import msgspec

from .errors import (
    BudgetError,
    GatewayError,
    MethodNotAllowedError,
    OverLimitError,
    RateLimitError,
    UpgradeRequiredError,
)

if TYPE_CHECKING:
    from .edge.downstream import Headers

JSON = (b"content-type", b"application/json")
NO_RETRY = (b"x-should-retry", b"false")
"""Tells an SDK not to multiply our attempts by its own (openai-python and -node obey it above any status)."""
MOST_WAIT = 60
"""Seconds; SDKs take a longer `retry-after` for a mistake."""
_encode = msgspec.json.encode


class Reply:
    """A whole answer made by the gateway itself."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = [JSON] if headers is None else headers


def json_reply(value: object, status: int = 200) -> Reply:
    """`value`, encoded."""
    return Reply(status, _encode(value))


def error_body(error: GatewayError, request_id: str | None = None) -> bytes:
    """OpenAI's error object as JSON bytes."""
    content: dict[str, object] = {
        # A message may quote a path that is not UTF-8.
        "message": error.message.encode("utf-8", "replace").decode(),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if request_id is not None:
        content["request_id"] = request_id
    return _encode({"error": content})


def error_reply(error: GatewayError, request_id: str | None = None, *, attempts: int = 0) -> Reply:
    """The answer to an exchange that cannot go on, after `attempts` at providers.

    429 and 503 carry `retry-after` in whole seconds, at least 1. It is at most 60, for SDKs ignore more and come back
    at once; a limit of ours says how long it really is, and so does a budget (402). `x-should-retry: false` tells an
    SDK not to come back by itself: where that would be too soon, and where our own attempts were made and spent.
    """
    headers: Headers = [JSON]
    final = attempts > 1 or error.hopeless or isinstance(error, BudgetError)
    if isinstance(error, BudgetError) and error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    if error.status in (429, 503) and not isinstance(error, OverLimitError):
        wait = max(1, ceil(error.retry_after or 1))
        if isinstance(error, RateLimitError):
            final = final or wait > MOST_WAIT
        else:
            wait = min(MOST_WAIT, wait)
        headers.append((b"retry-after", b"%d" % wait))
    if final:
        headers.append(NO_RETRY)
    if isinstance(error, RateLimitError):
        headers += error.fields
    if isinstance(error, UpgradeRequiredError):
        headers += ((b"upgrade", b"websocket"), (b"sec-websocket-version", b"13"))
    if isinstance(error, MethodNotAllowedError) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    return Reply(error.status, error_body(error, request_id), headers)


def internal_error() -> GatewayError:
    """What the client reads when the fault is a bug of ours; the traceback is in the log, under the request id."""
    return GatewayError("The gateway failed to handle this request. Its log has the details under the request id.")
