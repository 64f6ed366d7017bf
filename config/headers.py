"""The `headers` filter: which fields cross the gateway, beyond what it decides by itself.

Some names are not the operator's to change in either direction: they frame the message, belong to one connection, carry
a credential, or are the gateway's own. A rule that names one is refused here; a rule with `*` leaves them alone.
proxy/headers.py keeps all of them from passing, or sets them itself; a test holds the two lists together.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema, field_serializer

from .fields import Filled, Named, Section
from .secret import MASK, ExpandedText

_HOP: Final = frozenset(
    (
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "trailers", "transfer-encoding", "upgrade",
        "http2-settings", "content-length",
    )
)  # fmt: skip
_BOTH: Final = _HOP | {"content-type", "content-encoding", "x-request-id"}
KEPT_UP: Final = _BOTH | {
    "host", "expect", "authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "accept-encoding", "origin",
    "referer", "forwarded", "x-real-ip", "via",
}  # fmt: skip
"""Request fields that no rule touches."""
KEPT_UP_PREFIXES: Final = ("x-headgate-", "x-forwarded-", "proxy-", "sec-websocket-")
KEPT_DOWN: Final = _BOTH | {"set-cookie", "date"}
"""Fields of an answer that no rule touches."""
KEPT_DOWN_PREFIXES: Final = ("x-headgate-", "proxy-", "sec-websocket-")
MOST_RULES: Final = 256

_TOKEN = re.compile(r"[a-z0-9!#$%&'+.^_`|~-]{1,64}")
_VALUE = re.compile(r"[!-~]([ -~]{0,8190}[!-~])?")
_SENSITIVE = re.compile(r"key|token|secret|password|credential|auth|cookie|dsn", re.IGNORECASE)


def is_kept(name: str, direction: Literal["request", "response"]) -> bool:
    """Whether no rule may touch this field; `name` in lower case."""
    names, prefixes = (KEPT_UP, KEPT_UP_PREFIXES) if direction == "request" else (KEPT_DOWN, KEPT_DOWN_PREFIXES)
    return name in names or name.startswith(prefixes)


def _name(value: str) -> str:
    name = value.lower()
    if not _TOKEN.fullmatch(name):
        raise ValueError("must be the name of a header, of at most 64 characters")
    return name


def _pattern(value: str) -> str:
    return "*" if value == "*" else _name(value.removesuffix("*")) + ("*" if value.endswith("*") else "")


def _value(value: object) -> str:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError("must be 1 to 8192 printable ASCII characters without a space at either end")
    return value


def _once(value: Any) -> Any:
    if isinstance(value, Mapping):
        names = [str(name).lower() for name in value]
        if len(names) != len(set(names)):
            raise ValueError("names a header twice; upper and lower case are the same")
    return value


_Name = Annotated[str, AfterValidator(_name)]
_Pattern = Annotated[str, AfterValidator(_pattern)]
_Value = Annotated[str, PlainValidator(_value), WithJsonSchema({"type": "string"})]
_NamePair = Annotated[Named[_Name, _Name], BeforeValidator(_once)]
_NameValue = Annotated[Named[_Name, _Value], BeforeValidator(_once)]


class HeaderRules(Section):
    """What is done in one direction: forward, deny, rename, set, in this order."""

    forward: tuple[_Pattern, ...] | None = None
    """Names, or beginnings and `*`, that pass; all others do not. Default: all that are not denied."""

    deny: tuple[_Pattern, ...] = ()
    """Names, or beginnings and `*`, that do not pass. Default: none."""

    rename: _NamePair = Field(default_factory=dict)
    """Old names and new names; what came under a new name by itself does not pass. Default: none."""

    set: _NameValue = Field(default_factory=dict, repr=False)
    """Names and values; a value replaces what came under its name. Default: none."""

    @field_serializer("set", when_used="json")
    def _mask(self, values: Mapping[str, str]) -> dict[str, str]:
        return {
            name: MASK if isinstance(value, ExpandedText) or _SENSITIVE.search(name) else value
            for name, value in values.items()
        }


def _checked(direction: Literal["request", "response"]) -> AfterValidator:
    def check(rules: HeaderRules) -> HeaderRules:
        if len(rules.forward or ()) + len(rules.deny) + len(rules.rename) + len(rules.set) > MOST_RULES:
            raise ValueError(f"must have at most {MOST_RULES} rules")
        for name in (*(rules.forward or ()), *rules.deny, *rules.rename, *rules.rename.values(), *rules.set):
            if name != "*" and is_kept(name, direction):
                raise ValueError(
                    f"'{name}' is not this filter's to change: it is the gateway's own, or its connection's"
                )
        made = [*rules.rename.values(), *rules.set]
        if twice := next((name for name in made if made.count(name) > 1), None):
            raise ValueError(f"'{twice}' is made twice")
        if both := next((name for name in rules.rename if name in rules.rename.values()), None):
            raise ValueError(f"'{both}' is an old name and a new one")
        return rules

    return AfterValidator(check)


class HeadersConfig(Section):
    """Which header fields pass, beyond what the gateway decides by itself."""

    kind: Filled[Literal["headers"]] = "headers"

    request: Annotated[HeaderRules, _checked("request")] = Field(default_factory=HeaderRules)
    """From the client to the provider. Default: nothing is changed."""

    response: Annotated[HeaderRules, _checked("response")] = Field(default_factory=HeaderRules)
    """From the provider, or from the gateway, to the client. Default: nothing is changed."""
