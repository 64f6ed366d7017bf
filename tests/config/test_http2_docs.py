"""docs/upstreams.md: the figures it names for HTTP/2 are those of the code."""

from __future__ import annotations

from pathlib import Path

from headgate.config.providers import Http2Keepalive
from headgate.proxy.upstream.h2_connection import RESTED_SECONDS
from headgate.proxy.upstream.h2_fields import MAX_LIST
from headgate.proxy.upstream.h2_session import ASSUMED_STREAMS, MAX_OVERHEAD, MAX_STREAMS, STREAM_WINDOW

PAGE = (Path(__file__).parents[2] / "docs" / "upstreams.md").read_text()


def test_the_figures_on_the_page_are_those_of_the_code() -> None:
    said = " ".join(PAGE.split())
    times = Http2Keepalive()
    for figure in (
        f"`http2_keepalive.interval` ({times.interval.seconds}s)",
        f"`http2_keepalive.timeout` ({times.timeout.seconds}s)",
        f"rested for {RESTED_SECONDS:.0f} seconds",
        f"{ASSUMED_STREAMS} until it has said so, {MAX_STREAMS} at most",
        f"at {STREAM_WINDOW // 1024} KiB",
        f"{MAX_OVERHEAD} frames in a row",
        f"above {MAX_LIST // 1024} KiB",
    ):
        assert figure in said
