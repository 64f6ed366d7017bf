"""A rule that is switched off for a line says why on that line."""

from __future__ import annotations

import re
import tokenize
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

EXCUSE = re.compile(r"#\s*(noqa|pragma: no cover|pragma: no branch)")
REASONED = re.compile(r"# (noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|pragma: no (cover|branch)) - \w.*")


def test_every_excuse_names_its_rule_and_gives_a_reason(tracked: list[str], root: Path) -> None:
    bare = []
    for name in (name for name in tracked if name.endswith(".py")):
        with (root / name).open("rb") as file:
            comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
        bare += [
            f"{name}:{comment.start[0]}: {comment.string}"
            for comment in comments
            if EXCUSE.search(comment.string) and not REASONED.search(comment.string)
        ]
    assert bare == []
