"""filter_set: chains follow the file, what did not change is kept, and what cannot be built is said with its reason."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from headgate.config import ConfigError, UseConfig, parse_config
from headgate.control import filter_set
from headgate.control.filter_factory import make_filter
from headgate.control.filter_set import FilterSet, users_filter
from headgate.proxy.filter import Filter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headgate.proxy.chain import Chain


class Early(Filter):
    """Does not read the body."""

    reads_body = False

    def __init__(self, n: int = 0) -> None:
        self.n = n
        self.seen = 0

    def on_request(self, ex: Any) -> None:
        self.seen += 1


class Late(Early):
    """Reads the body."""

    reads_body = True


class AfterRetry(Late):
    """Must come after retry."""

    after: ClassVar[tuple[str, ...]] = ("retry",)


@pytest.fixture(autouse=True)
def _mine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    module.__dict__.update(Early=Early, Late=Late, AfterRetry=AfterRetry, number=7, Plain=dict)
    monkeypatch.setitem(sys.modules, "mine", module)


def filters(text: str, before: FilterSet | None = None) -> FilterSet:
    """The set of a config."""
    return FilterSet(parse_config(text, env={}), make_filter, before.kept if before is not None else None)


def names(chain: Chain) -> list[str]:
    """Of its filters."""
    return [link.name for link in chain.filters]


AUTH = "auth: {keys: [{name: app, key: hg-4f1c9a7be2d05863}]}"
EARLY, LATE = "use: 'mine:Early'", "use: 'mine:Late'"
PROVIDERS = "providers: {up: {base_url: 'http://127.0.0.1:9'}}\n"


def test_leading_filters_that_do_not_read_the_body_are_the_prefix() -> None:
    made = filters(f"filters: [{{{AUTH}}}, retry, {{{EARLY}}}, {{{LATE}}}, {{{EARLY}, name: again}}]")
    assert names(made.chains.prefix) == ["auth", "retry", "Early"]
    assert names(made.chains.default.chain) == ["auth", "retry", "Early", "Late", "again"]
    assert [step.position for step in made.chains.default.chain.requests] == [3, 4]


def test_what_a_route_overrides_or_switches_off_ends_the_prefix() -> None:
    made = filters(
        f"{PROVIDERS}filters: [{{{AUTH}}}, {{{EARLY}}}, retry]\n"
        "routes:\n"
        "  - {name: one, match: {model: 'a*'}, provider: up, filters: {Early: {n: 5}}}\n"
        "  - {name: two, match: {key: app}, filters: {retry: off, Early: off}}\n"
    )
    assert names(made.chains.prefix) == ["auth"]
    one, two = made.chains.routes
    assert (names(one.chain), names(two.chain)) == (["auth", "Early", "retry"], ["auth"])
    assert (one.model, one.provider, two.key) == ("a*", "up", "app")
    default, override = made.chains.default.chain.filters[1], one.chain.filters[1]
    assert isinstance(default, Early)
    assert isinstance(override, Early)
    assert (default.n, override.n) == (0, 5)
    assert one.chain.filters[0] is made.chains.default.chain.filters[0]


def test_no_filters_make_empty_chains() -> None:
    made = filters("{}")
    assert (names(made.chains.prefix), names(made.chains.default.chain), made.chains.routes) == ([], [], [])


def test_equal_settings_keep_the_object_and_its_counters_wherever_it_stands() -> None:
    first = filters(f"filters: [{{{AUTH}}}, {{{LATE}}}, {{{EARLY}, config: {{n: 1}}}}]")
    late, early = first.chains.default.chain.filters[1:]
    second = filters(f"filters: [{{{AUTH}}}, {{{EARLY}, config: {{n: 2}}}}, {{{LATE}}}]", first)
    assert second.chains.default.chain.filters[0] is first.chains.default.chain.filters[0]
    assert second.chains.default.chain.filters[2] is late
    assert second.chains.default.chain.filters[1] is not early


def test_a_set_that_is_refused_leaves_the_one_before_it_alone() -> None:
    first = filters(f"filters: [retry, {{{EARLY}}}]")
    kept = dict(first.kept)
    with pytest.raises(ConfigError):
        filters(f"filters: [retry: {{attempts: 5}}, {{{EARLY}}}, {{use: 'nowhere_at_all:X'}}]", first)
    assert first.kept == kept
    again = filters(f"filters: [retry, {{{EARLY}}}]", first)
    assert again.chains.default.chain.filters == first.chains.default.chain.filters


def test_what_is_no_longer_in_the_config_is_forgotten() -> None:
    first = filters(f"filters: [retry, {{{EARLY}}}]")
    second = filters("filters: [retry]", first)
    third = filters(f"filters: [retry, {{{EARLY}}}]", second)
    assert third.chains.default.chain.filters[0] is first.chains.default.chain.filters[0]
    assert third.chains.default.chain.filters[1] is not first.chains.default.chain.filters[1]


def refusal(settings: Mapping[str, Any]) -> str:
    """Why a filter of the operator's own is refused."""
    with pytest.raises(ConfigError) as refused:
        users_filter(UseConfig(name="x", **settings))
    [problem] = refused.value.problems
    return problem.message


def test_an_order_that_a_filter_cannot_work_in_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"filters\[0\]: 'use' must come after 'retry'"):
        filters("filters: [{use: 'mine:AfterRetry'}, retry]")
    assert names(filters("filters: [retry, {use: 'mine:AfterRetry'}]").chains.default.chain) == ["retry", "AfterRetry"]
    assert names(filters("filters: [{use: 'mine:AfterRetry'}]").chains.default.chain) == ["AfterRetry"]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere_at_all:X", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("mine:Nothing", "cannot be imported: AttributeError: "),
        ("mine:number", "is not a subclass of headgate.Filter"),
        ("mine:Plain", "is not a subclass of headgate.Filter"),
        ("no-such-point", "no installed package has an entry point 'no-such-point' in the group headgate.filters"),
    ],
)
def test_a_class_that_cannot_be_had_is_refused_with_the_reason(target: str, why: str) -> None:
    message = refusal({"target": target})
    assert message.startswith(f"filters: use: '{target}': ")
    assert why in message


def test_settings_that_a_class_does_not_take_are_refused_with_what_it_said() -> None:
    assert "its config was refused: TypeError: " in refusal({"target": "mine:Early", "config": {"colour": "red"}})


def test_a_module_that_fails_while_it_is_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "cannot be imported: ZeroDivisionError" in refusal({"target": "breaks_on_import:X"})


def test_an_entry_point_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        @staticmethod
        def load() -> type[Filter]:
            return Late

    def points(*, group: str, name: str) -> list[Point]:
        return [Point()] if (group, name) == ("headgate.filters", "my-filter") else []

    monkeypatch.setattr(filter_set, "entry_points", points)
    [made] = filters("filters: [{use: my-filter, config: {n: 3}}]").chains.default.chain.filters
    assert isinstance(made, Late)
    assert (made.n, made.name) == (3, "my-filter")


def test_a_class_beside_the_config_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_file.py").write_text("from headgate import Filter\nclass Mine(Filter): pass\n")
    file = tmp_path / "gateway.yaml"
    config = parse_config("filters: [{use: 'beside_the_file:Mine'}]", env={}).model_copy(update={"files": (file,)})
    for _ in range(2):
        assert names(FilterSet(config, make_filter).chains.default.chain) == ["Mine"]
    assert sys.path.count(str(tmp_path)) == 1
