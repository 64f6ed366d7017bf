"""secret: what is secret is used and never shown."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from pydantic import BaseModel, ValidationError

from headgate.config import Secret
from headgate.config.secret import ExpandedText

TEXT = "sk-canary-9f8e7d6c5b4a"


class Holder(BaseModel):
    key: Secret
    others: tuple[Secret, ...] = ()


def test_only_reveal_gives_the_text() -> None:
    secret = Secret(TEXT, "OPENAI_API_KEY")
    assert secret.reveal() == TEXT
    assert secret.origin == "OPENAI_API_KEY"
    holder = Holder(key=secret, others=(secret,))
    shown = [
        str(secret),
        repr(secret),
        f"{secret} {secret!r} {secret!s:>40}",
        "%s %r" % (secret, secret),  # noqa: UP031 - this form too must not show it
        str(holder),
        repr(holder),
        str(holder.model_dump()),
        holder.model_dump_json(),
        json.dumps(holder.model_dump(mode="json")),
        str(hash(secret)),
        secret.digest(),
        str(dir(secret)),
    ]
    assert not [text for text in shown if TEXT in text or TEXT[3:] in text]
    assert holder.model_dump(mode="json") == {"key": "***", "others": ["***"]}


def test_an_empty_secret_is_false_and_looks_empty() -> None:
    assert not Secret("")
    assert Secret("x")
    assert (str(Secret("")), repr(Secret("x"))) == ("", "Secret('***')")


def test_secrets_are_equal_by_value() -> None:
    assert Secret(TEXT, "A") == Secret(TEXT, "B")
    assert hash(Secret(TEXT, "A")) == hash(Secret(TEXT))
    assert Secret(TEXT) != Secret(TEXT + "x")
    assert Secret("ü") != Secret("u")
    assert Secret(TEXT) != TEXT


def test_it_is_neither_changed_nor_pickled() -> None:
    secret = Secret(TEXT)
    with pytest.raises(AttributeError):
        secret.origin = "X"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    assert copy.copy(secret) is secret
    assert copy.deepcopy(secret) is secret


def test_a_digest_changes_with_the_text_and_with_nothing_else() -> None:
    assert Secret(TEXT, "A").digest() == Secret(TEXT, "B").digest() != Secret(TEXT + "x").digest()


@pytest.mark.parametrize("text", ["a b", "a\n", "\ta", "a\x00", "clé", "x" * 9000])
def test_what_no_header_can_carry_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"key": Secret(text, "KEY")})
    (problem,) = caught.value.errors(include_input=False, include_url=False)
    assert problem["msg"].startswith("Value error, KEY ")
    assert text not in problem["msg"]


def test_something_else_than_text_is_no_secret() -> None:
    with pytest.raises(ValidationError, match="must be text"):
        Holder.model_validate({"key": 5})


def test_expanded_text_is_a_str_that_is_masked_where_it_is_shown() -> None:
    text = ExpandedText(TEXT)
    assert text == TEXT
    assert TEXT not in repr({"a": [text]})
