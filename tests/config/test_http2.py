"""providers.*.http2: three values and no other, and a keep-alive."""

from __future__ import annotations

from datetime import timedelta

import pytest

from headgate.config import ConfigError, Provider, parse_config


def provider(settings: str, **env: str) -> Provider:
    return parse_config(f"providers: {{up: {{base_url: 'https://a.example/v1'{settings}}}}}", env=env).providers["up"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("", "auto"), (", http2: auto", "auto"), (", http2: true", True), (", http2: false", False)],
)
def test_what_may_be_written(written: str, meant: object) -> None:
    assert provider(written).http2 == meant


def test_it_may_come_from_the_environment() -> None:
    assert provider(", http2: '${H2:-auto}'").http2 == "auto"
    assert provider(", http2: '${H2:-auto}'", H2="false").http2 is False


@pytest.mark.parametrize("written", ["yes", "h2", "1", "'true'", "[auto]"])
def test_anything_else_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="http2"):
        provider(f", http2: {written}")


def test_what_it_may_be_is_said_in_one_problem() -> None:
    with pytest.raises(ConfigError) as raised:
        provider(", http2: yes")
    (problem,) = raised.value.problems
    assert (problem.path, problem.message) == ("providers.up.http2", "must be true or false or 'auto'")


def test_the_keep_alive_has_defaults_and_may_be_written() -> None:
    assert provider("").http2_keepalive.interval == timedelta(seconds=30)
    written = provider(", http2_keepalive: {interval: 5m, timeout: 1s}").http2_keepalive
    assert (written.interval, written.timeout) == (timedelta(minutes=5), timedelta(seconds=1))
