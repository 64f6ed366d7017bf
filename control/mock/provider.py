"""What the mock says to a request: chat completions, the list of models, its own health, or a refusal.

Not here: connections (connection.py), what an answer says (dialects/mock.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...dialects.mock import CREATED, MockAnswer, answer
from ...proxy.errors import GatewayError, MethodNotAllowedError, ModelNotFoundError, UnknownPathError
from ...proxy.replies import error_reply, json_reply
from .fault import good
from .schedule import Schedule
from .steps import Data, Step, Wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...proxy.edge.downstream import RequestHead
    from ...proxy.replies import Reply
    from .fault import Fault

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
HEALTHS = ("/health", "/healthz")


class _Asked(msgspec.Struct):
    model: str = ""


_decode = msgspec.json.Decoder(_Asked).decode


class Script:
    """What is played for one request. `fault` None: a good answer, which is never hurried."""

    __slots__ = ("fault", "steps")

    def __init__(self, steps: Iterable[Step], fault: Fault | None = None) -> None:
        self.steps = steps
        self.fault = fault


class MockProvider:
    """`delay`: seconds before each event of a good answer."""

    def __init__(self, schedule: Schedule | None = None, *, delay: float = 0.0) -> None:
        self.schedule = schedule or Schedule()
        self._delay = delay

    def at_accept(self) -> Script | None:
        """What is played on a new connection instead of reading from it."""
        fault = self.schedule.at_accept()
        return None if fault is None else Script(fault.play(NOTHING), fault)

    def respond(self, head: RequestHead, body: bytes) -> Script:
        """The script for a request."""
        try:
            if head.path == CHAT:
                _demand("POST", head)
                return self._chat(body, http2=head.http_version == "2")
            _demand("GET", head)
            if head.path == MODELS:
                entry = {"id": "mock", "object": "model", "created": CREATED, "owned_by": "headgate"}
                return _plain(json_reply({"object": "list", "data": [entry]}))
            if head.path in HEALTHS:
                return _plain(json_reply({"status": "healthy"}))
            raise UnknownPathError("The mock provider speaks chat completions only.")
        except GatewayError as error:
            return refusal(error)

    def _chat(self, body: bytes, *, http2: bool) -> Script:
        made = answer(body)
        if made.status != 200:
            return Script(good(made))
        try:
            fault = self.schedule.at_request(_model(body))
        except KeyError as unknown:
            raise ModelNotFoundError(unknown.args[0], param="model") from None
        if fault is None:
            return Script(self._delayed(made) if self._delay else good(made))
        return Script(fault.play(made, http2=http2), fault)

    def _delayed(self, made: MockAnswer) -> Iterator[Step]:
        for number, step in enumerate(good(made)):
            if isinstance(step, Data) and number > 1:
                yield Wait(self._delay)
            yield step


NOTHING = MockAnswer(200, [], [b""])
"""The answer to no request."""


def refusal(error: GatewayError) -> Script:
    """An error as an answer."""
    return _plain(error_reply(error))


def _plain(reply: Reply) -> Script:
    return Script(good(MockAnswer(reply.status, reply.headers, [reply.body])))


def _demand(method: str, head: RequestHead) -> None:
    known = head.path in (CHAT, MODELS, *HEALTHS)
    if known and head.method != method:
        raise MethodNotAllowedError(f"'{head.path}' takes another method.", allow=method)


def _model(body: bytes) -> str:
    try:
        return _decode(body).model
    except msgspec.ValidationError:  # not a string: the mock takes any
        return ""
