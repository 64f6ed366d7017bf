"""Whatever stands in the file, it is read or refused with its reasons; nothing else comes out."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headgate.config import ConfigError, dump, parse_config

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (
    *("{", "}", "[", "]", ":", ",", "- ", "\n", "  ", "'", '"', "|", "#", "?", "&a", "*", "!", "\\0", "é", "\x00"),
    *("null", "~", "on", "off", "true", "1", "-1", "1.5", ".nan", "{}", "[]", "30s", "1MiB", "mock:"),
    *("${X}", "${EMPTY:-}", "${", "$${", "use", "retry", "auth", "keys", "name", "kind", "config", "filters"),
)
SEEDS = (
    (ROOT / "gateway.yaml").read_text(),
    "filters: [auth, {retry: {name: r, attempts: 2}}, {use: 'a:B', config: {n: [1, {m: '${X}'}]}}]\n"
    "routes: [{name: a, match: {model: 'g-*'}, filters: {r: off, B: {n: 2}}}, {name: b, filters: {r: {attempts: 1}}}]\n"
    "models: {m: {targets: [{provider: p, price: {input: 1, output: 2}}]}}\n"
    "providers: {p: {base_url: 'https://a.example/v1', api_key: '${EMPTY:-}', timeouts: {idle: 5s}}}\n",
)
PIECES = [re.findall(r"\w+|\W", seed) for seed in SEEDS]
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from((None, *TOKENS)), st.booleans()), max_size=6)


@given(st.sampled_from(PIECES), EDITS, st.sampled_from(("", "1", "a b", "sk-Zk3v9QmT2xLw7RbN", "{a: 1}", "a\nb")))
def test_a_mutated_file_is_read_or_refused(
    pieces: list[str], edits: list[tuple[int, str | None, bool]], x: str
) -> None:
    text = list(pieces)
    for place, token, insert in edits:
        at = place % len(text)
        text[at : at if insert else at + 1] = [] if token is None else [token]
    assert outcome("".join(text), {"X": x, "EMPTY": ""}) in {"read", "refused"}


def outcome(text: str, env: dict[str, str]) -> str:
    try:
        config = parse_config(text, env=env)
    except ConfigError as error:
        lines = str(error).splitlines()
        return "refused" if 0 < len(lines) == len(error.problems) else f"no problem a line: {lines}"
    return "read" if dump(config)["version"] == config.version and len(config.digest) == 12 else "half read"
