"""versions: the finished file is refused exactly for what this version has not, each by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headgate.config import ConfigError, parse_config
from headgate.config.versions import LATER_KEYS, LATER_VALUES

if TYPE_CHECKING:
    from pathlib import Path

FINISHED = """\
version: 1
listeners:
  data:  {address: 127.0.0.1, port: 8070}
  admin: {address: 127.0.0.1, port: 9901}
limits: {body: 32MiB, upload: 4GiB, buffered: 512MiB, headers: 64KiB, json_depth: 64, drain: 30s}
providers:
  openai:    {base_url: "https://api.openai.com/v1", api_key: "${OPENAI_API_KEY:-}"}
  anthropic: {dialect: anthropic, base_url: "https://api.anthropic.com", api_keys: [{name: a, key: "${A:-}"}]}
  vllm:
    endpoints: [{url: "http://127.0.0.1:8000/v1", region: eu}, {url: "http://127.0.0.1:8001/v1", weight: 2}]
    load_balancing: least_request
    health_check: {path: /health, interval: 5s, timeout: 1s, unhealthy_threshold: 3, healthy_threshold: 1}
    outlier_detection: {consecutive_5xx: 5, interval: 10s, base_ejection_time: 30s, max_ejection_percent: 50}
    timeouts: {connect: 5s, first_token: 300s, idle: 120s, total: 600s}
    limits: {connections: 1024, pending: 1024, requests: 1024}
    http2: auto
  mock: {base_url: "mock:"}
models:
  fast:
    strategy: latency
    targets: [{provider: openai, model: gpt-4o-mini}, {provider: anthropic, model: claude-haiku-4-5}, {provider: mock, priority: 1}]
  "gpt-*": {targets: [{provider: openai}]}
routes:
  - name: batch
    match: {path: /v1/chat/completions, model: "gpt-*", key: nightly, tags: [batch]}
    filters: {rate_limit: off}
    strategy: cost
filters:
  - auth: {keys: [{name: app, key: "${HEADGATE_KEY:-}"}]}
  - rate_limit: {per: key, requests_per_minute: 600, tokens_per_minute: 200000, concurrent: 64}
  - circuit_breaker: {failures: 5, window: 60s, open_for: 30s}
  - classifier: {tiers: [cache, vllm, fuzzy, remote], when: {model: auto}}
  - strategy: {default: model, rules: [{name: long, priority: 10, if: "prompt_tokens > 32000", use: {model: "gpt-4.1"}}]}
  - retry: {attempts: 3, on: [connect-failure, reset, "5xx", "429"], budget: {percent: 20, min_per_second: 10}}
stores: {default: auto}
events:
  {sink: sqlite, path: ./headgate-events.db, retention: 30d, max_size: 1GiB, spool: {path: ./headgate-spool, on_full: drop}}
prices: {file: ./prices.yaml}
routing: {mode: direct}
"""  # noqa: E501 - the file as a user would paste it

REFUSED = [
    ("providers.anthropic.dialect", "anthropic"),
    ("models.fast.strategy", "strategy"),
    ("routes[0].strategy", "strategy"),
    ("filters[3]", "classifier"),
    ("filters[4]", "strategy"),
]


def refused(text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, env={})
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_the_finished_file_is_refused_exactly_for_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert refused(FINISHED) == [(path, f"'{name}' is not in this version") for path, name in REFUSED]


KEY = "sk-Zk3v9QmT2xLw7RbN"


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("agents: {folder: x}", "agents", "agents"),
        ("policies: []", "policies", "policies"),
        ("telemetry: {otlp: x}", "telemetry", "telemetry"),
        ("listeners: {admin: shared}", "listeners.admin", "shared"),
        ("providers: {p: {base_url: 'mock:', api_key: client}}", "providers.p.api_key", "client"),
        ("providers: {p: {base_url: 'mock:', dialect: gemini}}", "providers.p.dialect", "gemini"),
        ("routing: {mode: plano_proxy, plano_proxy: {timeout: 30s}}", "routing.mode", "plano_proxy"),
        ("routing: {mode: plano_embedded}", "routing.mode", "plano_embedded"),
    ],
)  # fmt: skip
def test_what_comes_later_is_refused_by_name(text: str, path: str, name: str) -> None:
    assert refused(text)[0] == (path, f"'{name}' is not in this version")


def test_nothing_is_both_here_and_later() -> None:
    for model, later in LATER_KEYS.items():
        assert later.isdisjoint(model.model_fields)
    for model, field in LATER_VALUES:
        assert field in model.model_fields


def test_a_later_key_is_not_hidden_by_a_later_value() -> None:
    assert [path for path, _ in refused("routing: {mode: plano_proxy, plano_proxy: {}}")] == [
        "routing.mode",
        "routing.plano_proxy",
    ]
