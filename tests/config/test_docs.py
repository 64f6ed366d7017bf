"""docs/upstreams.md: every example is a file that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headgate.config import parse_config

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (DOCS / "upstreams.md").read_text(), re.DOTALL)
VLLM = 'providers: {vllm: {base_url: "http://127.0.0.1:8000/v1"}}\n'


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.split("\n")[1].strip() for text in EXAMPLES])
def test_an_example_is_a_valid_file(text: str) -> None:
    parse_config(text if "providers:" in text else VLLM + text, env={})
