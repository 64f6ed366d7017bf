"""What each part of our own path costs: the real functions on the benchmark's traffic, a call at a time, no sockets.

Every part is timed apart, the best of several runs, because noise only ever adds. The sum is less than what a request
costs: the loop, the system calls, the garbage collector and the glue between the parts are not in it.

    python -m perf.parts [--save]
"""

import argparse
import gc
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from headgate.config.chain import AuthConfig
from headgate.dialects.openai import Chat
from headgate.filters.auth import Auth
from headgate.proxy.accounting.estimate import Estimator
from headgate.proxy.accounting.price_table import load_price_table
from headgate.proxy.accounting.prices import format_usd
from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import Spool
from headgate.proxy.edge.body import BodyBudget, RequestBody
from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.request_head import HttpRequestHead, read_head
from headgate.proxy.edge.response_head import response_head
from headgate.proxy.headers import to_downstream, to_upstream
from headgate.proxy.plan import Target, build_plan
from headgate.proxy.upstream.call import ResponseHead, UpstreamRequest
from headgate.proxy.upstream.h1_answer import AnswerReader
from headgate.proxy.upstream.h1_request import encode_head

from . import report, traffic
from .contestants import KEY

REPEATS = 40
RUN_SECONDS = 0.005


class Part(NamedTuple):
    """A named piece of work; `call` does it once."""

    name: str
    call: Callable[[], object]


class _Receiver:
    """Hears an answer and does nothing with it."""

    takes_wholes = False

    def __init__(self) -> None:
        self.head: ResponseHead | None = None

    def on_head(self, call: object, head: ResponseHead) -> None:
        del call
        self.head = head

    def on_data(self, call: object, data: bytes) -> None:
        pass


class _Call:
    """As much of a call as a reader of answers looks at."""

    def __init__(self) -> None:
        self.receiver = _Receiver()
        self.content_expected = True
        self.body = b""


class _Cluster:
    """As much of a cluster as a plan looks at."""

    name = "openai"
    unconfigured = stand_in = strained = False


_FIXED = b" HTTP/1.1\r\nhost: api.openai.com\r\nauthorization: Bearer sk-provider"


def per_request(folder: str) -> Iterator[Part]:
    """In the order of a request's life."""
    body = traffic.chat_body()
    message = traffic.request("127.0.0.1:8070", {"Authorization": f"Bearer {KEY}"}, body)
    limits = EdgeLimits()
    head, at = _head(message, limits)
    yield Part("read the request head", lambda: read_head(message, limits, "127.0.0.1"))

    budget = BodyBudget(1 << 30)

    def collect() -> None:
        held = RequestBody(len(body), budget)
        held.collect(message[at:], 1 << 25)
        held.content()
        held.release()

    yield Part("collect the body", collect)

    keys = AuthConfig.model_validate({"keys": [{"name": "app", "key": KEY}]})
    auth, presented = Auth(keys), head.header(b"authorization")
    yield Part("auth: digest and compare the key", lambda: auth.identify(presented, 0.0))

    opened = Opened("hg_0123456789abcdef00000001", 1.7e9, key="app", endpoint="chat")
    yield Part("encode the `opened` record", lambda: encode(opened))

    spool = Spool(folder, "perf", max_size=1 << 40, monotonic=time.monotonic, segment_size=1 << 30)
    line = encode(opened)
    yield Part("append it to the spool", lambda: spool.append(line))

    chat = Chat()
    yield Part("decode the body, find the model", lambda: chat.read(body, max_depth=64))
    yield Part("decode, and splice another model in", lambda: chat.encode(chat.read(body, max_depth=64), "gpt-4o"))

    target: Any = Target(_Cluster(), traffic.MODEL)  # type: ignore[arg-type]
    yield Part("plan", lambda: build_plan((target,), (), None, 0.0))
    yield Part("choose the upstream's fields", lambda: to_upstream(head, b"hg_0123456789abcdef00000001", frozenset()))

    fields = to_upstream(head, b"hg_0123456789abcdef00000001", frozenset())
    upstream = UpstreamRequest(b"POST", b"/chat/completions", fields, body)
    yield Part("encode the upstream's head", lambda: encode_head(upstream, b"/v1", _FIXED))

    reader, call = AnswerReader(), _Call()

    def parse() -> None:
        reader.start(call)  # type: ignore[arg-type]
        reader.feed(traffic.ANSWER)

    yield Part("parse the answer", parse)

    parse()
    answer = call.receiver.head
    assert answer is not None
    content = traffic.ANSWER.partition(b"\r\n\r\n")[2]
    yield Part("read usage and text of the answer", lambda: chat.read_answer(content))

    prices = load_price_table(folder, wall=time.time)
    facts = chat.read_answer(content)

    def price() -> str:
        found = prices.lookup("https://api.openai.com/v1", traffic.MODEL)
        assert found is not None
        assert facts.usage is not None
        return format_usd(found.cost(facts.usage) or 0.0)

    yield Part("price it", price)
    yield Part("choose the client's fields", lambda: to_downstream(answer))

    ours = to_downstream(answer) + [(b"x-headgate-%d" % n, b"0123456789abcdef") for n in range(14)]
    yield Part("encode the client's head", lambda: response_head(200, ours, len(content), chunked=False))

    done = Done(
        "hg_0123456789abcdef00000001", 1.7e9, 200, key="app", endpoint="chat", route="default", model=traffic.MODEL,
        provider="openai", upstream_model=traffic.MODEL, upstream_request_id="req_5c1f6b0ed7a94cf2a1d1", attempts=1,
        prompt_tokens=187, completion_tokens=62, usage_source="reported", cost_usd=0.00006525, cost_source="vendor",
        duration_ms=412.123, upstream_ms=411.9, overhead_ms=0.2, bytes_in=1022, bytes_out=682, config="9916ec252cd4",
    )  # fmt: skip
    yield Part("encode the `done` record", lambda: encode(done))

    last = encode(done)
    yield Part("append it to the spool", lambda: spool.append(last))


def per_stream() -> Iterator[Part]:
    """What a stream has that a plain request has not."""
    body = traffic.chat_body(0)
    chat, estimator = Chat(), Estimator()
    facts = chat.read(body, max_depth=64)
    yield Part("estimate the prompt", lambda: estimator.estimate_prompt(traffic.MODEL, body))
    yield Part("open a reader of the stream", lambda: chat.open_stream(facts))


def per_event() -> Iterator[Part]:
    """What each event of a stream passes."""
    framed = traffic.content(7)
    event = framed.partition(b"\r\n")[2][:-2]
    reader, call = AnswerReader(), _Call()
    reader.start(call)  # type: ignore[arg-type]
    reader.feed(traffic.STREAM_HEAD)
    yield Part("unframe the chunk", lambda: reader.feed(framed))

    chat = Chat()
    stream = chat.open_stream(chat.read(traffic.chat_body(0), max_depth=64))
    yield Part("look into the event", lambda: stream.feed(event))
    yield Part("frame it again", lambda: b"%x\r\n%b\r\n" % (len(event), event))


def _head(message: bytes, limits: EdgeLimits) -> tuple[HttpRequestHead, int]:
    found = read_head(message, limits, "127.0.0.1")
    assert found is not None
    return found


def costs(parts: Sequence[Part]) -> list[float]:
    """Seconds of one call of each: the best run of several, all parts in turn, so that a bad moment meets each once."""
    timers = [timeit.Timer(part.call) for part in parts]
    numbers = [max(1, int(RUN_SECONDS / (timer.timeit(200) / 200))) for timer in timers]
    gc.collect()
    runs = [
        [timer.timeit(number) / number for timer, number in zip(timers, numbers, strict=True)] for _ in range(REPEATS)
    ]
    return [min(column) for column in zip(*runs, strict=True)]


def table() -> str:
    """Markdown: every part, and the sum of each group."""
    lines = ["| part | µs |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        groups = {
            "a request": list(per_request(folder)),
            "more for a stream": list(per_stream()),
            "an event": list(per_event()),
        }
        parts = [part for group in groups.values() for part in group]
        taken = dict(zip(map(id, parts), costs(parts), strict=True))
    for title, group in groups.items():
        lines.append(f"| **{title}** | **{sum(taken[id(part)] for part in group) * 1e6:.2f}** |")
        lines += [f"| {part.name} | {taken[id(part)] * 1e6:.2f} |" for part in group]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.parts", description="What each part of our own path costs.")
    parser.add_argument("--save", action="store_true", help="put the table into perf/README.md")
    args = parser.parse_args(argv)
    text = table()
    print(text)
    if args.save:
        report.save("parts", f"`python -m perf.parts`, {report.machine()}.\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
