"""faces: a path is in the table or it does not exist, and its methods are named."""

from __future__ import annotations

import pytest

from headgate.proxy.errors import MethodNotAllowedError, UnknownPathError
from headgate.proxy.faces import Face, FaceTable

CHAT = Face("chat", "POST", "/v1/chat", operation="chat")
LIST = Face("models", "GET", "/v1/models")
ONE = Face("models", "GET", "/v1/models/")
DELETE = Face("models", "DELETE", "/v1/models/")
TABLE = FaceTable([CHAT, LIST, ONE, DELETE])


@pytest.mark.parametrize(
    ("method", "path", "face"),
    [
        ("POST", "/v1/chat", CHAT),
        ("GET", "/v1/models", LIST),
        ("GET", "/v1/models/gpt/4:o", ONE),
        ("DELETE", "/v1/models/x", DELETE),
    ],
)
def test_a_row_is_found(method: str, path: str, face: Face) -> None:
    assert TABLE.serves(path)
    assert TABLE.find(method, path) is face


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v1/", "/v1/chat/", "/v1/chat/x", "/v1/models/", "/V1/chat", "//v1/chat"]
)
def test_what_is_not_in_the_table_does_not_exist(path: str) -> None:
    assert not TABLE.serves(path)
    with pytest.raises(UnknownPathError):
        TABLE.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/v1/chat", "POST"), ("HEAD", "/v1/models", "GET"), ("PUT", "/v1/models/x", "DELETE, GET")],
)
def test_another_method_is_refused_and_the_right_ones_are_named(method: str, path: str, allow: str) -> None:
    with pytest.raises(MethodNotAllowedError, match=f"takes {allow}") as raised:
        TABLE.find(method, path)
    assert raised.value.allow == allow


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat", "Unknown path '/chat'. The API is below '/v1': end the base_url with it."),
        ("/v1/v1/chat", "Unknown path '/v1/v1/chat'. '/v1' is in it twice: end the base_url with a single one."),
        ("/v1/chats", "Unknown path '/v1/chats'."),
    ],
)
def test_a_base_url_that_is_wrong_is_told(path: str, says: str) -> None:
    with pytest.raises(UnknownPathError) as raised:
        TABLE.find("POST", path)
    assert raised.value.message == says


def test_long_paths_are_quoted_in_part() -> None:
    with pytest.raises(UnknownPathError) as raised:
        TABLE.find("GET", "/" + "x" * 10_000)
    assert len(raised.value.message) < 200


def test_rows_are_listed_in_their_order() -> None:
    assert TABLE.rows() == [CHAT, LIST, ONE, DELETE]
    assert repr(CHAT) == "<Face POST /v1/chat>"
