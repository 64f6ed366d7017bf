"""What a provider's status means: an answer for the client, or a failure that another attempt may make good.

A 4xx is the client's own affair and goes down as it is, but for those that are about us: a 429, which rests the key
that got it, and a 401 or 403 where the key is ours, which no client can mend. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import BadStatusError, BusyStatusError, UpstreamAuthError
from .headers import retry_after

if TYPE_CHECKING:
    from .errors import GatewayError
    from .upstream.call import ResponseHead


def failure_of(head: ResponseHead, provider: str, *, has_credential: bool, wall: float) -> GatewayError | None:
    """What an answer with a status of 400 or more failed with; None where it is the client's to read.

    `has_credential`: it was asked with a key of ours. `wall` is now, in Unix seconds, for a Retry-After that is a
    date."""
    status = head.status
    if status == 429:
        return BusyStatusError("The provider is rate limiting.", retry_after=retry_after(head.headers, wall))
    if status >= 500:
        return BadStatusError(f"The provider answered {status}.")
    if status in (401, 403) and has_credential:
        return UpstreamAuthError(f"The provider '{provider}' refused the gateway's credential: check its api_key.")
    return None
