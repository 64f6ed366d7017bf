"""head_reader: a head that is held against the last one means what it would mean read by itself, and nothing stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.head_reader import HeadReader
from headgate.proxy.edge.request_head import HttpRequestHead, read_head
from headgate.proxy.errors import DownstreamError
from headgate.proxy.headers import lines_upstream, to_upstream
from headgate.proxy.upstream.call import UpstreamRequest
from headgate.proxy.upstream.h1_request import encode_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.edge.downstream import Headers

LIMITS = EdgeLimits()
LINES = [
    "POST /v1/chat/completions?a=1 HTTP/1.1",
    "Host: localhost:8070",
    "Accept: application/json",
    "Connection: keep-alive",
    "Authorization: Bearer hg-0123456789",
    "Content-Type: application/json",
    "Content-Length: 120",
    "X-Stainless-Lang: python",
]


def raw(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def changed(**fields: str) -> bytes:
    """The head of LINES with other values."""
    lines = [LINES[0]]
    for line in LINES[1:]:
        name, _, value = line.partition(": ")
        lines.append(f"{name}: {fields.get(name.lower().replace('-', '_'), value)}")
    return raw(*lines)


def outcome(read: object, data: bytes) -> object:
    """All that a head says, or how it was refused."""
    try:
        found = read(data, LIMITS, "192.0.2.1")  # type: ignore[operator]
    except DownstreamError as error:
        return type(error), str(error)
    if found is None:
        return None
    head, end = found
    names = {name for kind in HttpRequestHead.__mro__ for name in getattr(kind, "__slots__", ())} - {"came"}
    said = {name: getattr(head, name) for name in names}
    assert said.pop("header")(b"host") == head.fields.get(b"host")
    del said["known"]
    if head.known is not None:
        assert head.came == head.headers
        assert head.is_plain
    return said, end


def knowing(*heads: bytes) -> HeadReader:
    """A reader that has read these, the last one as its model."""
    reader = HeadReader()
    for head in heads:
        reader.read(head, LIMITS, "192.0.2.1")
    assert reader.known is not None
    return reader


def test_the_third_head_of_a_connection_is_held_against_the_second() -> None:
    reader = HeadReader()
    first, second = (reader.read(raw(*LINES), LIMITS, "192.0.2.1") for _ in range(2))
    assert first is not None
    assert second is not None
    known = reader.known
    data = changed(content_length="7", authorization="Bearer other")
    assert known is not None
    read = known.read(data, len(data))
    assert read is not None
    head, end = read
    assert end == len(data)
    assert known.read(data, len(data) - 1) is None
    assert head.length == 7
    assert head.header(b"authorization") == b"Bearer other"
    assert outcome(reader.read, data) == outcome(read_head, data)


@pytest.mark.parametrize(
    "data",
    [
        changed(content_length="-1"),
        changed(content_length="+1"),
        changed(content_length="1_0"),
        changed(content_length="1" * 19),
        changed(content_length=""),
        changed(content_length="1 "),
        changed(content_length="\xb2"),
        changed(authorization=""),
        changed(authorization=" Bearer"),
        changed(authorization="Bearer\t"),
        changed(authorization="a\x00b"),
        changed(authorization="a\rb"),
        changed(authorization="a\nb"),
        changed(authorization="ü"),
        changed(authorization="x\r\nContent-Length: 5"),
        changed(authorization="x\r\nTransfer-Encoding: chunked"),
        changed(content_length="5\r\nTransfer-Encoding: chunked"),
        changed(content_length="5\r\nContent-Length: 6"),
        changed(content_length="5\r\n\r\nX: y"),
        changed(host="other"),
        raw(*LINES)[:-2],
        raw(*LINES)[:-3] + b"x\r\n\r\n",
        raw(*LINES, "X-More: 1"),
        raw(*LINES[:-1]),
        b"\r\n" + raw(*LINES),
    ],
)
def test_what_is_not_quite_the_same_is_read_by_itself(data: bytes) -> None:
    reader = knowing(raw(*LINES), raw(*LINES))
    assert outcome(reader.read, data) == outcome(read_head, data)


@pytest.mark.parametrize(
    "lines",
    [
        [*LINES, "X-Api-Key: second"],
        [*LINES, "Expect: 100-continue"],
        [*LINES, "Upgrade: websocket"],
        [*LINES, "Accept: twice"],
        [line.replace("keep-alive", "close, x") for line in LINES],
        [line.replace("keep-alive", "close") for line in LINES],
        [line.replace("HTTP/1.1", "HTTP/1.0") for line in LINES],
        [line.replace("POST", "HEAD") for line in LINES],
        [line.replace("Content-Length: 120", "Transfer-Encoding: chunked") for line in LINES],
        [LINES[0].replace("/v1", "http://localhost:8070/v1"), *LINES[1:]],
        [*LINES, "X-Long: " + "x" * 5000],
        [line for line in LINES if "Length" not in line],
    ],
)
def test_what_is_not_simple_is_no_model(lines: list[str]) -> None:
    reader = HeadReader()
    for _ in range(9):
        assert outcome(reader.read, raw(*lines)) == outcome(read_head, raw(*lines))
        assert reader.known is None


def test_a_filter_that_changes_a_head_changes_no_other() -> None:
    reader = HeadReader()
    for _ in range(4):
        found = reader.read(raw(*LINES), LIMITS, "192.0.2.1")
        assert found is not None
        assert (b"x-added", b"1") not in found[0].headers
        assert b"x-added" not in found[0].fields
        found[0].headers.append((b"x-added", b"1"))
        found[0].fields[b"x-added"] = b"1"


def test_no_key_is_kept() -> None:
    reader = knowing(raw(*LINES), raw(*LINES))
    reader.read(changed(authorization="Bearer hg-another"), LIMITS, "")
    known = reader.known
    assert known is not None
    kept = [known._before, *(following for *_, following, _ in known._values), *known._by_name.values()]
    assert not any(b"hg-" in value for value in [*kept, *(value for _, value in known._fields)])


def sent_upstream(head: HttpRequestHead, own: frozenset[bytes], *, ready: bool) -> bytes:
    """The head of the provider's request, with or without lines that were ready."""
    fields, lines = lines_upstream(head, b"hg_1", own) if ready else (to_upstream(head, b"hg_1", own), b"")
    request = UpstreamRequest(b"POST", b"/chat/completions", fields, b"{}", lines=lines)
    request.headers += [(b"authorization", b"Bearer sk-1")]
    return encode_head(request, b"/v1", b" HTTP/1.1\r\nhost: localhost")


def repeated(*lines: str) -> HttpRequestHead:
    """The third head of these lines on a connection."""
    reader = HeadReader()
    for _ in range(2):
        reader.read(raw(*lines), LIMITS, "")
    found = reader.read(raw(*lines), LIMITS, "")
    assert found is not None
    return found[0]


OWN = frozenset((b"x-stainless-lang",))


@pytest.mark.parametrize("own", [frozenset(), OWN])
def test_the_lines_for_a_provider_are_made_once(own: frozenset[bytes]) -> None:
    head = repeated(*LINES)
    assert head.known is not None
    for _ in range(3):
        assert sent_upstream(head, own, ready=True) == sent_upstream(head, own, ready=False)
    assert lines_upstream(head, b"hg_1", own)[1] != b""
    other = frozenset((b"accept",))  # of another config
    assert sent_upstream(head, other, ready=True) == sent_upstream(head, other, ready=False)


CHANGES: list[Callable[[Headers, int], object]] = [
    lambda fields, at: fields.append((b"x-added", b"1")),
    lambda fields, at: fields.pop(at),
    lambda fields, at: fields.insert(at, (b"x-more", b"2")),
    lambda fields, at: fields.__setitem__(at, (b"x-instead", b"3")),
]


@pytest.mark.parametrize("at", [1, 2, 3, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_a_field_that_a_filter_has_changed_goes_up_as_it_is_now(
    change: Callable[[Headers, int], object], at: int
) -> None:
    head = repeated(*LINES)
    sent_upstream(head, frozenset(), ready=True)
    change(head.headers, at)
    assert sent_upstream(head, frozenset(), ready=True) == sent_upstream(head, frozenset(), ready=False)


def test_a_field_that_is_another_each_time_is_not_made_once() -> None:
    lines = [line.replace("Authorization: Bearer hg-0123456789", "Traceparent: 00-1-1-00") for line in LINES]
    head = repeated(*lines)
    assert head.known is not None
    sent_upstream(head, frozenset(), ready=True)
    place = [name for name, _ in head.headers].index(b"traceparent")
    head.headers[place] = (b"traceparent", b"00-2-2-00")
    assert b"00-2-2-00" in sent_upstream(head, frozenset(), ready=True)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    lines = list(LINES)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                lines[at] = (
                    lines[at].partition(": ")[0] + ": " + draw(st.text(st.characters(max_codepoint=255), max_size=8))
                )
            case 1:
                del lines[at]
            case 2:
                lines.insert(
                    at,
                    draw(st.sampled_from([*LINES, "X-Api-Key: k", "Transfer-Encoding: chunked", "Content-Length: 3"])),
                )
            case _:
                lines[at] = (
                    lines[at]
                    .replace("120", str(draw(st.integers(0, 10**20))))
                    .replace("hg-", draw(st.text("ab ", max_size=4)))
                )
    data = raw(*lines)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data + draw(st.sampled_from([b"", b"{}", b"\r\n\r\n"]))


@given(st.lists(heads(), min_size=3, max_size=8))
def test_a_connection_reads_every_head_as_if_it_were_the_first(sent: list[bytes]) -> None:
    reader = HeadReader()
    for data in sent:
        assert outcome(reader.read, data) == outcome(read_head, data)
        try:
            found = reader.read(data, LIMITS, "192.0.2.1")
        except DownstreamError:
            found = None
        if found is not None:
            assert sent_upstream(found[0], OWN, ready=True) == sent_upstream(found[0], OWN, ready=False)
