"""path_globs: a star stays within its segment, two stars at the end do not, and no path takes long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.path_globs import PathGlobs


@pytest.mark.parametrize(
    ("glob", "named", "not_named"),
    [
        ("/v1/files", ["/v1/files"], ["/v1/files/", "/v1/files/a", "/v1/file", "/v1/filesx"]),
        ("/v1/files/*", ["/v1/files/a", "/v1/files/"], ["/v1/files", "/v1/files/a/content"]),
        ("/v1/files/**", ["/v1/files/a", "/v1/files/a/content"], ["/v1/files", "/v1/batches/a"]),
        ("/v1/*/a", ["/v1/files/a", "/v1//a"], ["/v1/files/b/a"]),
        ("/v1/*-*/x", ["/v1/a-b/x", "/v1/a-b-c/x"], ["/v1/ab/x", "/v1/a/-b/x"]),
        ("/**", ["/", "/anything/at/all"], ["x"]),
        ("/v1/a.c", ["/v1/a.c"], ["/v1/abc"]),
    ],
)
def test_a_glob_names_what_it_says(glob: str, named: list[str], not_named: list[str]) -> None:
    globs = PathGlobs([glob])
    assert [path for path in named if not globs.names(path)] == []
    assert [path for path in not_named if globs.names(path)] == []


def test_one_of_several_is_enough() -> None:
    globs = PathGlobs(["/v1/files", "/v1/batches/*"])
    assert globs.names("/v1/files")
    assert globs.names("/v1/batches/b")
    assert not globs.names("/v1/models")
    assert repr(globs) == "PathGlobs(/v1/files, /v1/batches/*)"


def test_a_hostile_path_is_not_tried_again_and_again() -> None:
    """Backtracking over eight stars and 60 000 bytes would not end in a lifetime."""
    globs = PathGlobs(["/" + "*a" * 8 + "b"])
    assert not globs.names("/" + "a" * 60_000)


LETTERS = st.text("ab/", max_size=8)


@given(st.lists(st.sampled_from(["a", "b", "/", "*"]), max_size=8).map("".join), st.booleans(), LETTERS)
def test_it_matches_as_backtracking_would(glob: str, deep: bool, path: str) -> None:
    glob = re.sub(r"\*\*+", "*", "/" + glob)
    glob = glob.rstrip("*") + "**" if deep else glob
    plain = re.escape(glob).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    assert PathGlobs([glob]).names("/" + path) == (re.fullmatch(plain, "/" + path) is not None)
