"""load: from text to finished values; what is left out has its default, what is open is said."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from headgate.config import (
    AuthConfig,
    ConfigError,
    FilterEntry,
    GatewayConfig,
    Key,
    Listener,
    Listeners,
    Price,
    RetryConfig,
    Secret,
    UseConfig,
    is_loopback,
    load_config,
    parse_config,
)

KEY = "sk-Zk3v9QmT2xLw7RbN"


def problems(text: str, **env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, env=env)
    return tuple(map(str, caught.value.problems))


def test_without_a_file_everything_has_its_default() -> None:
    config = load_config(env={})
    assert config == parse_config("", env={}) == parse_config("routing: {mode: direct}", env={})
    assert (config.listeners.data.address, config.listeners.data.port) == ("127.0.0.1", 8070)
    assert (config.listeners.admin.address, config.listeners.admin.port) == ("127.0.0.1", 9901)
    assert (config.version, config.workers, config.routing.mode) == (1, 1, "direct")
    limits = config.limits
    assert (limits.body, limits.buffered, limits.headers, limits.json_depth) == (32 << 20, 512 << 20, 64 << 10, 64)
    assert limits.drain == timedelta(seconds=30)
    assert (config.models, config.routes, config.filters, config.files) == ({}, (), (), ())
    events = config.events
    assert (events.sink, events.path, events.retention) == ("sqlite", Path("headgate-events.db"), timedelta(days=30))
    assert (events.max_size, events.spool.max_size, events.spool.on_full) == (1 << 30, 256 << 20, "drop")
    assert events.spool.path == Path("headgate-spool")
    assert config.prices.file is None


def test_a_provider_and_retry_have_their_defaults() -> None:
    config = parse_config("providers: {p: {base_url: 'https://a.example/v1/'}}\nfilters: [retry]", env={})
    provider = config.providers["p"]
    assert (provider.dialect, provider.base_url, provider.api_key) == ("openai", "https://a.example/v1", None)
    assert (provider.direct, provider.price_as, provider.implicit, provider.is_mock) == (False, None, False, False)
    timeouts = provider.timeouts
    assert (timeouts.connect, timeouts.first_token) == (timedelta(seconds=5), timedelta(seconds=300))
    assert (timeouts.idle, timeouts.total) == (timedelta(seconds=120), timedelta(seconds=600))
    assert (provider.limits.connections, provider.limits.pending) == (1024, 1024)
    (entry,) = config.filters
    assert (entry.kind, entry.name) == ("retry", "retry")
    assert isinstance(entry.config, RetryConfig)
    assert (entry.config.attempts, sorted(entry.config.on)) == (3, ["429", "5xx", "connect-failure", "reset"])
    assert (entry.config.budget.percent, entry.config.budget.min_per_second) == (20, 10)


def test_a_key_with_nothing_behind_it_has_its_default() -> None:
    assert parse_config("limits:\nworkers: ~\nfilters:\nlisteners: {data: {port: }}", env={}) == load_config(env={})


def test_an_expansion_to_nothing_is_a_key_with_nothing_behind_it() -> None:
    config = parse_config("workers: ${N:-}\nprices: {file: '${P:-}'}", env={})
    assert (config.workers, config.prices.file) == (1, None)


def test_values_are_frozen_all_the_way_down() -> None:
    config = parse_config("providers: {p: {base_url: 'mock:'}}", env={})
    with pytest.raises(ValidationError):
        config.workers = 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        config.providers["q"] = config.providers["p"]  # type: ignore[index]


# Expansion


def test_an_expansion_is_typed_by_the_field_it_stands_in() -> None:
    config = parse_config(
        "listeners: {data: {port: '${PORT}'}}\nworkers: ${N}\nlimits: {drain: '${D}', body: '${B}'}\n"
        "providers: {p: {base_url: 'https://${HOST}/v1', direct: '${YES}', price_as: '${N}'}}\n",
        env={"PORT": "8443", "N": "3", "D": "5m", "B": "1048576", "HOST": "a.example", "YES": "true"},
    )
    assert (config.listeners.data.port, config.workers) == (8443, 3)
    assert (config.limits.drain, config.limits.body) == (timedelta(minutes=5), 1 << 20)
    provider = config.providers["p"]
    assert (provider.base_url, provider.direct, provider.price_as) == ("https://a.example/v1", True, "3")


def test_a_scalar_is_text_where_text_is_wanted() -> None:
    config = parse_config(
        "providers: {1: {base_url: 'mock:'}}\nmodels: {4.10: {targets: [{provider: 1, model: 0123}]}}\n"
        "filters: [{retry: {on: [429]}}]",
        env={},
    )
    assert config.models["4.10"].targets[0].model == "0123"
    assert config.models["4.10"].targets[0].provider == "1"
    assert config.filters[0].config == RetryConfig(on=frozenset({"429"}))


def test_a_secret_file_is_read_and_remembered(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "prices.yaml").write_text("")
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"providers: {{p: {{base_url: 'mock:', api_key: '${{file:{tmp_path}/key}}'}}}}\n"
        f"prices: {{file: {tmp_path}/prices.yaml}}\n"
    )
    config = load_config(file, env={})
    assert config.providers["p"].api_key == Secret(KEY)
    assert config.files == (file, tmp_path / "prices.yaml", tmp_path / "key")


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADGATE_TEST_WORKERS", "7")
    (tmp_path / "g.yaml").write_text("workers: ${HEADGATE_TEST_WORKERS}")
    assert load_config(tmp_path / "g.yaml").workers == 7
    assert load_config(str(tmp_path / "g.yaml")).workers == 7


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xe9")
    for name, message in {
        "none": "no such file or directory",
        "": "not a regular file",
        "latin": "not UTF-8 at byte 2",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name, env={})
        (problem,) = caught.value.problems
        assert (problem.file, problem.line, problem.message) == (str(tmp_path / name), 0, message)


# Providers from the environment


def test_without_providers_and_keys_the_mock_answers() -> None:
    config = load_config(env={"OPENAI_API_KEY": ""})
    assert list(config.providers) == ["mock"]
    assert config.providers["mock"].is_mock
    assert config.providers["mock"].implicit


def test_without_providers_those_with_a_key_are_taken_openai_first() -> None:
    config = load_config(env={"GROQ_API_KEY": "gsk-1", "OPENAI_API_KEY": "sk-1"})
    assert {name: provider.base_url for name, provider in config.providers.items()} == {
        "openai": "https://api.openai.com/v1",
        "groq": "https://api.groq.com/openai/v1",
    }
    assert next(iter(config.providers)) == "openai"
    key = config.providers["openai"].api_key
    assert key is not None
    assert (key.reveal(), key.origin) == ("sk-1", "OPENAI_API_KEY")


def test_keys_of_dialects_that_are_not_there_yet_are_warned_of() -> None:
    config = load_config(env={"ANTHROPIC_API_KEY": "a", "GEMINI_API_KEY": "g"})
    assert list(config.providers) == ["mock"]
    assert config.warnings[:2] == (
        "ANTHROPIC_API_KEY is set, but this version does not have the anthropic dialect",
        "GEMINI_API_KEY is set, but this version does not have the gemini dialect",
    )


def test_written_providers_are_all_there_are() -> None:
    config = parse_config("providers: {p: {base_url: 'mock:'}}", env={"OPENAI_API_KEY": "k", "GEMINI_API_KEY": "g"})
    assert list(config.providers) == ["p"]
    assert not [text for text in config.warnings if "GEMINI" in text]


def test_a_key_of_the_environment_that_no_header_can_carry_is_named() -> None:
    assert problems("", OPENAI_API_KEY="sk 1") == (
        "gateway.yaml: OPENAI_API_KEY holds a space, a control or a non-ASCII character",
    )


def test_a_key_that_expands_to_nothing_leaves_its_provider_unconfigured() -> None:
    config = parse_config(
        "providers: {p: {base_url: 'https://a.example', api_key: '${P_KEY:-}'}, q: {base_url: 'mock:', api_key: ''}}",
        env={},
    )
    key = config.providers["p"].api_key
    assert config.providers["p"].unconfigured
    assert key is not None
    assert key.origin == "P_KEY"
    assert "providers.p: P_KEY is empty, so nothing is sent there" in config.warnings
    assert "providers.q: api_key is empty, so nothing is sent there" in config.warnings


def test_a_key_over_plain_http_is_warned_of_but_not_on_this_machine() -> None:
    text = "providers: {p: {base_url: 'http://%s/v1', api_key: k}}"
    warned = "providers.p: its api_key travels unencrypted; use https"
    assert warned in parse_config(text % "vllm:8000", env={}).warnings
    assert warned not in parse_config(text % "127.0.0.1:8000", env={}).warnings
    assert warned not in parse_config(text % "[::1]:8000", env={}).warnings


# Who may call

AUTH = "filters: [{auth: {keys: [{name: app, key: '${HEADGATE_KEY:-}'}]}}]\n"


def test_a_key_that_expands_to_nothing_is_dropped_with_a_warning() -> None:
    config = parse_config(AUTH, env={})
    assert config.auth == AuthConfig()
    assert config.auth_is_open
    assert config.warnings[0] == "auth: the key 'app' is empty (HEADGATE_KEY) and is dropped"


def test_a_key_closes_auth() -> None:
    config = parse_config(AUTH + "listeners: {data: {address: 0.0.0.0}}", env={"HEADGATE_KEY": KEY})
    assert not config.auth_is_open
    assert config.auth is not None
    assert [(key.name, key.key.reveal()) for key in config.auth.keys] == [("app", KEY)]
    assert config.warnings == ()


def test_open_auth_is_warned_of() -> None:
    wanted = "auth is open: every process of this machine may call; set HEADGATE_KEY to close it"
    assert wanted in parse_config(AUTH, env={}).warnings


WITH_A_FILTER = 'filters: [auth: {keys: [{name: app, key: "${HEADGATE_KEY:-}"}]}]'


def test_open_auth_without_a_filter_is_not_closed_by_a_variable_alone() -> None:
    wanted = f"auth is open: every process of this machine may call; to close it, write {WITH_A_FILTER} and set"
    (warning,) = load_config(env={}).warnings
    assert warning == f"{wanted} HEADGATE_KEY"
    assert load_config(env={"HEADGATE_KEY": KEY}).warnings != ()
    assert parse_config(WITH_A_FILTER, env={"HEADGATE_KEY": KEY}).warnings == ()


def test_a_headgate_key_that_nothing_reads_is_warned_of() -> None:
    wanted = "auth is open: every process of this machine may call; HEADGATE_KEY is set, but no auth filter reads it"
    assert f"{wanted}: write {WITH_A_FILTER}" in load_config(env={"HEADGATE_KEY": KEY}).warnings


@pytest.mark.parametrize("address", ["0.0.0.0", "'::'", "10.0.0.5", "example.org", "'::ffff:10.0.0.5'", "fe80::1"])
@pytest.mark.parametrize("listener", ["data", "admin"])
def test_a_public_address_without_a_key_does_not_boot(listener: str, address: str) -> None:
    for text in (AUTH, ""):
        (problem,) = problems(f"{text}listeners: {{{listener}: {{address: {address}}}}}")
        assert "set HEADGATE_KEY" in problem
        assert f"listeners.{listener}.address" in problem


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_loopback_needs_no_key(address: str) -> None:
    assert is_loopback(address)
    assert parse_config(f"listeners: {{data: {{address: '{address}'}}}}", env={}).auth_is_open


def test_a_route_for_a_key_that_nobody_has_is_warned_of() -> None:
    text = AUTH + "routes: [{name: n, match: {key: nightly}}, {name: a, match: {key: app}}]"
    warned = [text for text in parse_config(text, env={}).warnings if "route" in text]
    assert warned == ["the route 'n' never matches: no key is named 'nightly'"]


# Filters and routes


def test_a_filter_is_written_in_three_ways() -> None:
    config = parse_config(
        "filters:\n"
        "  - auth\n"
        "  - retry: {name: twice, attempts: 2}\n"
        "  - retry\n"
        "  - use: 'my.pkg:Filter'\n"
        "  - use: 'my.pkg:Filter'\n"
        "    name: second\n"
        "    config: {limit: 3, mode: off, when: 2026-01-01, nested: {list: [1, '2', null]}}\n",
        env={},
    )
    assert [(entry.kind, entry.name) for entry in config.filters] == [
        ("auth", "auth"),
        ("retry", "twice"),
        ("retry", "retry"),
        ("use", "Filter"),
        ("use", "second"),
    ]
    last = config.filters[4].config
    assert isinstance(last, UseConfig)
    assert (last.target, last.name) == ("my.pkg:Filter", "second")
    assert last.config == {
        "limit": 3,
        "mode": "off",
        "when": "2026-01-01",
        "nested": {"list": [1, "2", None]},
    }


def test_a_route_lays_its_settings_over_those_of_the_chain() -> None:
    config = parse_config(
        "filters:\n"
        "  - retry: {attempts: 5, budget: {percent: 1}}\n"
        "  - use: 'a:B'\n"
        "    config: {x: 1, y: 2}\n"
        "routes:\n"
        "  - {name: r, filters: {retry: {attempts: 2}, B: {y: 3}}}\n"
        "  - {name: s, filters: {retry: off}}\n",
        env={},
    )
    retry, own = config.routes[0].filters["retry"], config.routes[0].filters["B"]
    assert isinstance(retry, RetryConfig)
    assert (retry.attempts, retry.budget.percent) == (2, 1)
    assert isinstance(own, UseConfig)
    assert own.config == {"x": 1, "y": 3}
    assert config.routes[1].filters == {"retry": "off"}


def test_a_route_may_give_settings_to_a_filter_that_has_none() -> None:
    config = parse_config("filters: [{use: 'a:B'}]\nroutes: [{name: r, filters: {B: {y: 3}}}]", env={})
    own = config.routes[0].filters["B"]
    assert isinstance(own, UseConfig)
    assert own.config == {"y": 3}


def test_a_mistake_in_the_chain_is_reported_once_although_routes_repeat_it() -> None:
    text = "filters: [{retry: {attempts: 99, on: ['${NOPE}']}}]\nroutes: [{name: r, filters: {retry: {}}}]"
    assert len(problems(text)) == 2


def test_models_targets_and_prices_are_read() -> None:
    config = parse_config(
        "providers: {p: {base_url: 'mock:'}}\n"
        "models: {'gpt-*': {targets: [{provider: p, priority: 2, price: {input: 1, output: 2.5, cached_input: 0}}]}}",
        env={},
    )
    (target,) = config.models["gpt-*"].targets
    assert (target.provider, target.model, target.priority) == ("p", None, 2)
    assert target.price == Price(input=1, output=2.5, cached_input=0)


def test_a_catch_all_route_is_read() -> None:
    text = "providers: {p: {base_url: 'mock:'}}\nroutes: [{name: rest, match: {path: '/v1/**'}, provider: p}]"
    (route,) = parse_config(text, env={}).routes
    assert (route.match.path, route.provider) == ("/v1/**", "p")


# Values made in code


def test_the_same_values_can_be_made_in_code() -> None:
    config = GatewayConfig(
        listeners=Listeners(data=Listener(port=0)),
        filters=(
            FilterEntry(
                kind="auth",
                name="auth",
                config=AuthConfig(keys=(Key(name="a", key=Secret(KEY)), Key(name="b", key=Secret("")))),
            ),
            FilterEntry(kind="retry", name="retry", config=RetryConfig(attempts=2)),
        ),
    )
    assert config.listeners.admin.port == 9901
    assert not config.auth_is_open
    assert config.auth is not None
    assert [key.name for key in config.auth.keys] == ["a"]


def test_values_made_in_code_are_checked_as_well() -> None:
    with pytest.raises(ValidationError):
        Listener(port=-1)
    with pytest.raises(ValidationError):
        FilterEntry.model_validate({"kind": "retry", "name": "r", "config": {"attempts": 0}})
    with pytest.raises(ValidationError):
        FilterEntry.model_validate("retry")


def test_expansions_and_routes_that_repeat_too_much_are_refused() -> None:
    long = "filters: [{use: 'a:B', config: {a: [" + "'${A}'," * 20 + "]}}]"
    (problem,) = problems(long, A="x" * 100_000)
    assert "the expansions of this file are larger than 1 MiB" in problem
    routes = ", ".join(f"{{name: r{number}, filters: {{B: {{}}}}}}" for number in range(30))
    (problem,) = problems(f"filters: [{{use: 'a:B', config: {{a: [{'1,' * 1000}]}}}}]\nroutes: [{routes}]")
    assert "the routes repeat more than 20000 values of the chain" in problem


def test_a_chain_has_at_most_64_filters() -> None:
    names = ", ".join(f"{{retry: {{name: r{number}}}}}" for number in range(65))
    assert problems(f"filters: [{names}]") == ("gateway.yaml:1:10: filters: must have at most 64 items",)
