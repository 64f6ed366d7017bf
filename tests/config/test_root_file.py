"""gateway.yaml in the root: without any key the mock answers on loopback; with keys it is closed and may be public."""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.config import ConfigError, load_config

FILE = Path(__file__).resolve().parents[2] / "gateway.yaml"
KEYS = {"HEADGATE_KEY": "hg-4f3c2b1a09e8d7c6", "OPENAI_API_KEY": "sk-x"}


def test_without_keys_it_boots_open_on_loopback_and_says_so() -> None:
    config = load_config(FILE, env={})
    assert config.listeners.data.address == config.listeners.admin.address == "127.0.0.1"
    assert config.auth_is_open
    assert config.providers["openai"].unconfigured
    assert [(target.provider, target.priority) for target in config.models["*"].targets] == [("openai", 0), ("mock", 1)]
    assert config.providers["mock"].is_mock
    assert config.warnings == (
        "auth: the key 'app' is empty (HEADGATE_KEY) and is dropped",
        "auth is open: every process of this machine may call; set HEADGATE_KEY to close it",
        "providers.openai: OPENAI_API_KEY is empty, so nothing is sent there",
    )
    assert config.files == (FILE,)


def test_with_keys_it_may_be_public_and_has_nothing_to_say() -> None:
    config = load_config(FILE, env={**KEYS, "HEADGATE_ADDRESS": "0.0.0.0"})
    assert config.listeners.data.address == "0.0.0.0"
    assert not config.auth_is_open
    assert not config.providers["openai"].unconfigured
    assert config.warnings == ()


def test_public_without_a_key_it_does_not_boot() -> None:
    with pytest.raises(ConfigError, match="set HEADGATE_KEY") as caught:
        load_config(FILE, env={"HEADGATE_ADDRESS": "0.0.0.0"})
    (problem,) = caught.value.problems
    assert (problem.file, problem.path) == (str(FILE), "listeners.data.address")
    assert problem.line > 1


def test_its_chain_is_auth_and_retry() -> None:
    assert [entry.name for entry in load_config(FILE, env={}).filters] == ["auth", "retry"]
