"""The status page: one file that fetches nothing but /stats and runs nothing but its own script."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from headgate.control.admin.page import FILE, page
from headgate.control.telemetry.catalog import BY_NAME
from tests_support.admin import running_admin

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

HTML = FILE.read_text()


async def test_the_page_is_served_with_a_policy_for_its_own_script_alone() -> None:
    async with running_admin() as admin:
        answer = await admin.get("/")
    policy = answer.header("content-security-policy") or ""
    assert (answer.status, answer.header("content-type")) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2


def test_nothing_comes_from_elsewhere() -> None:
    assert [url for url in re.findall(r"https?://[^\s\"'<>)]+", HTML) if url != "http://www.w3.org/2000/svg"] == []
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", HTML) == [
        "ready", "metrics", "stats", "clusters", "server_info", "config_dump", "admin/usage?by=model",
    ]  # fmt: skip
    assert re.findall(r"fetch\(\"([^\"]*)\"", HTML) == ["stats"]


def test_a_hostile_name_can_only_become_text() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick"):
        assert way not in HTML


def test_every_metric_the_page_reads_exists() -> None:
    named = set(re.findall(r"\b(?:headgate|gen_ai)_[a-z_]+", HTML))
    stems = {"headgate_upstream_", "headgate_worker_", "gen_ai_operation_name", "gen_ai_provider_name"}
    stems |= {"gen_ai_request_model", "gen_ai_token_type"}
    assert {name for name in named if name not in BY_NAME} <= stems
    for name in re.findall(r"\bup\(\"([a-z_]+)\"", HTML):
        assert f"headgate_upstream_{name}" in BY_NAME
    for name in re.findall(r"\bworker\(\"([a-z_]+)\"", HTML):
        assert f"headgate_worker_{name}" in BY_NAME


def test_the_policy_changes_with_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = page()[1]
    changed = tmp_path / "status.html"
    changed.write_text(HTML.replace("const PERIOD = 2000", "const PERIOD = 3000"))
    monkeypatch.setattr("headgate.control.admin.page.FILE", changed)
    assert page()[1] != before
