"""Two recordings of the same requests, compared: what a provider heard directly, and what it heard through Headgate.

The idea: every field, the method, the target and every byte of the body must be equal, but for a short list of rewrites
that are the product's own promise. Each of these is undone here only in exactly the form it is documented in, and
counted, so that a rewrite that is not on the list, or goes further than it says, is a difference.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .upstream import Request

CONNECTION = {"host", "connection", "keep-alive", "transfer-encoding", "content-length"}
"""Of one hop. The body is compared without its framing, so how it was framed is of one hop, too."""
CREDENTIAL = {"authorization"}
ASKS_FOR_USAGE = ("/chat/completions", "/completions")


class Heard(NamedTuple):
    """One request as the provider got it."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes


class Compared(NamedTuple):
    """`differences` is what must be empty; the rest says how much was looked at and what was rewritten as promised."""

    equal: int
    answered: int
    rewrites: Counter[str]
    differences: list[str]


def by_mark(requests: Iterable[Request], header: str) -> dict[str, Heard]:
    """The requests that carry the mark. The boundary of a form is random: every one gets the same name."""
    return {mark: _heard(one, header) for one in requests if (mark := one.header(header)) is not None}


def compare(
    direct: Mapping[str, Heard], through: Mapping[str, Heard], *, answered_here: re.Pattern[str], credential: str
) -> Compared:
    """`answered_here`: `METHOD target` of requests that the gateway answers itself, and that may not arrive. What does
    arrive through it must carry `credential`, the provider's own, and none of the client's."""
    rewrites: Counter[str] = Counter()
    differences: list[str] = []
    equal = answered = 0
    for mark, sent in direct.items():
        got = through.get(mark)
        if got is None:
            if answered_here.fullmatch(f"{sent.method} {sent.target}"):
                answered += 1
            else:
                differences.append(f"{mark}: {sent.method} {sent.target} did not arrive")
            continue
        found = _differences(sent, got, rewrites)
        if (carried := [value for name, value in got.fields if name in CREDENTIAL]) != [credential]:
            found.append(f"carries the credentials {carried}")
        differences += [f"{mark}: {sent.method} {sent.target}: {one}" for one in found]
        equal += not found
    alone = sorted(through.keys() - direct.keys())
    differences += [f"{mark}: {through[mark].target} arrived only through Headgate" for mark in alone]
    return Compared(equal, answered, rewrites, differences)


def _heard(request: Request, header: str) -> Heard:
    fields, body = [one for one in request.headers if one[0] != header], request.body
    boundary = re.search(r'boundary="?([^";]+)', request.header("content-type") or "")
    if boundary is None:
        return Heard(request.method, request.target, tuple(fields), body)
    named = tuple((name, value.replace(boundary[1], "BOUNDARY")) for name, value in fields)
    return Heard(request.method, request.target, named, body.replace(boundary[1].encode(), b"BOUNDARY"))


def _differences(sent: Heard, got: Heard, rewrites: Counter[str]) -> list[str]:
    found = []
    if (sent.method, sent.target) != (got.method, got.target):
        found.append(f"arrived as {got.method} {got.target}")
    before, after = _end_to_end(sent), _end_to_end(got)
    if "x-request-id" not in before and "x-request-id" in after:
        del after["x-request-id"]
        rewrites["x-request-id added"] += 1
    if after.get("accept-encoding") == ["identity"] and before.get("accept-encoding") != ["identity"]:
        before.pop("accept-encoding", None)
        del after["accept-encoding"]
        rewrites["accept-encoding is identity"] += 1
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    found += [f"{name}: {before.get(name)} became {after.get(name)}" for name in names]
    if sent.body != got.body:
        if _without_usage(sent, got) == sent.body:
            rewrites["stream_options.include_usage added"] += 1
        else:
            found.append(f"body {_excerpt(sent.body, got.body)}")
    return found


def _end_to_end(heard: Heard) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in heard.fields:
        if name not in CONNECTION | CREDENTIAL:
            fields.setdefault(name, []).append(value)
    return fields


def _without_usage(sent: Heard, got: Heard) -> bytes:
    """A stream's request as it was before its usage was asked for; every other byte is as it arrived."""
    if not sent.target.endswith(ASKS_FOR_USAGE) or b'"stream":true' not in sent.body:
        return got.body
    asked = json.loads(sent.body).get("stream_options")
    for added, was in (
        (b',"stream_options":{"include_usage":true}', b""),
        (b',"include_usage":true', b""),
        (b'"include_usage":true', b'"include_usage":false'),
    ):
        if not (asked or {}).get("include_usage") and got.body.count(added) == 1:
            return got.body.replace(added, was)
    return got.body


def _excerpt(sent: bytes, got: bytes) -> str:
    at = next(
        (n for n, (one, other) in enumerate(zip(sent, got, strict=False)) if one != other), min(len(sent), len(got))
    )
    return f"from byte {at}: {sent[max(0, at - 40) : at + 80]!r} became {got[max(0, at - 40) : at + 80]!r}"
