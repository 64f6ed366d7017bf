"""The command, in this process and in an environment without keys."""

from __future__ import annotations

import os
import re
import sys

import pytest

from tests_support.command import InProcess


@pytest.fixture
def headgate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """`headgate("check", "gateway.yaml")`."""
    for name in os.environ:
        if re.search(r"API_KEY|HEADGATE", name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the folder of a config is appended to it
    return InProcess(capsys)
