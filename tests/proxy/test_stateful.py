"""stateful: a path is about one object, an answer makes and unmakes some, and a request goes where all it names is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.record import Issued
from headgate.proxy.errors import GatewayError, NotIssuedError, ObjectNotFoundError, UnknownIssuerError
from headgate.proxy.stateful import Place, Ref, Said, Verdict, deleted, judge, locate, made


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/files", Place("files", "", "")),
        ("/v1/files/file-a", Place("files", "file-a", "")),
        ("/v1/files/file-a/content", Place("files", "file-a", "content")),
        ("/v1/vector_stores/vs_1/files/file-a", Place("vector_stores", "vs_1", "files/file-a")),
        ("/v1/chat/completions", Place("chat/completions", "", "")),
        ("/v1/chat/completions/chatcmpl-1/messages", Place("chat/completions", "chatcmpl-1", "messages")),
        ("/v1/fine_tuning/jobs", Place("fine_tuning/jobs", "", "")),
        ("/v1/fine_tuning/jobs/ftjob-1/cancel", Place("fine_tuning/jobs", "ftjob-1", "cancel")),
        ("/v1/fine_tuning", Place("fine_tuning", "", "")),
        ("/v1/responses/resp_1", Place("responses", "resp_1", "")),
        ("/v1/responses/input_tokens", Place("responses", "", "")),
        ("/v1/responses/compact", Place("responses", "", "")),
        ("/v1/realtime/calls/call_1/accept", Place("realtime/calls", "call_1", "accept")),
        ("/v1/", Place("", "", "")),
    ],
)
def test_a_path_is_about_its_first_id(path: str, place: Place) -> None:
    assert locate(path) == place


SAID = Said("x-1", (("files", "file-9"),))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/files", [("files", "x-1")]),
        ("POST", "/v1/batches", [("batches", "x-1"), ("files", "file-9")]),
        ("GET", "/v1/batches/b", [("files", "file-9")]),
        ("POST", "/v1/batches/b/cancel", [("files", "file-9")]),
        ("POST", "/v1/uploads/u/complete", [("files", "file-9")]),
        ("POST", "/v1/uploads/u/parts", []),
        ("GET", "/v1/files/f/content", []),
        ("GET", "/v1/files", []),
        ("GET", "/v1/files/f", []),
        ("POST", "/v1/vector_stores/vs/files", []),
    ],
)
def test_only_what_a_provider_made_for_this_caller_counts(
    method: str, path: str, expected: list[tuple[str, str]]
) -> None:
    assert made(method, locate(path), SAID) == expected


def test_an_object_is_deleted_when_its_provider_says_so() -> None:
    file, below = locate("/v1/files/f"), locate("/v1/vector_stores/vs/files/f")
    assert deleted("DELETE", file, Said(deleted=True))
    assert deleted("DELETE", file, Said())  # 204 without a body
    assert not deleted("DELETE", file, Said(deleted=False))
    assert not deleted("GET", file, Said(deleted=True))
    assert not deleted("DELETE", below, Said(deleted=True))
    assert not deleted("DELETE", locate("/v1/files"), Said(deleted=True))


def row(id: str, provider: str = "up", team: str = "") -> Issued:
    return Issued(id=id, at=0.0, provider=provider, team=team, kind="files")


def ask(
    *ids: str,
    known: list[Issued] = [],  # noqa: B006 - never changed
    allowed: str = "up up2",
    team: str = "",
    divided: bool = False,
    opened: str = "",
) -> Verdict:
    found: dict[str, list[Issued]] = {}
    for one in known:
        found.setdefault(one.id, []).append(one)
    refs = [Ref("files", id_, "file_id") for id_ in ids]
    return judge(
        refs, found, allowed=set(allowed.split()), team=team, divided=divided, opens=lambda path: path in opened.split()
    )


def test_a_request_goes_where_its_object_is() -> None:
    assert ask("a", known=[row("a", "up2")]) == Verdict("up2", True)
    assert ask("a", "b", known=[row("a", "up2"), row("b", "up2")]) == Verdict("up2", True)


def test_what_is_unknown_follows_what_is_known() -> None:
    assert ask("x", "a", known=[row("a", "up2")]) == Verdict("up2", False)
    assert ask("x", allowed="up") == Verdict("up", False)


def test_nobody_is_guessed() -> None:
    with pytest.raises(UnknownIssuerError, match="made 'x'") as refused:
        ask("x")
    assert refused.value.param == "file_id"
    with pytest.raises(UnknownIssuerError, match="made 'a'"):
        ask("a", known=[row("a", "gone")])
    with pytest.raises(UnknownIssuerError, match="made 'a'"):
        ask("a", known=[row("a", "up"), row("a", "up2")])


def test_two_objects_at_two_providers_cannot_be_had_in_one_request() -> None:
    with pytest.raises(UnknownIssuerError, match="'b' is at another provider"):
        ask("a", "b", known=[row("a", "up"), row("b", "up2")])


def test_another_teams_object_does_not_exist() -> None:
    known = [row("a", team="red")]
    assert ask("a", known=known, team="red", divided=True) == Verdict("up", True)
    with pytest.raises(ObjectNotFoundError, match="No such object: 'a'"):
        ask("a", known=known, team="blue", divided=True)
    with pytest.raises(ObjectNotFoundError):
        ask("a", known=known, team="", divided=True, opened="/v1/files/a")
    assert ask("a", known=known, team="blue") == Verdict("up", True)


def test_what_nobody_is_known_to_have_made_is_for_keys_that_name_it() -> None:
    with pytest.raises(NotIssuedError, match="a key whose paths name /v1/files/x may use it"):
        ask("x", allowed="up", divided=True)
    assert ask("x", allowed="up", divided=True, opened="/v1/files/x") == Verdict("up", False)
    with pytest.raises(NotIssuedError):
        ask("a", known=[row("a", "up2", "red")], allowed="up", team="red", divided=True)


def test_a_request_that_names_nothing_is_anybodys() -> None:
    assert ask() == Verdict(None, True)


NAMES = st.sampled_from(["up", "up2", "up3"])
ROWS = st.lists(st.builds(row, st.sampled_from("abc"), NAMES, st.sampled_from(["", "red", "blue"])), max_size=6)


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), ROWS, st.sets(NAMES, min_size=1),
    st.sampled_from(["", "red", "blue"]), st.booleans(),
)  # fmt: skip
def test_no_team_ever_reaches_anothers_object_and_no_provider_an_id_of_another(
    ids: list[str], rows: list[Issued], allowed: set[str], team: str, divided: bool
) -> None:
    try:
        verdict = ask(*ids, known=rows, allowed=" ".join(allowed), team=team, divided=divided)
    except GatewayError:
        return
    assert verdict.provider in allowed
    for id_ in ids:
        makers = {one.provider for one in rows if one.id == id_ and one.provider in allowed}
        assert not makers or verdict.provider in makers
        if divided:
            assert (id_, verdict.provider, team) in {(one.id, one.provider, one.team) for one in rows}
