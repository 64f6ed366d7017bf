"""expand: `${…}` is replaced once, from the environment and from files, and nothing else is touched."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config.expand import MAX_FILE, Expander, ExpandError, ExpansionLimitError, read_text

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PLAIN = st.text(max_size=30).filter(lambda text: "${" not in text and not text.endswith("$"))
DEFAULTS = st.text(max_size=20).filter(lambda text: "}" not in text)


def expand(text: str, **env: str) -> str:
    return Expander(env).expand(text).text


def test_a_variable_is_replaced_by_its_value() -> None:
    assert expand("${HOST}", HOST="example") == "example"
    assert expand("https://${HOST}:${PORT}/v1", HOST="example", PORT="8443") == "https://example:8443/v1"


def test_a_default_covers_what_is_unset_and_what_is_empty() -> None:
    assert expand("${A:-b}") == "b"
    assert expand("${A:-b}", A="") == "b"
    assert expand("${A:-b}", A="a") == "a"
    assert expand("${A:-}") == ""
    assert expand("${A:-:-}") == ":-"


def test_a_variable_that_is_set_to_nothing_is_nothing() -> None:
    assert expand("${A}", A="") == ""


def test_an_unset_variable_without_default_is_named() -> None:
    with pytest.raises(ExpandError, match=r"^NOPE is not set; \$\{NOPE:-default\} would give it a default$"):
        expand("x${NOPE}")


def test_two_dollars_make_a_literal() -> None:
    assert expand("$${A}", A="a") == "${A}"
    assert expand("$${A} ${A}", A="a") == "${A} a"
    assert expand("$ $5 $A {A}") == "$ $5 $A {A}"


def test_an_expansion_is_not_expanded_again() -> None:
    assert expand("${A}", A="${B}", B="secret") == "${B}"
    assert expand("${A:-$}{B}", B="secret") == "${B}"


@pytest.mark.parametrize("text", ["${", "${A", "${}", "${ A}", "${1}", "${A:b}", "${A-b}", "${A.B}", "a${b c}"])
def test_a_stray_opening_is_refused(text: str) -> None:
    with pytest.raises(ExpandError, match="must open"):
        expand(text, A="a")


def test_the_origin_is_the_first_source(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    assert Expander({"A": "a"}).expand("x${A}").origin == "A"
    assert Expander({}).expand("${A:-}").origin == "A"
    assert Expander({}).expand(f"${{file:{tmp_path}/key}}").origin == f"file:{tmp_path}/key"
    assert Expander({}).expand("plain $${A}").origin is None


def test_a_file_gives_its_text_without_the_last_line_end(tmp_path: Path) -> None:
    for content, text in {b"k": "k", b"k\n": "k", b"k\r\n": "k", b"k\n\n": "k\n", b"": ""}.items():
        (tmp_path / "key").write_bytes(content)
        assert expand(f"${{file:{tmp_path}/key}}") == text


def test_the_files_read_are_remembered_once(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    expander = Expander({})
    for _ in range(3):
        expander.expand(f"${{file:{tmp_path}/key}}")
    assert expander.files == (tmp_path / "key",)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "long").write_bytes(b"x" * (MAX_FILE + 1))
    os.mkfifo(tmp_path / "pipe")
    for name, why in {
        "none": "no such file or directory",
        ".": "not a regular file",
        "pipe": "not a regular file",
        "latin": "not UTF-8 at byte 0",
        "long": "larger than 64 KiB",
        "x" * 5000: "file name too long",
    }.items():
        with pytest.raises(ExpandError, match=why):
            expand(f"${{file:{tmp_path}/{name}}}")


def test_a_file_that_hides_its_size_is_bounded_as_well() -> None:
    with pytest.raises(ValueError, match="larger than 0 KiB"):
        read_text("/proc/self/status", 16)


def test_all_expansions_together_are_bounded() -> None:
    expander = Expander({"A": "x" * 100_000})
    for _ in range(10):
        expander.expand("${A}")
    with pytest.raises(ExpansionLimitError):
        expander.expand("${A}")


@given(PLAIN)
def test_text_without_an_opening_is_left_alone(text: str) -> None:
    assert expand(text) == text


@given(NAMES, PLAIN, PLAIN, st.text(min_size=1, max_size=20))
def test_what_stands_around_is_left_alone(name: str, before: str, after: str, value: str) -> None:
    assert expand(f"{before}${{{name}}}{after}", **{name: value}) == before + value + after


@given(NAMES, DEFAULTS)
def test_a_default_is_taken_as_it_stands(name: str, default: str) -> None:
    assert Expander({}).expand(f"${{{name}:-{default}}}").text == default


@given(st.text(max_size=40).filter(lambda text: "$" not in text))
def test_an_escaped_text_comes_back(text: str) -> None:
    wanted = f"${{{text}}}"
    assert expand(wanted.replace("${", "$${")) == wanted


@given(st.text(alphabet="${}:-AB file", max_size=30))
def test_any_text_is_expanded_or_refused(text: str) -> None:
    with suppress(ExpandError):
        assert isinstance(expand(text, A="a"), str)
