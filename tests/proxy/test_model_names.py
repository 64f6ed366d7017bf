"""model_names: exact, or a beginning and a star; nothing else, and never a request that names no model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.model_names import ModelNames

MODELS = st.text(alphabet="ab-/.", max_size=6)


@pytest.mark.parametrize(
    ("written", "model", "allowed"),
    [
        (["gpt-4o"], "gpt-4o", True),
        (["gpt-4o"], "gpt-4o-mini", False),
        (["gpt-4o"], "openai/gpt-4o", False),
        (["gpt-*"], "gpt-4o", True),
        (["gpt-*"], "gpt-", True),
        (["gpt-*"], "GPT-4o", False),
        (["openai/*"], "openai/ft/x", True),
        (["*"], "anything", True),
        (["*"], "", False),
        (["a", "b*"], "bc", True),
        (["a", "b*"], "c", False),
    ],
)
def test_a_name_stands_for_itself_or_for_what_begins_with_it(written: list[str], model: str, allowed: bool) -> None:
    assert ModelNames(written).allow(model) is allowed


@given(st.lists(st.tuples(MODELS.filter(bool), st.booleans())), MODELS)
def test_it_allows_what_one_of_the_names_allows(names: list[tuple[str, bool]], model: str) -> None:
    written = [name + "*" if star else name for name, star in names]
    expected = any(model.startswith(name) if star else model == name for name, star in names)
    assert ModelNames(written).allow(model) is (bool(model) and expected)


def test_it_shows_what_was_written() -> None:
    assert repr(ModelNames(["b*", "a"])) == "ModelNames(a, b*)"
