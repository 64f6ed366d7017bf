"""run: a filter hears of an exchange's end only if it was asked about its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import config_for, running_gateway
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

COUNTING = """
from headgate.proxy.filter import Filter

class Counting(Filter):
    def __init__(self, **_):
        self.begun = self.ended = 0

    def on_request(self, ex):
        self.begun += 1

    def on_done(self, ex):
        self.ended += 1
"""


async def test_a_request_refused_between_route_and_rest_meets_no_filter_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting_filter.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    good = json_response(chat_completion())
    async with FakeUpstream(good) as one, FakeUpstream(good) as two:
        config = config_for(one, two, auth=False)
        config["filters"].append({"use": "counting_filter:Counting", "name": "mine"})
        async with running_gateway(config) as gateway:
            unknown = await gateway.send("GET", "/v1/files/file-nobody-made", b"")
            assert unknown.error["code"] == "unknown_issuer"
            assert gateway.server.snapshot().counters.filters["mine"] == {"begun": 0, "ended": 0}
            assert (await gateway.post(key=None)).status == 200
            assert gateway.server.snapshot().counters.filters["mine"] == {"begun": 1, "ended": 1}
