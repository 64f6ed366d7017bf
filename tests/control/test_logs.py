"""logs: one line per event whatever is in it, bounded, without keys, and never in the way of who wrote it."""

from __future__ import annotations

import io
import json
import logging
import random
import sys
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.config import ConfigError, parse_config
from headgate.control import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOG = structlog.get_logger("headgate")
SECRETS = {
    "client": "hg-client-canary-7Qm2xV9sLd4TzKpR",
    "provider": "sk-provider-canary-3Wn8cB6yHg1JfXeU",
    "bearer": "Bearer canary.eyJhbGciOiJIUzI1NiJ9.Kx9",
}
MOST = 6 * (logs.FIELD_CHARACTERS + 100)
"""Bytes of one field in JSON: each character may become \\uXXXX."""


class Written:
    """What has come out on stderr."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    @property
    def text(self) -> str:
        """All of it so far."""
        self._text += self._capture.readouterr().err
        return self._text


@contextmanager
def configured(*, json_lines: bool) -> Iterator[None]:
    """Logging as in a process of its own; afterwards all is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        logs.configure("debug", json_lines=json_lines)
        yield
    finally:
        root.handlers, root.level = handlers, level
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What is logged, as JSON lines."""
    with configured(json_lines=True):
        yield Written(capsys)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What is logged, as on a terminal."""
    with configured(json_lines=False):
        yield Written(capsys)


def events(text: str) -> list[dict[str, Any]]:
    """Every line, parsed as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.split("\n")[:-1]]


def test_an_event_is_one_line_that_begins_with_when_how_bad_and_what(stderr: Written) -> None:
    LOG.warning("worker_died", worker="0", code=-9, was_ready=True, lag=0.5, reason=None)
    [event] = events(stderr.text)
    assert list(event)[:3] == ["timestamp", "level", "event"]
    rest = {"worker": "0", "code": -9, "was_ready": True, "lag": 0.5, "reason": None}
    assert event.items() >= {"level": "warning", "event": "worker_died", **rest}.items()


def test_below_the_level_nothing_is_written(stderr: Written) -> None:
    logs.configure("warning", json_lines=True)
    LOG.info("quiet")
    assert stderr.text == ""


BLOCKS: list[Callable[[random.Random], str]] = [
    lambda rng: "\r\n" * rng.randrange(1, 5),
    lambda rng: "\x1b[2J\x1b]0;title\x07",
    lambda rng: "\u2028\u2029\x85\x0b\x0c",
    lambda rng: chr(rng.randrange(0xD800, 0xE000)),
    lambda rng: chr(rng.randrange(0x20)) * 3,
    lambda rng: '"}\n{"event":"forged","level":"error"}',
    lambda rng: "\\" * rng.randrange(1, 9),
    lambda rng: "\x00",
    lambda rng: chr(rng.randrange(0x10000, 0x110000)),
    lambda rng: "x" * rng.choice([1, 100, 5000]),
]


def hostile_payloads() -> list[str]:
    """A thousand, one of them a megabyte."""
    rng = random.Random(17)
    made = ["".join(rng.choice(BLOCKS)(rng) for _ in range(rng.randrange(1, 9))) for _ in range(999)]
    return [*made, "\n" * (1 << 20)]


def test_a_thousand_hostile_payloads_are_a_thousand_lines(stderr: Written) -> None:
    """Faults A17."""
    payloads = hostile_payloads()
    for payload in payloads:
        LOG.error(payload, field=payload)
    found = events(stderr.text)
    assert len(found) == len(payloads)
    for event, payload, line in zip(found, payloads, stderr.text.split("\n")[:-1], strict=True):
        assert event["field"][:100] == json.loads(json.dumps(payload))[:100]  # which joins surrogates
        assert len(event["field"]) <= logs.FIELD_CHARACTERS + 1
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= 2 * MOST + 200


def test_a_thousand_hostile_payloads_cannot_move_a_terminals_cursor(terminal: Written) -> None:
    payloads = hostile_payloads()
    for payload in payloads:
        LOG.error("hostile", field=payload)
    lines = terminal.text.split("\n")
    assert len(lines) == len(payloads) + 1
    assert not any(set(line) & {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028)} for line in lines)


class Unshowable:
    """Its repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(
            st.text(),
            st.integers(),
            st.floats(),
            st.binary(),
            st.none(),
            st.lists(st.integers()),
            st.just(10**5000),
            st.builds(Unshowable),
            st.just({"deep": {"er": "\n" * 3000}}),
        ),
    )
)
def test_any_values_make_one_bounded_line_of_strict_json(fields: dict[str, Any]) -> None:
    with configured(json_lines=True), redirect_stderr(io.StringIO()) as buffer:
        LOG.info("any", **fields)
    [event] = events(buffer.getvalue())
    assert event.keys() - {"timestamp", "level", "event"} == set(fields)
    assert len(buffer.getvalue()) <= 3 * MOST + 200


def broken(secret: str) -> None:
    """Raise with a secret in the message, from a cause that has it, too."""
    try:
        raise KeyError(f"no such key: {secret}")
    except KeyError as cause:
        raise RuntimeError(f"authorization: {secret}") from cause


def test_a_traceback_is_one_line_and_keeps_its_end(stderr: Written) -> None:
    try:
        broken("x" * 10_000 + " at the very end")
    except RuntimeError as error:
        LOG.error("internal_error", exc_info=error)
    [event] = events(stderr.text)
    assert event["exception"].endswith("at the very end")
    assert len(event["exception"]) <= logs.FIELD_CHARACTERS + 1


def test_on_a_terminal_a_traceback_is_readable(terminal: Written) -> None:
    try:
        broken("\x1b[2J")
    except RuntimeError as error:
        LOG.error("internal_error", exc_info=error)
    text = terminal.text
    assert "\nRuntimeError: authorization: \\x1b[2J" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_key_is_logged_wherever_it_stands(stderr: Written, secret: str) -> None:
    """Faults G8."""
    padding = "x" * (logs.FIELD_CHARACTERS - 12)
    LOG.error(f"refused {secret}", detail=f"header {secret}", nested={"authorization": [secret]}, raw=secret.encode())
    LOG.error("at the edge of the bound", detail=f"{padding} {secret}")
    logging.getLogger("other").warning("said %s", secret)
    try:
        broken(secret)
    except RuntimeError as error:
        LOG.error("internal_error", exc_info=error)
    assert len(events(stderr.text)) == 4
    word = secret.removeprefix("Bearer ")
    assert not any(word[at : at + 8] in stderr.text for at in range(3, len(word) - 8))


def test_a_config_is_logged_without_its_secrets(stderr: Written) -> None:
    keys = {"A": SECRETS["client"], "B": SECRETS["provider"]}
    text = (
        'providers: {up: {base_url: "https://x/v1", api_key: "${B}"}}\n'
        'filters: [{auth: {keys: [{name: app, key: "${A}"}]}}]\n'
    )
    config = parse_config(text, env=keys)
    LOG.info("config", config=config, providers=config.providers, auth=config.auth)
    with pytest.raises(ConfigError) as refused:
        parse_config(text + 'workers: "${A}"', env=keys)
    LOG.error("refused", problem=str(refused.value), exc_info=refused.value)
    assert len(events(stderr.text)) == 2
    assert not any(secret[3:] in stderr.text for secret in keys.values())


def test_what_comes_through_logging_is_one_line_too(stderr: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()  # without the handlers of pytest, which fail where arguments do not fit
    monkeypatch.setattr(root, "handlers", [one for one in root.handlers if type(one).__module__ == logs.__name__])
    logging.getLogger("asyncio").error("Task exception was never retrieved\n%s", "future: …")
    logging.getLogger("other").warning("does not fit: %d %d", "x")
    logging.getLogger("other").log(35, "a level of its own")
    logging.getLogger("other").info("quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    found = events(stderr.text)
    assert [event["level"] for event in found] == ["error", "warning", "warning", "warning"]
    assert [event["logger"] for event in found] == ["asyncio", "other", "other", "py.warnings"]
    assert found[0]["message"].startswith("Task exception was never retrieved\n")
    assert "that do not fit" in found[1]["message"]


class FullDisk(io.StringIO):
    """A file that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("file", [FullDisk(), None], ids=["full disk", "closed"])
def test_a_line_that_cannot_be_written_is_counted_and_disturbs_nobody(
    stderr: Written, monkeypatch: pytest.MonkeyPatch, file: io.StringIO | None
) -> None:
    """Faults R8."""
    if file is None:
        file = io.StringIO()
        file.close()
    before = logs.lines.lost
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        LOG.error("lost")
        logging.getLogger("other").error("lost, too")
    LOG.error("written")
    assert logs.lines.lost == before + 2
    assert [event["event"] for event in events(stderr.text)] == ["written"]
