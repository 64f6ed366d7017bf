"""Values that are used but never shown.

`repr`, `str`, formatting, `model_dump` and JSON give `***`; only `reveal()` gives the text, so a
search for that word finds every use. Pickling is refused: a pickle is a copy nobody redacts.
"""

import hmac
from hashlib import sha256
from typing import Any, Final, NoReturn

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

MASK: Final = "***"
MAX_LENGTH: Final = 8192


class ExpandedText(str):
    """Text that `${…}` gave where no secret is expected: an ordinary str, but masked where it would be shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK)


class Secret:
    """A secret text, and `origin`: the variable or `file:` it came from, for messages. False where empty."""

    __slots__ = ("_text", "origin")

    origin: str | None

    def __init__(self, text: str, origin: str | None = None) -> None:
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "origin", origin)

    def reveal(self) -> str:
        """The text itself."""
        text: str = object.__getattribute__(self, "_text")
        return text

    def flaw(self) -> str | None:
        """Why it cannot stand in a header, or None."""
        text = self.reveal()
        if len(text) <= MAX_LENGTH and text.isascii() and text.isprintable() and " " not in text:
            return None
        what = self.origin or "a secret"
        if len(text) > MAX_LENGTH:
            return f"{what} is longer than {MAX_LENGTH} characters"
        return f"{what} holds a space, a control or a non-ASCII character"

    def digest(self) -> str:
        """SHA-256 in hex, for telling whether a secret changed without keeping it."""
        return sha256(self.reveal().encode()).hexdigest()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret is immutable")

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __str__(self) -> str:
        return MASK if self else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Secret":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str),
            json_schema_input_schema=core_schema.str_schema(),
        )

    @classmethod
    def _validate(cls, value: object) -> "Secret":
        secret = cls(value) if isinstance(value, str) else value
        if not isinstance(secret, cls):
            raise ValueError("must be text")
        if flaw := secret.flaw():
            raise ValueError(flaw)
        return secret
