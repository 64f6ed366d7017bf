"""whose: each limit has a key of its own for each caller and period, found anew only when one of them is new."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from headgate.filters.stores.rules import Kind
from headgate.filters.whose import MOST_KNOWN, Whose
from headgate.proxy.exchange import ANONYMOUS, Principal

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange

NOVEMBER_30 = 1_796_083_100.0
"""2026-11-30, a hundred seconds before midnight."""
KINDS = [Kind("money", ("team",), "month"), Kind("money", ("key", "team"), "day"), Kind("money", ("team",), "week")]


def exchange(key: str = "app", team: str | None = "web") -> Exchange:
    fields: dict[str, Any] = {"principal": Principal(key, team=team)}
    return cast("Exchange", SimpleNamespace(**fields))


def stranger(address: str) -> Exchange:
    fields: dict[str, Any] = {"principal": ANONYMOUS, "head": SimpleNamespace(client=address)}
    return cast("Exchange", SimpleNamespace(**fields))


def test_each_limit_has_its_caller_and_its_period() -> None:
    shares, keys = Whose(KINDS, "UTC").shares(exchange(), NOVEMBER_30)
    assert [(share.per, share.unit, share.caller, share.period) for share in shares] == [
        ("team", "month", "tweb", "2026-11"),
        ("key+team", "day", "kapp & tweb", "2026-11-30"),
        ("team", "week", "tweb", "2026-W49"),
    ]
    assert keys == ["tweb 2026-11", "kapp & tweb 2026-11-30", "tweb 2026-W49"]


def test_what_is_known_is_not_found_again_before_a_period_is_over_or_the_clock_is_set() -> None:
    whose = Whose(KINDS, "UTC")
    first = whose.shares(exchange(), NOVEMBER_30)
    assert whose.shares(exchange(), NOVEMBER_30 + 99) is first
    assert whose.shares(exchange("other"), NOVEMBER_30)[1] == [
        "tweb 2026-11", "kother & tweb 2026-11-30", "tweb 2026-W49",
    ]  # fmt: skip
    assert whose.shares(exchange(), NOVEMBER_30 + 100)[1] == [
        "tweb 2026-12", "kapp & tweb 2026-12-01", "tweb 2026-W49",
    ]  # fmt: skip
    assert whose.shares(exchange(), NOVEMBER_30) == first


def test_a_caller_is_known_again_by_its_principal_or_as_a_stranger_by_its_address() -> None:
    whose, ex = Whose(KINDS, "UTC"), exchange()
    first = whose.shares(ex, NOVEMBER_30)
    assert whose._known[ex.principal] is first
    assert whose.shares(ex, NOVEMBER_30 + 99) is first
    assert whose.shares(ex, NOVEMBER_30 + 100)[1][1] == "kapp & tweb 2026-12-01"
    for _ in range(2):
        assert whose.shares(stranger("10.0.0.1"), NOVEMBER_30)[1][1] == "a10.0.0.1 & t 2026-11-30"
        assert whose.shares(stranger("10.0.0.2"), NOVEMBER_30)[1][1] == "a10.0.0.2 & t 2026-11-30"
    assert whose.shares(stranger("10.0.0.2"), NOVEMBER_30) is whose._known["10.0.0.2"]


def test_one_key_at_two_addresses_is_two_callers_where_addresses_count() -> None:
    whose, principal = Whose([Kind("money", ("key", "address"), "day")], "UTC"), Principal("app")
    for _ in range(2):
        for address in ("10.0.0.1", "10.0.0.2"):
            ex = stranger(address)
            assert whose.shares(ex, NOVEMBER_30)[1] == [f"a{address} & a{address} 2026-11-30"]
            ex.principal = principal
            assert whose.shares(ex, NOVEMBER_30)[1] == [f"kapp & a{address} 2026-11-30"]


def test_only_so_many_are_known_at_a_time() -> None:
    whose = Whose(KINDS[:1], "UTC")
    for n in range(3 * MOST_KNOWN):
        assert whose.shares(exchange(team=f"x{n}"), NOVEMBER_30)[1] == [f"tx{n} 2026-11"]
    assert len(whose._known) <= MOST_KNOWN
