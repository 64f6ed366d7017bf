"""The `guard` filter: what may not pass in texts, and what becomes of it."""

from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from .fields import Count, Filled, Name, Section, Size, Wait
from .safe_regex import measure
from .secret import Secret

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


def _service_url(value: str) -> str:
    try:
        url = urlsplit(value)
        url.port  # noqa: B018 - it raises where it is none
    except ValueError:
        raise ValueError("must be a URL like http://127.0.0.1:8099/judge") from None
    if url.scheme not in ("http", "https") or not url.hostname or not value.isascii() or not value.isprintable():
        raise ValueError("must begin with https:// or http:// and name a host")
    if "@" in url.netloc or " " in value or "?" in value or "#" in value:
        raise ValueError("must hold no user, query or fragment; a key belongs in 'api_key'")
    return value


class GuardHttp(Section):
    """A service of the operator's own that judges texts."""

    url: Annotated[str, AfterValidator(_service_url), Field(max_length=2048)]
    """Where texts are sent, by POST. Required."""

    timeout: Wait = timedelta(seconds=1)
    """How long one verdict may take, connecting included. Default 1s."""

    api_key: Secret | None = None
    """Sent as bearer token. Default: nothing is sent."""

    concurrent: Count = 64
    """Connections to it, in each worker; as many calls more may wait for one. Default 64."""


class GuardRule(Section):
    """One thing to look for, or one service to ask."""

    name: Name
    """Stands in refusals and, in brackets, in the place of what was taken out. Required, unique."""

    pattern: Literal["email", "credit_card", "iban", "phone", "api_key"] | None = None
    """What to look for, built in. Default: none, and then `regex` or `http` must be written."""

    regex: Annotated[str | None, AfterValidator(_regex)] = None
    """What to look for, as a regular expression with bounded repeats. Default: none, and then `pattern` or `http` must
    be written."""

    http: GuardHttp | None = None
    """A service that says what may pass. Default: none, and then `pattern` or `regex` must be written."""

    on: Annotated[frozenset[Literal["request", "answer"]], AfterValidator(_sides)] = frozenset(("request", "answer"))
    """Where to look. Default [request, answer]; with `http` [request]."""

    action: Literal["block", "redact"] = "block"
    """`block` refuses the request or the answer, `redact` puts the name in its place; a service says so itself. Default
    block."""

    fail: Literal["open", "closed"] = "closed"
    """Without a verdict of the service: `closed` refuses, `open` lets pass. Default closed."""

    streams: Literal["refuse", "pass"] = "refuse"
    """A service judges whole answers: with a rule on answers, streams are refused, or pass unjudged. Default refuse."""

    @model_validator(mode="before")
    @classmethod
    def _services_see_requests(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("http") is not None and "on" not in data:
            return {**data, "on": ["request"]}
        return data

    @model_validator(mode="after")
    def _one(self) -> "GuardRule":
        if [self.pattern, self.regex, self.http].count(None) != 2:
            raise ValueError("must have a pattern, a regex or http, and one of them alone")
        written = self.model_fields_set
        if self.http is not None and "action" in written:
            raise ValueError("action: the service says what is to be done")
        if self.http is None and (alone := {"fail", "streams"} & written):
            raise ValueError(f"{min(alone)}: is for a rule with http")
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
