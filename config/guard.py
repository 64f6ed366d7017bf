"""The `guard` filter: what may not pass in texts, and what becomes of it."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from .fields import Filled, Name, Section, Size
from .safe_regex import measure

PATTERNS: Final = ("email", "credit_card", "iban", "phone", "api_key")
MOST_RULES: Final = 32


def _regex(value: str | None) -> str | None:
    if value is not None:
        measure(value)
    return value


def _sides(value: frozenset[str]) -> frozenset[str]:
    if not value:
        raise ValueError("must name request, answer, or both")
    return value


class GuardRule(Section):
    """One thing to look for."""

    name: Name
    """Stands in refusals and, in brackets, in the place of what was taken out. Required, unique."""

    pattern: Literal["email", "credit_card", "iban", "phone", "api_key"] | None = None
    """What to look for, built in. Default: none, and then `regex` must be written."""

    regex: Annotated[str | None, AfterValidator(_regex)] = None
    """What to look for, as a regular expression with bounded repeats. Default: none, and then `pattern` must be
    written."""

    on: Annotated[frozenset[Literal["request", "answer"]], AfterValidator(_sides)] = frozenset(("request", "answer"))
    """Where to look. Default [request, answer]."""

    action: Literal["block", "redact"] = "block"
    """`block` refuses the request or the answer, `redact` puts the name in its place. Default block."""

    @model_validator(mode="after")
    def _one(self) -> "GuardRule":
        if (self.pattern is None) == (self.regex is None):
            raise ValueError("must have a pattern or a regex, and not both")
        return self


def _rules(rules: tuple[GuardRule, ...]) -> tuple[GuardRule, ...]:
    if not 0 < len(rules) <= MOST_RULES:
        raise ValueError(f"must be 1 to {MOST_RULES} rules")
    if len({rule.name for rule in rules}) != len(rules):
        raise ValueError("two rules have the same name")
    return rules


class GuardConfig(Section):
    """What may not pass in the texts of requests and answers."""

    kind: Filled[Literal["guard"]] = "guard"

    rules: Annotated[tuple[GuardRule, ...], AfterValidator(_rules)]
    """What to look for. Required."""

    max_text: Size = Field(default=256 << 10)
    """Characters of text in one request or answer that are looked through; with more it is refused. Default 256KiB."""
