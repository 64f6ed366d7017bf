"""Who may do what on the admin listener: a decision, from what an endpoint declares and who asks.

| declared  | loopback       | loopback, no keys | public address |
|-----------|----------------|-------------------|----------------|
| EVERYBODY | open           | open              | open           |
| OPEN      | open           | open              | any role       |
| VIEWER    | viewer, admin  | open              | any role       |
| ADMIN     | admin          | nobody            | admin          |

A public address without keys refuses to boot; should it ever serve, it serves EVERYBODY's endpoints alone.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ...proxy.errors import AdminKeyRequiredError, PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...proxy.exchange import Principal

ROLES = frozenset(("viewer", "admin"))


class Access(Enum):
    """What an endpoint asks of its caller; the table is above."""

    EVERYBODY = "everybody"
    OPEN = "open"
    VIEWER = "viewer"
    ADMIN = "admin"


def authorize(access: Access, *, loopback: bool, keyless: bool, identify: Callable[[], Principal]) -> Principal | None:
    """Who the caller is, where that was asked; raises UnauthorizedError (from `identify`) or PermissionDeniedError.

    `loopback`: only this machine reaches the listener. `keyless`: no key is configured. `identify` is asked only where
    it matters.
    """
    if access is Access.EVERYBODY:
        return None
    if keyless:
        if access is Access.ADMIN or not loopback:
            raise AdminKeyRequiredError(
                "This needs a key with the role 'admin', and no key is configured: add one under filters: auth: keys."
            )
        return None
    if access is Access.OPEN and loopback:
        return None
    principal = identify()
    if access is Access.ADMIN and "admin" not in principal.roles:
        raise AdminKeyRequiredError("This needs a key with the role 'admin'.")
    if not principal.roles & ROLES:
        raise PermissionDeniedError("This needs a key with the role 'viewer' or 'admin'.")
    return principal
