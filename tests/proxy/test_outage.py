"""dispatch and the retry budget in an outage: what fails is not asked much more often for it, and not all at once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headgate.proxy.errors import ConnectError
from tests_support.answers import chat_completion, json_response
from tests_support.relay import Relay

if TYPE_CHECKING:
    from tests_support.calls import FakeCall

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
GOOD = json_response(chat_completion())
RATE = 300
STEP = 0.01


class Outage:
    """A provider that refuses every connection; `asked` has the time of each attempt."""

    def __init__(self) -> None:
        self.relay = Relay()
        self.asked: list[float] = []
        self._answered = 0

    @property
    def _calls(self) -> list[FakeCall]:
        return self.relay.providers[0].calls

    def refuse(self) -> None:
        """Everything that was sent since the last time fails."""
        while self._answered < len(self._calls):
            call = self._calls[self._answered]
            self._answered += 1
            self.asked.append(self.relay.clock.monotonic())
            call.fail(ConnectError("refused"))

    def ask(self) -> None:
        """One more request, without the pause that `Relay.ask` makes."""
        self.relay.ask_now(BODY)

    def go_on(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.relay.clock.advance(STEP)
            self.refuse()


async def test_a_provider_that_fails_all_is_asked_a_fifth_more_and_ten_times_a_second() -> None:
    outage = Outage()
    seconds, sent = 20, 0
    for tick in range(round(seconds / STEP)):
        while sent < RATE * tick * STEP:
            outage.ask()
            sent += 1
        outage.relay.clock.advance(STEP)
        outage.refuse()
    assert 1.1 * sent < len(outage.asked) <= 1.2 * sent + 10 * seconds
    outage.go_on(6)
    assert outage.relay.at_rest()


async def test_a_thousand_that_fail_at_once_do_not_come_back_at_once() -> None:
    outage = Outage()
    for _ in range(1000):
        outage.ask()
    outage.refuse()
    first = len(outage.asked)
    assert first == 1000
    outage.go_on(5)
    retries = outage.asked[first:]
    slots = Counter(int((at - outage.asked[0]) / 0.1) for at in retries)
    assert len(retries) >= 200
    assert max(slots.values()) <= 0.15 * len(retries)
    assert outage.relay.at_rest()
