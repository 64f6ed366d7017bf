"""yaml_nodes: a tree with places, read by the YAML 1.2 core schema."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import ConfigError, yaml_nodes
from headgate.config.errors import Report
from headgate.config.nodes import Items, Node, Scalar, Table, resolve, size_of
from headgate.config.yaml_nodes import parse


def tree(text: str) -> Table:
    report = Report("f")
    table = parse(text, report)
    report.raise_if_any()
    return table


def values(node: Node) -> object:
    if isinstance(node, Table):
        return {key: values(value) for key, value in node.entries.items()}
    return [values(item) for item in node.items] if isinstance(node, Items) else node.text


def at(node: Node, *steps: str | int) -> Node:
    for step in steps:
        if isinstance(node, Table):
            node = node.entries[str(step)]
        elif isinstance(node, Items):
            node = node.items[int(step)]
    return node


def test_each_node_knows_its_line_its_column_and_its_path() -> None:
    root = tree('filters:\n  - retry: {attempts: 3}\n  - "a b": [x]\nmodels:\n  "gpt-4.1": y\n  gpt-*: z\n')
    places = {
        "filters[0].retry.attempts": (2, 23),
        'filters[1]["a b"][0]': (3, 13),
        'models["gpt-4.1"]': (5, 14),
        "models.gpt-*": (6, 10),
    }
    found = [
        at(root, "filters", 0, "retry", "attempts"),
        at(root, "filters", 1, "a b", 0),
        at(root, "models", "gpt-4.1"),
        at(root, "models", "gpt-*"),
    ]
    assert {node.path: (node.line, node.column) for node in found} == places
    assert root.path == ""


def test_a_key_has_a_place_of_its_own_even_when_it_is_missing() -> None:
    root = tree("limits:\n  body: 1MiB")
    limits = at(root, "limits")
    assert (limits.key("body").line, limits.key("body").column, limits.key("body").path) == (2, 3, "limits.body")
    assert (limits.key("none").line, limits.key("none").path) == (limits.line, "limits.none")
    assert at(limits, "body").key("x").path == "limits.body.x"


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "~", "null", "\ufeff"])
def test_an_empty_file_is_an_empty_table(text: str) -> None:
    assert tree(text).entries == {}


def test_a_byte_order_mark_is_passed_over() -> None:
    assert values(tree("\ufeffworkers: 1")) == {"workers": "1"}


def test_keys_are_text_whatever_they_look_like() -> None:
    assert values(tree("on: 1\n429: 2\ntrue: 3\n~: 4")) == {"on": "1", "429": "2", "true": "3", "~": "4"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("nil", "nil"),
        ("true", True), ("TRUE", True), ("false", False), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("0", 0), ("-7", -7), ("+7", 7), ("007", 7), ("0o17", 15), ("0x1F", 31), ("0b1", "0b1"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("2026-01-01", "2026-01-01"), ("9" * 41, "9" * 41),
        ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("-1.5E-3", -0.0015), ("1.2.3", "1.2.3"),
        (".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"), ("=", "="), ("<<", "<<"),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_the_core_schema_says(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(float(str(resolve(".nan"))))


def test_quotes_and_blocks_are_not_plain() -> None:
    root = tree("a: '1'\nb: \"1\"\nc: |\n  1\nd: >\n  1\ne: 1")
    plain = {key: node.plain for key, node in root.entries.items() if isinstance(node, Scalar)}
    assert plain == {"a": False, "b": False, "c": False, "d": False, "e": True}


def test_duplicates_are_reported_and_reading_goes_on() -> None:
    report = Report("f")
    table = parse("a: 1\nb: {c: 1, c: 2}\na: 3", report)
    assert values(table) == {"a": "1", "b": {"c": "1"}}
    with pytest.raises(ConfigError) as caught:
        report.raise_if_any()
    assert [problem.path for problem in caught.value.problems] == ["b.c", "a"]


def test_a_refusal_carries_what_was_reported_before_it() -> None:
    with pytest.raises(ConfigError) as caught:
        tree("a: 1\na: 2\nb: *x")
    assert [problem.line for problem in caught.value.problems] == [2, 3]


def test_the_size_of_a_tree_counts_every_value() -> None:
    assert size_of(tree("a: [1, 2]\nb: {c: d}")) == 6


def test_the_parser_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: [1, 'x']\nb: |\n  y\n"
    with_c = tree(text)
    monkeypatch.setattr(yaml_nodes, "_LOADER", yaml.SafeLoader)
    without = tree(text)
    assert values(with_c) == values(without)
    assert at(with_c, "a", 1).column == at(without, "a", 1).column
    with pytest.raises(ConfigError, match="not YAML"):
        tree("a: [")


PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Cf", "Zl", "Zp", "Zs")), max_size=12
)
KEYS = PLAIN.filter(lambda key: "${" not in key)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(KEYS, TREES, max_size=5), st.booleans())
def test_whatever_yaml_can_write_is_read_back(wanted: dict[str, object], flow: bool) -> None:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    text = yaml.dump(wanted, Dumper=Dumper, allow_unicode=True, default_flow_style=flow, default_style='"')
    assert values(tree(text)) == wanted


@given(st.text(max_size=60) | st.text(alphabet="{}[]:-?,&*!|>'\"%#\n\t ab1~", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(tree(text), Table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "1:1: the file must be a mapping (key: value)"),
        ("a: 1\n---\nb: 2", "2:1: a second document"),
        ("%TAG !a! b:\n---\na: 1", "1:1: a directive; directives and tags are not read"),
        ("a: &x 1", "1:4: an anchor; anchors and aliases are not read"),
        ("a: *x", "1:4: an alias; anchors and aliases are not read"),
        ("a: !!str 1", "1:4: a tag; tags are not read"),
        ('a: "\\0"', "1:4: a control character"),
        ("[a]: 1", "1:1: a key must be text"),
        ("k" * 257 + ": 1", "1:1: a key is longer than 256 characters"),
        ("a: " + "[" * 65 + "]" * 65, "1:67: nested deeper than 64 levels"),
        ("a: [" + "1," * 20_000 + "]", "1:39999: more than 20000 values"),
        ("# é\n" + "#" * (1 << 20), "larger than 1 MiB"),
        ("a: \x07", "1:4: control character U+0007"),
    ],
)
def test_what_is_refused_says_where_and_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tree(text)
    (problem,) = caught.value.problems
    assert str(problem).removeprefix("f:").strip() == message


def test_unreadable_text_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader(yaml.SafeLoader):
        def get_event(self) -> yaml.Event:
            raise yaml.YAMLError

    monkeypatch.setattr(yaml_nodes, "_LOADER", Loader)
    with pytest.raises(ConfigError, match=r"^f: not YAML$"):
        tree("a: 1")
