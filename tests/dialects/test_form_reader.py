"""Forms: the model is found wherever the bytes are cut, and what two readers might read differently is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.form_reader import FormScan, boundary_of
from headgate.proxy.errors import DownstreamError

B = b"XyZ"
DELIMITER = b"--" + B


def part(name: bytes, value: bytes, *fields: bytes) -> bytes:
    head = b"\r\n".join([b'Content-Disposition: form-data; name="' + name + b'"', *fields])
    return DELIMITER + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + DELIMITER + b"--\r\n"


def read(body: bytes, cuts: list[int]) -> FormScan | str:
    """What it finds when the body is cut there, or the code it is refused with."""
    scan, at = FormScan(B), 0
    try:
        for cut in [*sorted(cuts), len(body)]:
            scan.feed(body[at:cut])
            at = cut
    except DownstreamError as error:
        return error.code
    return scan


def same(one: FormScan | str, other: FormScan | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    names = ("model", "model_at", "length_at", "stream", "closed")
    return all(getattr(one, name) == getattr(other, name) for name in names)


FILE = part(b"file", b"\r\n--Xy\r\n-\r\n--X\r--\n", b"Content-Type: audio/wav")
BODIES = [
    form(part(b"model", b"whisper-1"), FILE, part(b"stream", b"true")),
    b"\r\n" + form(FILE, part(b"model", "größe/ü".encode(), b"Content-Length: 9")) + b"epilogue " + DELIMITER,
    form(FILE),
    form(part(b"model", b""), FILE),
    form(part(b"model", b"a"), FILE, part(b"model", b"b")),
    form(FILE)[:-4],
    form(part(b"file", b"x\n" + DELIMITER + b"y")),
]


@pytest.mark.parametrize("body", BODIES)
def test_every_cut_reads_the_same(body: bytes) -> None:
    whole = read(body, [])
    for cut in range(len(body)):
        assert same(read(body, [cut]), whole), cut
    assert same(read(body, list(range(len(body)))), whole)


def test_the_model_is_found_with_its_place() -> None:
    scan = read(BODIES[0], [])
    assert isinstance(scan, FormScan)
    assert (scan.model, scan.stream, scan.closed) == ("whisper-1", True, True)
    start, end = scan.model_at
    assert BODIES[0][start:end] == b"whisper-1"


@given(model=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable), data=st.data())
def test_splices_make_the_form_of_another_model(model: str, data: st.DataObject) -> None:
    file = data.draw(st.binary(max_size=60).filter(lambda value: B not in value))
    length = [b"Content-Length: %d" % len(model.encode())] if data.draw(st.booleans()) else []

    def sent(name: bytes) -> bytes:
        fields = [b"Content-Length: %d" % len(name)] if length else []
        parts = [part(b"file", file), part(b"model", name, *fields)]
        return form(*(parts if first else parts[::-1]))

    first = data.draw(st.booleans())
    body = sent(model.encode())
    scan = read(body, data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    assert isinstance(scan, FormScan)
    assert scan.model == model
    for start, end, value in sorted(scan.splices("other"), reverse=True):
        body = body[:start] + value + body[end:]
    assert body == sent(b"other")
    assert scan.splices(model) == []


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_read_the_same_however_they_come(tail: bytes, cuts: list[int]) -> None:
    body = DELIMITER + b"\r\n" + tail
    assert same(read(body, [cut for cut in cuts if cut < len(body)]), read(body, []))


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n" + form(FILE),
        form(DELIMITER + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n"),
        form(DELIMITER + b'\r\nContent-Disposition: form-data; name="a"; name="model"\r\n\r\nx\r\n'),
        form(DELIMITER + b"\r\nContent-Disposition: form-data; name*=utf-8''model\r\n\r\nx\r\n"),
        form(DELIMITER + b'\r\nContent-Disposition: form-data; name="mo\\del"\r\n\r\nx\r\n'),
        form(DELIMITER + b'\r\nContent-Disposition: form-data; name="Model"\r\n\r\nx\r\n'),
        form(DELIMITER + b'\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\nx\r\n'),
        form(DELIMITER + b'\r\nContent-Disposition: attachment; name="model"\r\n\r\nx\r\n'),
        form(DELIMITER + b'\r\nContent-Disposition: form-data; name="a"\nx: y\r\n\r\nx\r\n'),
        form(part(b"model", b"bQ==", b"Content-Transfer-Encoding: base64")),
        form(part(b"model", b"m" * 5000)),
        form(part(b"a" * 9000, b"m")),
        form(part(b"a", b"x\n" + DELIMITER)),
        form(part(b"a", b"x\r\n" + DELIMITER + b"Q")),
    ],
)
def test_what_two_readers_might_read_differently_is_refused(body: bytes) -> None:
    assert read(body, []) == "invalid_request"


def test_names_may_be_bare_and_follow_a_tricky_filename() -> None:
    heads = (b"form-data; name=model", b'form-data; filename="a; name=evil"; name="model"', b'form-data;name="model" ')
    for head in heads:
        scan = read(form(DELIMITER + b"\r\ncontent-disposition: " + head + b"\r\n\r\nm\r\n"), [])
        assert isinstance(scan, FormScan)
        assert scan.model == "m"


@pytest.mark.parametrize(
    ("field", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; Boundary="a b"', b"a b"),
        (b"multipart/form-data; boundary=xboundaryx", b"xboundaryx"),
        (b"multipart/form-data", None),
        (b"multipart/mixed; boundary=abc", None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (None, None),
    ],
)
def test_the_boundary_of_a_content_type(field: bytes | None, boundary: bytes | None) -> None:
    assert boundary_of(field) == boundary
