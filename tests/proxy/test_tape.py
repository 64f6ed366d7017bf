"""Tape: what was recorded is played byte for byte, with a comment of each exchange's own in its place."""

from __future__ import annotations

from headgate.proxy.tape import OVERHEAD_BYTES, Recorded, Tape, TapeReader, kept_fields

EVENTS = (b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n")


def recorded(comment_at: int | None = 18) -> Recorded:
    headers = [(b"content-type", b"text/event-stream")]
    return Recorded("hg_1", 5.0, "openai", "gpt", headers, EVENTS, stream=True, comment_at=comment_at)


def play(reader: TapeReader, *pieces: bytes) -> bytes:
    return b"".join(reader.feed(piece) for piece in pieces)


def test_bytes_pass_unchanged() -> None:
    reader = TapeReader(Tape.of(recorded()))
    assert play(reader, *EVENTS) == b"".join(EVENTS)
    assert reader.end() == (b"", True)
    assert reader.committed
    assert not reader.failed


def test_the_comment_goes_where_it_belongs_however_the_bytes_are_cut() -> None:
    whole = b"".join(EVENTS)
    for cut in range(len(whole) + 1):
        reader = TapeReader(Tape.of(recorded()))
        reader.before_terminal = lambda: b": mine\n\n"
        assert play(reader, whole[:cut], whole[cut:]) == b"data: 1\n\ndata: 2\n\n: mine\n\ndata: [DONE]\n\n"


def test_where_there_is_no_place_there_is_no_comment() -> None:
    reader = TapeReader(Tape.of(recorded(comment_at=None)))
    reader.before_terminal = lambda: b": mine\n\n"
    assert play(reader, *EVENTS) == b"".join(EVENTS)


def test_the_middle_of_an_event_is_told_from_its_end() -> None:
    reader = TapeReader(Tape.of(recorded()))
    assert not reader.mid_event
    for end in (b"x\n\n", b"x\r\n\r\n", b"x\r\r", b"x\n\r\n"):
        reader.feed(end)
        assert not reader.mid_event
    reader.feed(b"data: half")
    assert reader.mid_event


def test_a_whole_body_is_played_in_one_piece() -> None:
    tape = Tape.of(Recorded("hg_1", 5.0, "p", "m", [], (b"{", b"}"), stream=False))
    assert tape.body == b"{}"
    assert tape.over


def test_of_a_head_stays_what_describes_the_body() -> None:
    head = [
        (b"content-type", b"application/json"), (b"x-request-id", b"req_1"), (b"date", b"today"),
        (b"x-ratelimit-remaining-requests", b"3"), (b"openai-model", b"gpt"), (b"x-unknown", b"1"),
    ]  # fmt: skip
    assert kept_fields(head) == [(b"content-type", b"application/json"), (b"openai-model", b"gpt")]


def test_an_answer_counts_with_its_head_and_what_keeping_it_costs() -> None:
    assert recorded().size == OVERHEAD_BYTES + len("content-typetext/event-stream") + sum(map(len, EVENTS))
