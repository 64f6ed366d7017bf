"""models: exact beats wildcard beats nothing, and who is addressed directly is whoever the config allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.openai import OpenAI
from headgate.proxy import models as module
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.catalog import ListedModel
from headgate.proxy.errors import ModelNotFoundError
from headgate.proxy.models import ModelTable, ModelTarget
from headgate.proxy.upstream.cluster import Cluster

DIALECT = OpenAI()
A, B, C = (Cluster(name, DIALECT, ()) for name in "abc")
CLUSTERS = {"a": A, "b": B, "c": C}


def entry(cluster: Cluster, model: str | None = None, priority: int = 0) -> ModelTarget:
    return ModelTarget(cluster, model, priority, None)


def resolved(table: ModelTable, model: str, provider: str | None = None) -> list[str]:
    return [f"{target.cluster.name}/{target.model}" for target in table.resolve(model, provider=provider)]


WRITTEN = ModelTable(
    {
        "fast": [entry(A, "gpt-mini"), entry(B, "haiku")],
        "gpt-*": [entry(A)],
        "gpt-4*": [entry(B), entry(A, "pinned")],
        "c-*": [entry(C)],
    },
    CLUSTERS,
    frozenset(["c"]),
)
UNWRITTEN = ModelTable({}, CLUSTERS, frozenset())


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        ("fast", None, ["a/gpt-mini", "b/haiku"]),
        ("gpt-3", None, ["a/gpt-3"]),
        ("gpt-4o", None, ["b/gpt-4o", "a/pinned"]),
        ("gpt-*", None, ["a/gpt-*"]),
        ("c/anything", None, ["c/anything"]),
        ("fast", "b", ["b/haiku"]),
        ("fast", "c", ["c/fast"]),
        ("gpt-4o", "a", ["a/pinned"]),
        ("c/x", "c", ["c/x"]),
    ],
)
def test_with_models_written(model: str, provider: str | None, expected: list[str]) -> None:
    assert resolved(WRITTEN, model, provider) == expected


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("slow", None),
        ("a/gpt-mini", None),
        ("c/", None),
        ("/x", None),
        ("fast*", None),
        ("gpt-3", "b"),
        ("fast", "nobody"),
    ],
)
def test_a_name_nobody_serves_is_not_found(model: str, provider: str | None) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist or") as raised:
        WRITTEN.resolve(model, provider=provider)
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        ("any", None, ["a/any"]),
        ("b/any", None, ["b/any"]),
        ("b/", None, ["a/b/"]),
        ("nobody/any", None, ["a/nobody/any"]),
        ("any", "b", ["b/any"]),
        ("b/any", "b", ["b/any"]),
        ("vendor/any", "c", ["c/vendor/any"]),
        ("", None, ["a/"]),
        ("", "b", ["b/"]),
    ],
)
def test_without_models_written(model: str, provider: str | None, expected: list[str]) -> None:
    assert resolved(UNWRITTEN, model, provider) == expected


def test_without_a_provider_nothing_is_found() -> None:
    with pytest.raises(ModelNotFoundError):
        ModelTable({}, {}, frozenset()).resolve("any")


def test_who_names_no_model_is_not_sent_to_a_stand_in() -> None:
    mock, keyless = Cluster("mock", DIALECT, (), stand_in=True), Cluster("keyless", DIALECT, (), unconfigured=True)
    table = ModelTable({}, {"mock": mock, "keyless": keyless, "b": B}, frozenset())
    assert resolved(table, "") == ["b/"]


def test_priority_and_price_are_kept() -> None:
    price = own_price({"input": 1.0})
    table = ModelTable({"m": [ModelTarget(A, None, 2, price)]}, CLUSTERS, frozenset())
    [target] = table.resolve("m")
    assert (target.priority, target.price, repr(target)) == (2, price, "<Target a/m>")


def test_exact_names_can_be_listed_and_wildcards_cannot() -> None:
    assert WRITTEN.names() == ["fast"]
    assert UNWRITTEN.names() == []


def test_an_answer_is_remembered_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from outside."""
    monkeypatch.setattr(module, "_REMEMBERED", 8)
    table = ModelTable({"*": [entry(A)]}, CLUSTERS, frozenset())
    assert table.resolve("m") is table.resolve("m")
    for number in range(100):
        table.resolve(f"made-up-{number}")
        assert len(table._resolved) <= 8
    assert resolved(table, "m") == ["a/m"]


def test_a_long_name_is_quoted_in_part() -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        WRITTEN.resolve("x" * 10_000)
    assert len(raised.value.message) < 300


@given(st.text(max_size=20), st.sampled_from([None, "a", "b", "c", "nobody"]))
def test_any_name_gives_targets_of_the_provider_asked_for_or_is_not_found(model: str, provider: str | None) -> None:
    for table in (WRITTEN, UNWRITTEN):
        try:
            targets = table.resolve(model, provider=provider)
        except ModelNotFoundError:
            continue
        assert targets
        assert provider is None or all(target.cluster.name == provider for target in targets)


def listing(name: str, *ids: str) -> Cluster:
    return Cluster(name, DIALECT, (), listed={id_: ListedModel(id_) for id_ in ids})


def test_names_that_providers_list_come_by_wildcards_and_by_address() -> None:
    up, other, third = (listing(name, "gpt-1", "o3") for name in ("up", "other", "third"))
    clusters = {one.name: one for one in (up, other, third)}
    entries = {"gpt-*": [entry(other), entry(up, "one"), entry(up, None, 1)], "exact": [entry(up)]}
    table = ModelTable(entries, clusters, frozenset({"third"}))
    assert list(table.listed()) == [
        ("gpt-1", other, "gpt-1"), ("gpt-1", up, "gpt-1"), ("third/gpt-1", third, "gpt-1"), ("third/o3", third, "o3"),
    ]  # fmt: skip


def test_without_models_the_first_provider_is_listed_by_bare_names_too() -> None:
    up, other = listing("up", "a"), listing("other", "b")
    assert [name for name, _, _ in ModelTable({}, {"up": up, "other": other}, frozenset()).listed()] == [
        "a", "up/a", "other/b",
    ]  # fmt: skip
