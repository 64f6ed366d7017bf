"""Recorded answers to forms with audio come down byte for byte, and the form goes up as it was sent."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests_support.answers import json_response
from tests_support.gateway import gateway_over
from tests_support.traffic import RECORDED

pytestmark = pytest.mark.shared_data

BOUNDARY = "5f1d"
FIELD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'
FORM = (
    f'{FIELD}file"; filename="a.wav"\r\n\r\n'.encode()
    + b"RIFF" * 50_000
    + f'\r\n{FIELD}model"\r\n\r\nwhisper-1\r\n--{BOUNDARY}--\r\n'.encode()
)


def rows() -> list[Any]:
    """Every recorded audio exchange; none where the data is not there."""
    if not RECORDED.is_file():
        return []
    with RECORDED.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines if "/v1/audio/trans" in line]
    return [row for row in found if urlsplit((row["request"] or {}).get("url", "")).path.startswith("/v1/audio/")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row["id"]).replace("/", "."))
async def test_a_recorded_transcription_is_unchanged(row: Any) -> None:
    recorded = row["response"]["body"].encode()
    fields = [("content-type", f"multipart/form-data; boundary={BOUNDARY}")]
    script = json_response(recorded, row["response"]["status"])
    async with gateway_over(script) as (gateway, upstream):
        answer = await gateway.send("POST", urlsplit(row["request"]["url"]).path, FORM, fields)
        [record] = await gateway.rows(1)
    assert (answer.status, answer.body) == (row["response"]["status"], recorded)
    assert upstream.requests[0].body == FORM
    assert record.model == "whisper-1"
