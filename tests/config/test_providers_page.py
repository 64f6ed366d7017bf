"""docs/providers.md: what it shows is a config, and the defaults it names are those."""

from __future__ import annotations

import re
from pathlib import Path

from headgate.config import parse_config
from headgate.config.providers import Http2Keepalive
from headgate.proxy.upstream.h2_fields import MAX_LIST
from headgate.proxy.upstream.h2_session import ASSUMED_STREAMS, MAX_OVERHEAD, MAX_STREAMS, STREAM_WINDOW

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()


def test_every_piece_of_config_on_the_page_is_a_config() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        parse_config(block, env={})


def test_the_figures_on_the_page_are_those_of_the_code() -> None:
    said = " ".join(PAGE.split())
    times = Http2Keepalive()
    for figure in (
        f"`http2_keepalive.interval` ({times.interval.seconds}s)",
        f"`http2_keepalive.timeout` ({times.timeout.seconds}s)",
        f"{ASSUMED_STREAMS} until it has said so, {MAX_STREAMS} at most",
        f"at {STREAM_WINDOW // 1024} KiB",
        f"{MAX_OVERHEAD} frames in a row",
        f"above {MAX_LIST // 1024} KiB",
    ):
        assert figure in said
