"""Every fault of `headgate mock`, streamed and not, alone and with a healthy provider behind: what the client sees.

The invariants are held by tests_support.wall; here stands what each fault must come to. One pass with everything at
once belongs to every run; twenty at once of each fault, one fault after the other, are marked slow.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.fault import HTTP2, Fault
from headgate.control.mock.schedule import Schedule
from headgate.control.mock.steps import DEAF, FIN, RST, Frame, Raw
from headgate.dialects.mock import answer
from tests_support.traffic import error_events, has_done
from tests_support.wall import HEALTHY, RESTING, SLOWER, Told, Wall, wall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

REPEATS = 20
APART = 0.02
"""Seconds between two requests where all come at once: so that each is answered in its time."""
WALLS = {
    "alone": {"second": False, "http2": False},
    "with-another": {"second": True, "http2": False},
    "http2-alone": {"second": False, "http2": True},
    "http2-with-another": {"second": True, "http2": True},
}
SLOW = [WALLS["http2-with-another"]]
SAMPLES = [answer(b'{"stream":%b,"messages":[{"role":"user","content":"a b c"}]}' % way) for way in (b"false", b"true")]
SAMPLE = SAMPLES[True]
LARGE = {"huge-json", "big-event", "big-event-cut", "split-bytes", "gzip-bomb"}
"""So large, or in so many pieces, that twenty at once would keep each other waiting."""

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


def breaks_the_connection(fault: Fault) -> bool:
    """Of HTTP/2, where it would take other calls along."""
    steps = list(islice(fault.play(SAMPLE, http2=True), 1000))
    return fault.name == "big-field" or any(step in (FIN, RST, DEAF) or isinstance(step, Frame | Raw) for step in steps)


# And what a fault of HTTP/2 comes to there; over HTTP/1.1 the answer stays good.
EXPECTED_OF_HTTP2 = {
    "h2-refused": "bad bad",
    "h2-cancel": "bad bad",
    "h2-cancel-in-body": "bad cut",
    "h2-calm": "bad bad",
    "h2-short-body": "bad whole",
    "h2-goaway": "bad bad",
    "h2-goaway-then-answer": "whole whole",
    "h2-goaway-in-body": "bad cut",
    "h2-no-streams": "whole whole",
    "h2-settings-flood": "bad bad",
    "h2-ping-flood": "bad bad",
    "h2-window-flood": "bad bad",
    "h2-priority-flood": "bad bad",
    "h2-empty-data-flood": "bad cut",
    "h2-continuation-flood": "bad bad",
    "h2-half-head": "late late",
    "h2-hpack-bomb": "bad bad",
    "h2-bad-hpack": "bad bad",
    "h2-no-status": "bad bad",
    "h2-upper-case": "bad bad",
    "h2-line-break": "bad bad",
    "h2-second-head": "bad cut",
    "h2-data-first": "bad bad",
    "h2-push": "bad bad",
    "h2-big-frame": "bad cut",
    "h2-not-frames": "bad bad",
    "h2-lone-continuation": "bad bad",
    "h2-unknown-frame": "whole whole",
    "h2-padding": "whole whole",
}
OTHERWISE_OVER_HTTP2 = {"length-too-short": "bad bad"}  # the frame that breaks the rule is dropped whole
BREAKING = {name for name, fault in FAULTS.items() if breaks_the_connection(fault)}
DEAF_ONE = "deaf"
"""Over HTTP/2 it takes along whatever comes on its connection, until that is found out."""
AT_ACCEPT = [fault.name for fault in FAULTS.values() if fault.at_accept]
MADE_GOOD = {"bad", "key", "429", "500", "502", "503", "529"}
"""What another provider makes good: nothing has gone down yet, and `retry` names it."""
ALSO_MADE_GOOD = {("error-in-200", False), ("error-in-200", True), ("error-first", True)}


def expected(fault: str, stream: bool, *, second: bool, http2: bool) -> str:
    """What it must come to."""
    if FAULTS[fault].group == HTTP2:
        ends = EXPECTED_OF_HTTP2[fault] if http2 else "whole whole"
    else:
        ends = EXPECTED[fault] if FAULTS[fault].changes(SAMPLE, http2=http2) else "whole whole"
        ends = OTHERWISE_OVER_HTTP2.get(fault, ends) if http2 else ends
    end = ends.split()[stream]
    return "whole" if second and (end in MADE_GOOD or (fault, stream) in ALSO_MADE_GOOD) else end


def check(told: Told, *, second: bool = False, http2: bool = False) -> None:
    """Hold an exchange against its end; the wall has held the invariants."""
    end = "whole" if told.fault == HEALTHY else expected(told.fault, told.stream, second=second, http2=http2)
    got, row = told.answer, told.row
    assert row is not None
    error = got.error["code"] if row.outcome == "failed" else None
    seen = (end, got.status, row.outcome, got.whole, error)
    if told.fault in RESTING and row.attempts == (1 if second else 0):  # another met it before: the key rests
        assert (row.outcome, got.status) in ([("ok", 200)] if second else [("refused", 429), ("failed", 502)]), told
        return
    if end in ("whole", "same"):
        assert seen[2:4] == ("ok", True), told
        assert got.status == (204 if told.fault == "no-content" else 200), told
        assert told.received == (told.good if end == "whole" else told.said), told
    elif end in ("bad", "late", "key"):
        status, code = {
            "bad": (502, "upstream_error"),
            "late": (504, "upstream_timeout"),
            "key": (502, "upstream_auth_failed"),
        }[end]
        assert seen == (end, status, "failed", True, code), told
        assert set(got.error) >= {"message", "type", "param", "code"}
    elif end in ("cut", "closed"):
        assert seen[1:4] == (200, "truncated", end == "cut"), told
        assert len(error_events(got.body)) == (end == "cut"), told
        assert has_done(got.body) == 0, told
    elif end == "error":
        assert seen[1:4] == (200, "upstream_error", True), told
        assert b"The server had an error." in got.body, told
    else:
        assert got.status == row.status == int(end), told
        assert row.outcome == ("ok" if end == "302" else "upstream_error"), told
        assert got.body == told.said, told
    if second and told.fault != HEALTHY:
        assert (row.attempts > 1) == (expected(told.fault, told.stream, second=False, http2=http2) != end), told


@pytest.fixture(
    scope="module",
    params=[pytest.param(how, id=name, marks=[pytest.mark.slow] if how in SLOW else []) for name, how in WALLS.items()],
)
async def held(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Wall, dict[str, bool]]]:
    async with wall(**request.param) as one:
        yield one, request.param


@pytest.fixture(autouse=True)
def _counted(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Iterator[None]:
    """For the summary."""
    if "held" not in request.fixturenames:
        yield
        return
    one, _ = request.getfixturevalue("held")
    before = one.count
    yield
    record_property("exchanges", one.count - before)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One loop for the file, because the gateway lives as long."""
    return ("asyncio", {"use_uvloop": True})


def test_what_each_fault_must_come_to_is_written_down() -> None:
    assert [*EXPECTED, *EXPECTED_OF_HTTP2] == list(FAULTS)


async def test_all_faults_at_once_keep_every_invariant(held: tuple[Wall, dict[str, bool]]) -> None:
    """But for those that would take others along, or keep them waiting."""
    one, how = held

    async def ask(number: int, fault: str, stream: bool) -> Told:
        await one.clock.sleep(number * APART)
        return await one.ask(fault, stream=stream)

    faults_here = [name for name in FAULTS if not (how["http2"] and name == DEAF_ONE)]
    alone = [name for name in faults_here if name in LARGE or (how["http2"] and name in BREAKING)]
    together = [name for name in faults_here if name not in alone]
    at_once = [(fault, stream) for fault in together for stream in (False, True)]
    for cells in (at_once, *([(fault, True)] for fault in alone)):
        asked = await asyncio.gather(*(ask(number, *cell) for number, cell in enumerate(cells)))
        await one.settled()
        for told in asked:
            check(told, **how)
    await check_that_it_is_well(one)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_twenty_times_keeps_every_invariant(
    held: tuple[Wall, dict[str, bool]], fault: str, stream: bool
) -> None:
    one, how = held
    if not FAULTS[fault].changes(SAMPLES[stream], http2=how["http2"]):
        pytest.skip("nothing of this answer is changed")
    if how["http2"] and fault == DEAF_ONE:
        pytest.skip("it has a test of its own")
    at_once = 1 if how["http2"] and fault in BREAKING else 5 if fault in LARGE else REPEATS
    for _ in range(REPEATS // at_once):
        asked = await asyncio.gather(*(one.ask(fault, stream=stream) for _ in range(at_once)))
        await one.settled()
        for told in asked:
            check(told, **how)
    await check_that_it_is_well(one)


async def check_that_it_is_well(one: Wall) -> None:
    """The next requests on the same gateway succeed."""
    after = await asyncio.gather(*(one.ask(HEALTHY, stream=stream) for stream in (False, True)))
    await one.settled()
    for told in after:
        check(told)


@pytest.mark.parametrize("fault", AT_ACCEPT)
async def test_a_connection_that_fails_before_it_is_read_costs_no_more_than_its_request(fault: str) -> None:
    async with wall(schedule=Schedule([FAULTS[fault]], times=1)) as one:
        told = await one.ask(HEALTHY, stream=True)
        await one.settled()
        if EXPECTED[fault] == "late late":
            assert (told.answer.status, told.answer.error["code"]) == (504, "upstream_timeout")
        else:
            assert told.answer.status in (200, 502), told
        await check_that_it_is_well(one)


@pytest.mark.slow
async def test_a_stream_that_fails_costs_no_other_on_its_connection() -> None:
    """Faults of one stream of HTTP/2, among good answers on the same connection."""
    own = [name for name in FAULTS if name not in BREAKING | LARGE and not FAULTS[name].at_accept]
    async with wall(http2=True) as one:
        among = [fault for name in own for fault in (name, HEALTHY)]
        asked = await asyncio.gather(*(one.ask(fault, stream=True) for fault in among))
        await one.settled()
        for told in asked:
            check(told, http2=True)
        assert {repr(connection) for connection in one.mocks[0].connections} == {"<H2MockConnection 0 streams>"}


@pytest.mark.slow
async def test_a_connection_of_http2_that_went_deaf_is_found_out_by_those_who_gave_up_on_it() -> None:
    """None of them waits as long as the keepalive would, and yet they do not fail for ever."""
    async with wall(http2=True, keepalive=f"{round(1500 * SLOWER)}ms") as one:
        gone = await one.ask(DEAF_ONE, stream=True)
        assert gone.answer.status == 504
        for _ in range(3):
            if (await one.ask(HEALTHY, stream=True)).answer.status == 200:
                break
        await one.settled()
        await check_that_it_is_well(one)
