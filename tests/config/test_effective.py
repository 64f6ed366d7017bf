"""effective: what is shown holds no secret; the digest changes with whatever has an effect, and with nothing else."""

from __future__ import annotations

import json

import pytest

from headgate.config import GatewayConfig, dump, load_config, parse_config

CANARIES = {
    "HEADGATE_KEY": "hg-canary-9f8e7d6c5b4a",
    "OPENAI_API_KEY": "sk-canary-1a2b3c4d5e6f",
    "DATABASE": "postgres://u:canary-0f9e8d@db/x",
}
FILE = """
providers: {openai: {base_url: 'https://api.openai.com/v1', api_key: '${OPENAI_API_KEY}'}}
models: {'gpt-*': {targets: [{provider: openai}]}}
filters:
  - auth: {keys: [{name: app, key: '${HEADGATE_KEY}'}]}
  - retry
  - use: 'a:B'
    config: {url: '${DATABASE}', list: ['${DATABASE}'], deep: {api_token: canary-literal, n: 3}, mode: fast, key: ''}
routes: [{name: r, filters: {B: {mode: '${DATABASE}'}, retry: off}}]
limits: {body: 1536KiB}
"""


@pytest.fixture
def config() -> GatewayConfig:
    return parse_config(FILE, env=CANARIES)


def test_a_dump_is_json_and_holds_no_secret(config: GatewayConfig) -> None:
    shown = json.dumps(dump(config)) + repr(config) + str(config) + str(config.warnings)
    assert "canary" not in shown


def test_a_dump_holds_every_setting_as_it_would_be_written(config: GatewayConfig) -> None:
    shown = dump(config)
    assert shown["limits"] == {
        "body": "1536KiB",
        "upload": "4GiB",
        "buffered": "512MiB",
        "headers": "64KiB",
        "json_depth": 64,
        "drain": "30s",
        "drain_delay": "0s",
        "memory": None,
        "loop_lag": "1s",
        "unresponsive": "10s",
    }
    assert shown["providers"]["openai"]["api_key"] == "***"
    assert shown["filters"][0]["config"]["keys"][0]["key"] == "***"
    assert shown["filters"][2]["config"]["config"] == {
        "url": "***",
        "list": ["***"],
        "deep": {"api_token": "***", "n": 3},
        "mode": "fast",
        "key": "",
    }
    assert shown["routes"][0]["filters"]["retry"] == "off"
    assert shown.keys().isdisjoint({"warnings", "files", "digest"})
    assert "implicit" not in shown["providers"]["openai"]


def test_the_dump_hides_the_query_of_a_url_which_the_config_keeps() -> None:
    jwt = "{issuer: i, audience: a, jwks_url: 'https://id.example/keys?token=x'}"
    loaded = parse_config(f"filters: [{{auth: {{jwt: {jwt}}}}}]", env={})
    assert dump(loaded)["filters"][0]["config"]["jwt"]["jwks_url"] == "https://id.example/keys?***"
    assert loaded.auth is not None
    assert loaded.auth.jwt is not None
    assert loaded.auth.jwt.jwks_url == "https://id.example/keys?token=x"


def test_the_filter_gets_what_the_dump_hides(config: GatewayConfig) -> None:
    own = config.filters[2].config
    assert getattr(own, "config", {})["url"] == CANARIES["DATABASE"]


def test_the_digest_is_twelve_hex_digits_and_stays_the_same(config: GatewayConfig) -> None:
    assert len(config.digest) == 12
    assert int(config.digest, 16) >= 0
    assert parse_config("# moved\n" + FILE, name="other.yaml", env=CANARIES).digest == config.digest
    assert load_config(env={}).digest == parse_config("version: 1\nworkers: 1", env={"HOME": "/x"}).digest


@pytest.mark.parametrize("name", CANARIES)
def test_the_digest_changes_with_a_secret(config: GatewayConfig, name: str) -> None:
    assert parse_config(FILE, env={**CANARIES, name: CANARIES[name] + "x"}).digest != config.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1536KiB", "1537KiB"),
        ("mode: fast", "mode: slow"),
        ("- retry", "- retry: {on: [reset]}"),
        ("retry: off", "retry: {}"),
        ("'gpt-*'", "'gpt-4*'"),
        ("name: app", "name: web"),
        ("n: 3", "n: 3.5"),
    ],
)
def test_the_digest_changes_with_a_setting(config: GatewayConfig, old: str, new: str) -> None:
    assert old in FILE
    assert parse_config(FILE.replace(old, new), env=CANARIES).digest != config.digest


def test_the_digest_changes_with_the_order_of_providers() -> None:
    text = "providers: {%s: {base_url: 'mock:'}, %s: {base_url: 'mock:'}}"
    assert parse_config(text % ("a", "b"), env={}).digest != parse_config(text % ("b", "a"), env={}).digest
