"""catalogue: every fault has a name, a reason and steps for any answer, and docs/mock.md lists them all."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest

from headgate.control.mock.catalogue import FAULTS, find, listing
from headgate.control.mock.fault import GROUPS, HTTP2, STREAM, Fault, good
from headgate.control.mock.steps import END, FIN, RST, Act, Data, Frame, Head, Interim, Raw, Reset, Wait
from headgate.dialects.mock import answer

PLAIN = answer(b'{"messages":[{"role":"user","content":"one two three four"}]}')
STREAMED = answer(b'{"stream":true,"messages":[{"role":"user","content":"one two three four"}]}')
ANSWERS = [pytest.param(PLAIN, id="plain"), pytest.param(STREAMED, id="stream")]


def test_there_are_more_than_a_hundred_in_groups_that_say_what_they_are() -> None:
    assert len(FAULTS) > 100
    assert {fault.group for fault in FAULTS.values()} == set(GROUPS)
    for name, fault in FAULTS.items():
        assert name == fault.name
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
        assert 5 < len(fault.what) < 70
        assert not fault.what.endswith(".")


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("made", ANSWERS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_each_gives_steps_for_any_answer_and_differs_from_a_good_one(fault: Fault, made: object, http2: bool) -> None:
    assert isinstance(made, type(PLAIN))
    steps = list(islice(fault.play(made, http2=http2), 10_000))
    for step in steps:
        assert isinstance(step, Interim | Head | Data | Raw | Frame | Wait | Act | Reset)
        assert not (isinstance(step, Raw) and http2 and fault.group != HTTP2), "bytes of HTTP/1.1 among frames"
        assert not (isinstance(step, Frame | Reset) and not http2), "frames among bytes of HTTP/1.1"
    assert not {END, FIN, RST} & set(steps[:-1]), "something follows the end"
    assert not any(isinstance(step, Reset) for step in steps[:-1])
    if fault.changes(made, http2=http2):
        assert steps != good(made)
        assert steps == list(islice(fault.play(made, http2=http2), 10_000)), "it is not the same the second time"
    else:
        assert steps == good(made)


def test_those_of_streams_leave_another_answer_as_it_is() -> None:
    for fault in FAULTS.values():
        assert fault.changes(STREAMED) == (fault.group != HTTP2)
        assert fault.changes(PLAIN) == (fault.group not in (STREAM, HTTP2))


def test_what_is_made_of_one_version_of_http_leaves_the_other_as_it_is() -> None:
    assert not FAULTS["garbage"].changes(STREAMED, http2=True)
    assert not FAULTS["bad-chunk-size"].changes(STREAMED, http2=True)
    assert FAULTS["close-in-body"].changes(STREAMED, http2=True)
    assert FAULTS["h2-refused"].changes(PLAIN, http2=True)


def test_a_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    assert find("close-in-body") is FAULTS["close-in-body"]
    with pytest.raises(KeyError, match="there is no fault 'close-in-bod', did you mean 'close-in-body'"):
        find("close-in-bod")
    with pytest.raises(KeyError, match="headgate mock --list-faults"):
        find("qqqqqq")


def test_the_page_lists_what_the_command_lists() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "mock.md").read_text()
    assert f"```\n{listing()}\n```" in page
