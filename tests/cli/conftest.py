"""The command, in this process and in an environment without keys."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING

import pytest
import structlog

from tests_support.command import InProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def headgate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """`headgate("check", "gateway.yaml")`. What a command does to the process's logs is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    for name in os.environ:
        if re.search(r"API_KEY|HEADGATE", name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the folder of a config is appended to it
    yield InProcess(capsys)
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
