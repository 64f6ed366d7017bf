"""docs/filters.md: its example works as it stands, and every piece of config in it is a config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from headgate.config import (
    AccessLogConfig,
    AuthConfig,
    BudgetConfig,
    CircuitBreakerConfig,
    GuardConfig,
    HeadersConfig,
    RateLimitConfig,
    RetryConfig,
    parse_config,
)
from headgate.config.fields import Section
from headgate.filters.access_log import AccessLog
from headgate.filters.auth import Auth
from headgate.filters.budget import Budget
from headgate.filters.circuit_breaker import CircuitBreaker
from headgate.filters.guard import Guard
from headgate.filters.headers import Headers
from headgate.filters.rate_limit import RateLimit
from headgate.filters.retry import Retry
from headgate.proxy.filter import Filter
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()


def blocks(language: str) -> list[str]:
    """The code of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands below a heading."""
    return re.split(r"^##+ ", PAGE.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


ENTRY = next(block for block in blocks("yaml") if block.startswith("# its entry"))
CODE = next(block for block in blocks("python") if block.startswith("# quota.py"))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_piece_of_config_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "ops-key").write_text("hg-ops-9vKq2LxTzR4mWc7P")
    env = {"HEADGATE_KEY": CLIENT_KEY, "APP_KEY": "hg-app-7Qm2xV9sLd4TzKpR", "REDIS_URL": "redis://cache"}
    config = parse_config(text.replace("/run/secrets", str(tmp_path)), env=env)
    assert config.filters


def test_the_example_is_short() -> None:
    assert len(CODE.splitlines()) < 40


async def test_the_example_works_in_a_real_gateway(tmp_path: Path) -> None:
    (tmp_path / "quota.py").write_text(CODE)
    script = in_turn(json_response(chat_completion()), error_response(400, "no"), json_response(chat_completion()))
    async with FakeUpstream(script) as upstream:
        config = {**config_for(upstream, retry=False), **yaml.safe_load(ENTRY)}
        env = {"HEADGATE_KEY": CLIENT_KEY, "PYTHONPATH": str(tmp_path)}
        async with gateway_process(config, env=env) as gateway:
            answers = [await gateway.post() for _ in range(4)]
            metrics = (await gateway.admin.send("GET", "/stats?filter=quota", key=None)).json()["stats"]
            assert (await gateway.post(key="hg-nobody-2Vb7nM4kJh9GfDsA")).status == 401
            rows = await gateway.rows(4)
    assert [answer.status for answer in answers] == [200, 400, 200, 429]
    assert answers[3].error["code"] == "rate_limit_exceeded"
    assert answers[3].error["message"] == "'app' has had its 2 answers."
    assert answers[3].header("retry-after") == "60"
    assert {one["labels"]["counter"]: one["value"] for one in metrics} == {"refused": 1}
    assert [row["outcome"] for row in rows] == ["ok", "upstream_error", "ok", "refused"]


@pytest.mark.parametrize(
    ("title", "settings", "kind"),
    [
        ("auth", AuthConfig, Auth),
        ("budget", BudgetConfig, Budget),
        ("circuit_breaker", CircuitBreakerConfig, CircuitBreaker),
        ("guard", GuardConfig, Guard),
        ("headers", HeadersConfig, Headers),
        ("access_log", AccessLogConfig, AccessLog),
        ("rate_limit", RateLimitConfig, RateLimit),
        ("retry", RetryConfig, Retry),
    ],
)
def test_every_setting_of_a_built_in_filter_is_explained_with_its_default(
    title: str, settings: type[Section], kind: type[Filter]
) -> None:
    text = section(title)
    table = dict(re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", text, re.MULTILINE))
    explained = set(re.findall(r"`([\w.\[\]]+)`", " ".join(table)))
    assert explained == set(paths(settings))
    for path, default in paths(settings).items():
        row = next(value for names, value in table.items() if f"`{path}`" in names)
        assert default is None or json.dumps(default) in row.replace("none", "[]") or str(default) in row
    assert kind.__doc__


def paths(settings: type[Section], prefix: str = "") -> dict[str, Any]:
    """Every key and its default; None where it is not a plain value."""
    return dict(_walk(settings, prefix))


def _walk(settings: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in settings.model_fields.items():
        if name == "kind":
            continue
        inner = [one for one in _types(field.annotation) if isinstance(one, type) and issubclass(one, Section)]
        many = "tuple" in str(field.annotation)
        if not inner or many:
            yield f"{prefix}{name}", field.default if isinstance(field.default, str | int) else None
        for one in inner:
            yield from _walk(one, f"{prefix}{name}{'[]' if many else ''}.")


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for one in getattr(annotation, "__args__", ()):
        yield from _types(one)


def test_every_moment_of_a_filter_is_in_the_table() -> None:
    moments = {name for name in vars(Filter) if name.startswith("on_")}
    assert set(re.findall(r"^\| `(on_\w+)\(", section("The moments").replace("### ", ""), re.MULTILINE)) == moments
