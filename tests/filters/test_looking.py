"""looking: however long and slow a text is, between two turns of the loop only a slice of it is looked at."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import GuardRule
from headgate.filters.looking import TOKENS, Looking, all_texts, at_once, in_turn, is_text, look_at, look_through
from headgate.filters.redaction import PER_TEXT, SHORTEST, STEPS, Found, Rule, scan, search, slice_for
from headgate.proxy.errors import GatewayError, GuardTooLargeError
from tests_support.answers import chat_completion, json_response
from tests_support.caller import eventually
from tests_support.gateway import gateway_over
from tests_support.raw import CHAT, RawClient, request

PATTERNS = ("email", "credit_card", "iban", "phone", "api_key")
SLOW = ("2222 ", "4444-", "DE12 ", "AB12CD34 ", "a@b.", "+1-2-3", "a", "4111 1111 1111 1112 ", "ann@example.com ")
EMAIL, CARD = "ann@example.com", "4111 1111 1111 1111"


class Counting(Rule):
    """Counts the characters that it is asked to look at."""

    looked = 0

    def find(self, text: str, at: int, before: int) -> Found | None:
        found = super().find(text, at, before)
        # It reads on as far as the longest match of a beginning in range, and no further.
        self.looked += (found.end if found is not None else min(before + self._known.width + 1, len(text))) - at
        return found


def rules(*what: dict[str, Any]) -> list[Counting]:
    written = what or tuple({"pattern": name} for name in PATTERNS)
    return [
        Counting(GuardRule.model_validate({"name": f"r{n}", "action": "redact", **one}))
        for n, one in enumerate(written)
    ]


def ignore(rule: Rule) -> None:
    """Let it be taken out."""


def never() -> Any:
    raise AssertionError("not too large")


def looked_at_each_turn(made: list[Counting], looking: Looking) -> list[int]:
    """Characters times rules, turn by turn."""
    turns = []
    done = False
    while not done:
        before = sum(rule.looked for rule in made)
        try:
            next(looking)
        except StopIteration:
            done = True
        turns.append(sum(rule.looked for rule in made) - before)
    return turns


@pytest.mark.parametrize("slow", SLOW)
def test_between_two_turns_only_a_slice_is_looked_at(slow: str) -> None:
    made = rules()
    text = (slow * 60_000)[:100_000]
    widest = max(rule._known.width for rule in made)
    turns = looked_at_each_turn(made, look_at(made, text, ignore))
    assert len(turns) > len(text) / slice_for(made)
    # A match that is not the first to begin is looked for again, behind that one.
    assert max(turns) <= len(made) * (slice_for(made) + widest + 1) * (2 if EMAIL in slow else 1)


def test_many_small_texts_count_like_a_long_one() -> None:
    made = rules()
    source = json.dumps({"input": ["a"] * 30_000, "role": ["assistant"] * 30_000})
    turns = looked_at_each_turn(made, look_through(made, source, 1 << 20, ignore, never))
    assert len(turns) > 60_000 * PER_TEXT / slice_for(made) * 0.9


def test_brackets_and_numbers_take_turns_too() -> None:
    made = rules()
    source = json.dumps({"input": list(range(100_000)), "text": "a"})
    for looking in (look_through(made, source, 9, ignore, never), all_texts(source, 9, never)):
        assert len(list(looking)) >= 100_000 // TOKENS


def test_what_a_service_is_told_is_bounded_as_it_is_collected() -> None:
    def too_large() -> GatewayError:
        return GuardTooLargeError("too large")

    source = json.dumps({"input": ["abc", "", "data:x"], "role": "user"})
    assert [place.text for place in at_once(all_texts(source, 3, too_large))] == ["abc"]
    with pytest.raises(GuardTooLargeError):
        at_once(all_texts(source, 2, too_large))


def test_a_body_without_names_is_text() -> None:
    assert is_text((0, 1))
    assert not is_text(("messages", 0, "role"))


def test_what_can_match_in_many_ways_is_looked_at_in_shorter_slices() -> None:
    quick = rules({"regex": "PRJ-[0-9]{4}"})
    slow = rules(*({"regex": "[a-z]{0,31}[a-z]{0,31}ab[0-9]"} for _ in range(20)))
    assert slice_for(quick) == STEPS
    assert slow[0].ways == 1024
    assert slice_for(slow) == SHORTEST
    assert slice_for(rules()) == STEPS // sum(rule.ways for rule in rules())


@given(
    st.lists(
        st.one_of(st.sampled_from([*SLOW, EMAIL, CARD, " ", "DE89370400440532013000"]), st.text(max_size=4)),
        max_size=30,
    ),
    st.integers(1, 60),
)
def test_in_slices_it_finds_what_it_finds_in_the_whole(pieces: list[str], slice_: int) -> None:
    made, text, matches = rules(), "".join(pieces), list[Found]()
    assert sum(scan(made, text, matches, slice_)) == len(text)
    assert matches == search(made, text)


async def test_others_run_in_between() -> None:
    made = rules()
    text = "2222 " * 20_000
    rounds, over = 0, False

    async def others() -> None:
        nonlocal rounds
        while not over:
            rounds += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    changed = await in_turn(look_at(made, text, ignore))
    over = True
    await other
    assert rounds >= len(text) // slice_for(made)
    assert changed == at_once(look_at(made, text, ignore))


async def test_a_long_request_and_a_long_answer_lose_what_short_ones_do() -> None:
    long = "word " * 20_000
    changes = {"filters": [{"guard": {"rules": [{"name": "email", "pattern": "email", "action": "redact"}]}}]}
    script = json_response(chat_completion(f"{long}{EMAIL}"))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{EMAIL} {long}{EMAIL}"}]}).encode()
    async with gateway_over(script, auth=False, changes=changes) as (gateway, upstream):
        answer = await gateway.post(body, key=None)
        [row] = await gateway.rows(1)
    assert upstream.requests[0].body == body.replace(EMAIL.encode(), b"[email]")
    assert answer.json()["choices"][0]["message"]["content"] == f"{long}[email]"
    assert row.outcome == "ok"


async def test_a_long_request_is_blocked_and_sized_as_a_short_one() -> None:
    rules_ = [{"name": "card", "pattern": "credit_card"}]
    changes = {"filters": [{"guard": {"rules": rules_, "max_text": "64KiB"}}]}
    async with gateway_over(json_response(chat_completion()), auth=False, changes=changes) as (gateway, upstream):
        answers = [
            await gateway.post(json.dumps({"model": "m", "messages": [{"content": text}]}).encode(), key=None)
            for text in ("a " * 30_000 + CARD, "a " * 33_000)
        ]
    assert [(one.status, one.error["code"]) for one in answers] == [
        (400, "guard_blocked"),
        (413, "guard_text_too_large"),
    ]
    assert upstream.requests == []


async def test_a_client_that_leaves_meanwhile_leaves_nothing() -> None:
    changes = {"filters": [{"guard": {"rules": [{"name": "card", "pattern": "credit_card"}]}}]}
    body = json.dumps({"model": "m", "messages": [{"content": "2222 " * 40_000}]}).encode()
    async with gateway_over(json_response(chat_completion()), auth=False, changes=changes) as (gateway, upstream):
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, body))
            await eventually(lambda: bool(gateway.half.engine.live))  # it has begun
            client.leave(reset=True)
        [row] = await gateway.rows(1)
    assert (row.outcome, upstream.requests) == ("cancelled", [])
