"""complaints: an error of pydantic in our words, at the node that is meant."""

from __future__ import annotations

from headgate.config.complaints import find, message_of, place_of
from headgate.config.errors import Report
from headgate.config.yaml_nodes import parse

ROOT = parse("filters:\n  - {kind: retry, config: {attempts: 3}}\nmodels: {m: {}}", Report("f"))


def test_an_error_has_a_sentence_of_ours() -> None:
    assert message_of({"type": "missing", "msg": "Field required"}) == "is required"
    assert message_of({"type": "less_than_equal", "msg": "", "ctx": {"le": 100.0}}) == "must be at most 100"
    assert message_of({"type": "less_than_equal", "msg": "", "ctx": {"le": 0.5}}) == "must be at most 0.5"


def test_an_error_nobody_foresaw_keeps_its_own() -> None:
    assert message_of({"type": "brand_new", "msg": "Input should be blue"}) == "Input should be blue"


def test_a_step_that_is_in_no_tree_is_passed_over() -> None:
    node, missing = find(ROOT, ("filters", 0, "config", "retry", "attempts"))
    assert (node.path, missing) == ("filters[0].config.attempts", None)


def test_a_missing_key_is_named_where_it_would_stand() -> None:
    place = place_of(*find(ROOT, ("models", "m", "targets")))
    assert (place.line, place.column, place.path) == (3, 13, "models.m.targets")


def test_the_key_of_a_mapping_is_meant_by_its_entry() -> None:
    assert find(ROOT, ("models", "m", "[key]"))[0].path == "models.m"


def test_an_item_that_is_not_there_is_its_list() -> None:
    assert find(ROOT, ("filters", 7)) == (ROOT.entries["filters"], None)
