"""A bad configuration is refused with every problem at its place.

bad_configs.txt holds one file a paragraph; `‸` marks the place that must be named, `#!` the one problem.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.config import ConfigError, check, parse_config

MARK = "‸"


def rows() -> list[tuple[str, str]]:
    text = Path(__file__).with_name("bad_configs.txt").read_text(encoding="utf-8")
    paragraphs = [part for part in text.split("\n\n") if not part.startswith("## ")]
    return [(file, problem.strip()) for file, _, problem in (part.partition("\n#! ") for part in paragraphs)]


TABLE = rows()
ENV = {"SHORT": "abc", "SPACED": "a key with 4 spaces", "WORD": "many", "NUL": "a\x00b"}


def refused(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, env=ENV)
    return tuple(map(str, caught.value.problems))


def marked(text: str) -> tuple[str, str]:
    """The text without its mark, and the mark's place as `line:column`."""
    before = text[: text.index(MARK)]
    return text.replace(MARK, ""), f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def test_the_table_holds_a_hundred_rows_and_more() -> None:
    assert len({text for text, _ in TABLE}) == len(TABLE) >= 100
    assert all(text.count(MARK) == 1 and problem for text, problem in TABLE)


@pytest.mark.parametrize(("text", "problem"), TABLE, ids=[row[0].replace("\n", " ")[-60:] for row in TABLE])
def test_a_bad_file_is_refused_once_at_the_marked_place(text: str, problem: str) -> None:
    text, place = marked(text)
    assert refused(text) == (f"gateway.yaml:{place}: {problem}",)


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    problems = refused(
        "workers: no\n"
        "filters:\n"
        "  - retry: {atempts: 3, on: [never]}\n"
        "  - classifier: {}\n"
        "models: {m: {targets: [{provider: nobody}]}}\n"
        "listeners: {data: {address: 0.0.0.0}}\n"
        "workers: 2\n"
        "prices: {file: '${UNSET}'}\n"
    )
    assert [problem.split(": ")[1] for problem in problems] == [
        "workers",
        "filters[0].retry.atempts",
        "filters[0].retry.on[0]",
        "filters[1]",
        "models.m.targets[0].provider",
        "listeners.data.address",
        "workers",
        "prices.file",
    ]


def test_a_value_is_never_echoed() -> None:
    secret = "sk-live-9f8e7d6c5b4a"
    wrong_lines = [f"workers: {secret}", f"version: {secret}", f"routing: {{mode: {secret}}}", f"filters: {secret}"]
    for text in wrong_lines:
        assert secret not in "".join(refused(text))


def test_a_name_that_came_from_an_expansion_is_not_echoed() -> None:
    assert "many" not in "".join(refused("models: {m: {targets: [{provider: '${WORD}'}]}}"))


def test_a_key_is_shown_on_one_bounded_line() -> None:
    (problem,) = refused('"a\\nb' + "c" * 200 + '": 1')
    assert "\n" not in problem
    assert len(problem) < 120


def test_more_than_a_hundred_problems_are_cut_and_counted() -> None:
    problems = refused("".join(f"k{number}: 1\n" for number in range(150)))
    assert len(problems) == 101
    assert problems[-1] == "gateway.yaml: and 50 more problems"


def test_check_finds_nothing_in_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("workers: 2")
    assert check(tmp_path / "good.yaml", env={}) == []


def test_check_lists_the_problems_of_a_file(tmp_path: Path) -> None:
    problems = check(f"{tmp_path}/none.yaml", env={})
    assert [str(problem) for problem in problems] == [f"{tmp_path}/none.yaml: no such file or directory"]
