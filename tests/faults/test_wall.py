"""Every fault of `headgate mock`, streamed and not, alone and with a healthy provider behind: what the client sees.

The invariants are held by tests_support.wall; here stands what each fault must come to. One pass with everything at
once belongs to every run; twenty at once of each fault, one fault after the other, are marked slow.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.schedule import Schedule
from tests_support.traffic import error_events, has_done
from tests_support.wall import HEALTHY, RESTING, Told, Wall, wall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPEATS = 20

# What a fault comes to for a plain answer and for a stream, when nobody else can be asked:
#   whole  the good answer, every byte        same  what the provider said, as it said it
#   bad    502 of ours                        late  504 of ours                 key  502 of ours about our key
#   cut    as far as it came, then one error event                        closed  the same in the middle of an event
#   error  200 with the provider's own error in it                        a number: the provider's refusal, as it is
EXPECTED = {
    "accept-close": "bad bad",
    "accept-reset": "bad bad",
    "accept-stall": "late late",
    "deaf": "late late",
    "close-before-head": "bad bad",
    "reset-before-head": "bad bad",
    "close-in-head": "bad bad",
    "reset-in-head": "bad bad",
    "close-in-body": "bad cut",
    "reset-in-body": "bad cut",
    "drip-head": "late late",
    "garbage": "bad bad",
    "other-protocol": "bad bad",
    "http2-frames": "bad bad",
    "no-status": "bad bad",
    "status-words": "bad bad",
    "interim": "whole whole",
    "interim-flood": "bad bad",
    "switch-protocols": "bad bad",
    "big-field": "bad bad",
    "many-fields": "bad bad",
    "bare-cr": "bad bad",
    "nul-in-field": "bad bad",
    "folded-field": "bad bad",
    "space-in-name": "bad bad",
    "no-colon": "bad bad",
    "length-too-long": "bad whole",  # [DONE] has come: nothing is missing
    "length-too-short": "bad cut",
    "two-lengths": "bad bad",
    "negative-length": "bad bad",
    "length-and-chunks": "bad bad",
    "coded-twice": "bad bad",
    "bad-chunk-size": "bad cut",
    "negative-chunk-size": "bad cut",
    "endless-chunk-size": "bad cut",
    "huge-chunk-size": "bad cut",
    "chunk-too-long": "bad cut",
    "no-last-chunk": "bad whole",
    "chunk-extension": "bad cut",
    "trailers": "whole whole",
    "trailer-flood": "bad whole",
    "bytes-after-end": "whole whole",
    "second-answer": "whole whole",
    "until-close": "whole whole",
    "http-1.0": "whole whole",
    "empty-answer": "bad bad",
    "no-content": "same same",
    "400": "400 400",
    "401": "key key",
    "403": "key key",
    "404": "404 404",
    "408": "408 408",
    "429": "429 429",
    "429-date": "429 429",
    "429-forever": "429 429",
    "429-garbage": "429 429",
    "429-silent": "429 429",
    "500": "500 500",
    "502-html": "502 502",
    "503": "503 503",
    "529": "529 529",
    "redirect": "302 302",
    "error-in-200": "error error",
    "not-json": "bad bad",
    "half-body": "bad cut",
    "html": "same same",
    "deep-json": "same same",
    "not-utf8": "same same",
    "wrong-charset": "whole whole",
    "huge-json": "same same",
    "gzip": "same same",
    "gzip-bomb": "same same",
    "no-content-type": "whole whole",
    "other-kind": "same same",
    "stall-before-head": "late late",
    "stall-after-head": "late late",
    "stall-in-body": "late cut",
    "stall-before-end": "late whole",
    "late-head": "whole late",
    "late-reset": "bad late",
    "late-body": "whole late",
    "pause-in-body": "whole cut",
    "drip": "late late",
    "slow": "whole whole",
    "slow-then-fast": "whole whole",
    "no-done": "whole same",
    "no-finish": "whole cut",
    "only-done": "whole same",
    "empty-stream": "whole bad",
    "done-twice": "whole whole",
    "events-after-done": "whole whole",
    "finish-then-close": "whole cut",
    "finish-then-reset": "whole cut",
    "close-in-event": "whole cut",
    "reset-in-event": "whole cut",
    "stall-in-event": "whole cut",
    "end-in-event": "whole cut",
    "error-event": "whole error",
    "error-first": "whole error",
    "error-then-done": "whole error",
    "error-then-more": "whole error",
    "error-then-stall": "whole error",
    "bad-event": "whole same",
    "bad-utf8": "whole same",
    "nul-in-event": "whole same",
    "big-event": "whole same",
    "big-event-cut": "whole closed",
    "split-bytes": "whole whole",
    "split-rune": "whole same",
    "one-segment": "whole whole",
    "crlf": "whole same",
    "mixed-line-ends": "whole same",
    "no-space": "whole same",
    "bom": "whole same",
    "comments": "whole same",
    "ids": "whole same",
    "pings-only": "whole cut",
    "endless": "whole cut",
}
AT_ACCEPT = [fault.name for fault in FAULTS.values() if fault.at_accept]
MADE_GOOD = {"bad", "key", "429", "500", "502", "503", "529"}
"""What another provider makes good: nothing has gone down yet, and `retry` names it."""
ALSO_MADE_GOOD = {("error-in-200", False), ("error-in-200", True), ("error-first", True)}


def expected(fault: str, stream: bool, *, second: bool) -> str:
    """What it must come to."""
    end = EXPECTED[fault].split()[stream]
    return "whole" if second and (end in MADE_GOOD or (fault, stream) in ALSO_MADE_GOOD) else end


def check(told: Told, end: str, *, second: bool) -> None:
    """Hold an exchange against its end; the wall has held the invariants."""
    answer, row = told.answer, told.row
    assert row is not None
    error = answer.error["code"] if end in ("bad", "late", "key") else None
    seen = (end, answer.status, row.outcome, answer.whole, error)
    if told.fault in RESTING and row.attempts == (1 if second else 0):  # another met it before: the key rests
        assert (row.outcome, answer.status) in ([("ok", 200)] if second else [("refused", 429), ("failed", 502)]), told
        return
    if end in ("whole", "same"):
        assert seen[2:4] == ("ok", True), told
        assert answer.status == (204 if told.fault == "no-content" else 200), told
        assert told.received == (told.good if end == "whole" else told.said), told
    elif end in ("bad", "late", "key"):
        status, code = {
            "bad": (502, "upstream_error"),
            "late": (504, "upstream_timeout"),
            "key": (502, "upstream_auth_failed"),
        }[end]
        assert seen == (end, status, "failed", True, code), told
        assert set(answer.error) >= {"message", "type", "param", "code"}
    elif end in ("cut", "closed"):
        assert seen[1:4] == (200, "truncated", end == "cut"), told
        assert len(error_events(answer.body)) == (end == "cut"), told
        assert has_done(answer.body) == 0, told
    elif end == "error":
        assert seen[1:4] == (200, "upstream_error", True), told
        assert b"The server had an error." in answer.body, told
    else:
        assert answer.status == row.status == int(end), told
        assert row.outcome == ("ok" if end == "302" else "upstream_error"), told
        assert answer.body == told.said, told
    if not second:
        return
    assert (row.attempts > 1) == (expected(told.fault, told.stream, second=False) != end), told


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "with-another"])
async def held(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Wall, bool]]:
    async with wall(second=request.param) as one:
        yield one, request.param


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One loop for the file, because the gateway lives as long."""
    return ("asyncio", {"use_uvloop": True})


def test_what_each_fault_must_come_to_is_written_down() -> None:
    assert list(EXPECTED) == list(FAULTS)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_all_faults_at_once_keep_every_invariant(held: tuple[Wall, bool], stream: bool) -> None:
    one, second = held
    asked = await asyncio.gather(*(one.ask(fault, stream=stream) for fault in FAULTS))
    await one.settled()
    for told in asked:
        check(told, expected(told.fault, stream, second=second), second=second)
    after = await one.ask(HEALTHY, stream=stream)
    await one.settled()
    check(after, "whole", second=False)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_twenty_times_keeps_every_invariant(held: tuple[Wall, bool], fault: str, stream: bool) -> None:
    one, second = held
    if not stream and FAULTS[fault].group == "stream":
        pytest.skip("nothing of a plain answer is changed")
    asked = await asyncio.gather(*(one.ask(fault, stream=stream) for _ in range(REPEATS)))
    await one.settled()
    for told in asked:
        check(told, expected(fault, stream, second=second), second=second)
    after = await asyncio.gather(*(one.ask(HEALTHY, stream=way) for way in (False, True)))
    await one.settled()
    for told in after:
        check(told, "whole", second=False)


@pytest.mark.parametrize("fault", AT_ACCEPT)
async def test_a_connection_that_fails_before_it_is_read_is_made_good(fault: str) -> None:
    """The first connections fail, the next are good: a lone provider is asked again where nothing was sent."""
    async with wall(schedule=Schedule([FAULTS[fault]], times=1)) as one:
        told = await one.ask(HEALTHY, stream=True)
        await one.settled()
        end = expected(fault, True, second=False)
        assert told.row is not None
        if end == "late":
            check(told, end, second=False)
        else:
            assert told.answer.status in (200, 502), told
        after = await asyncio.gather(*(one.ask(HEALTHY, stream=stream) for stream in (False, True)))
        await one.settled()
        for one_told in after:
            check(one_told, "whole", second=False)
