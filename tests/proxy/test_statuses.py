"""statuses: a failure is what another attempt may make good; everything else is the client's to read."""

from __future__ import annotations

import pytest

from headgate.proxy.errors import BadStatusError, BusyStatusError, GatewayError, UpstreamAuthError
from headgate.proxy.statuses import failure_of
from headgate.proxy.upstream.call import ResponseHead

NOON = 1_700_000_000.0


def failure(status: int, *, key: bool = True, after: bytes | None = None) -> GatewayError | None:
    fields = [] if after is None else [(b"retry-after", after)]
    return failure_of(ResponseHead(status, fields), "up", has_credential=key, wall=NOON)


@pytest.mark.parametrize("status", [400, 402, 404, 409, 413, 422, 451])
def test_what_the_client_did_wrong_is_the_clients_to_read(status: int) -> None:
    assert failure(status) is None


@pytest.mark.parametrize("status", [500, 502, 503, 529, 599])
def test_what_went_wrong_there_is_a_failure(status: int) -> None:
    assert isinstance(failure(status), BadStatusError)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_a_failure_where_it_is_ours(status: int) -> None:
    error = failure(status)
    assert isinstance(error, UpstreamAuthError)
    assert "'up'" in error.message
    assert failure(status, key=False) is None


@pytest.mark.parametrize(
    ("after", "seconds"), [(None, None), (b"7", 7.0), (b"Tue, 14 Nov 2023 22:13:30 GMT", 10.0), (b"soon", None)]
)
def test_a_429_says_how_long_to_wait_where_the_provider_did(after: bytes | None, seconds: float | None) -> None:
    error = failure(429, after=after)
    assert isinstance(error, BusyStatusError)
    assert error.retry_after == seconds
