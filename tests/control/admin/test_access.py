"""access: the table of design, cell by cell, and no role where none was asked for."""

from __future__ import annotations

import pytest

from headgate.control.admin.access import Access, authorize
from headgate.proxy.errors import AdminKeyRequiredError, GatewayError, PermissionDeniedError, UnauthorizedError
from headgate.proxy.exchange import Principal

CALLERS = {
    "nobody": None,
    "app": frozenset[str](),
    "viewer": frozenset(("viewer",)),
    "admin": frozenset(("admin",)),
    "both": frozenset(("viewer", "admin")),
}
EVERYBODY = frozenset(CALLERS)
ANY_ROLE = frozenset(("viewer", "admin", "both"))
ADMINS = frozenset(("admin", "both"))
NOBODY = frozenset[str]()

# declared access -> who may on loopback with keys, on loopback without keys, on a public address with keys, without
TABLE = {
    Access.EVERYBODY: (EVERYBODY, EVERYBODY, EVERYBODY, EVERYBODY),
    Access.OPEN: (EVERYBODY, EVERYBODY, ANY_ROLE, NOBODY),
    Access.VIEWER: (ANY_ROLE, EVERYBODY, ANY_ROLE, NOBODY),
    Access.ADMIN: (ADMINS, NOBODY, ADMINS, NOBODY),
}


def refusal(access: Access, caller: str, *, loopback: bool, keyless: bool) -> GatewayError | None:
    def identify() -> Principal:
        roles = CALLERS[caller]
        if roles is None:
            raise UnauthorizedError("no key")
        return Principal(caller, roles=roles)

    try:
        authorize(access, loopback=loopback, keyless=keyless, identify=identify)
    except GatewayError as error:
        return error
    return None


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize(
    ("column", "loopback", "keyless"), [(0, True, False), (1, True, True), (2, False, False), (3, False, True)]
)
def test_the_table_holds_for_every_caller(access: Access, column: int, loopback: bool, keyless: bool) -> None:
    may = {caller for caller in CALLERS if refusal(access, caller, loopback=loopback, keyless=keyless) is None}
    assert may == TABLE[access][column]


def test_every_access_stands_in_the_table() -> None:
    assert set(TABLE) == set(Access)


@pytest.mark.parametrize(
    ("access", "caller", "keyless", "kind"),
    [
        (Access.VIEWER, "nobody", False, UnauthorizedError),
        (Access.VIEWER, "app", False, PermissionDeniedError),
        (Access.ADMIN, "nobody", False, UnauthorizedError),
        (Access.ADMIN, "viewer", False, AdminKeyRequiredError),
        (Access.ADMIN, "nobody", True, AdminKeyRequiredError),
    ],
)
def test_the_refusal_says_what_is_missing(access: Access, caller: str, keyless: bool, kind: type[GatewayError]) -> None:
    assert type(refusal(access, caller, loopback=True, keyless=keyless)) is kind


def test_a_key_is_not_looked_at_where_none_is_needed() -> None:
    def identify() -> Principal:
        raise AssertionError("asked")

    authorize(Access.EVERYBODY, loopback=False, keyless=False, identify=identify)
    authorize(Access.OPEN, loopback=True, keyless=False, identify=identify)
    authorize(Access.VIEWER, loopback=True, keyless=True, identify=identify)
