"""What each filter costs: CPU per request of Headgate without it and with it, and with all of them, beside bare Envoy.

As in the comparison of gateways (bench.py), everything is started afresh in every round and stands for itself: A B C,
A B C. The chain that others are compared with is the shortest one, `retry` alone. Each filter is set as somebody would
set it who means it, and lets every request pass. One worker shares its counts with nobody, so `shared` is its own
memory; what counting together takes more, two workers show, both on the gateway's core.

Not here: parts of a filter by themselves (parts.py, stores.py).
"""

import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec

from headgate.control.keys import PREFIX
from headgate.filters.keys_file import PEPPER_FILE, KeyRecord, digest

from .bench import Plan, Subject, choose_cores, free_port, on_core, wait_ready
from .contestants import ALL, KEY, UnavailableError
from .load import PROVIDER_ADDRESSES, Load
from .process import running
from .traffic import MODEL

KEYS = 100_000
LIMITS = {"per": "key", "requests_per_minute": 10**9, "tokens_per_minute": 10**12}
AT_ONCE = {**LIMITS, "concurrent": 10_000}
CHAIN: Mapping[str, object] = {
    "auth": {"keys_file": "keys.db"},
    "rate_limit": LIMITS,
    "budget": {"per": "key", "usd_per_month": 1_000_000},
    "circuit_breaker": {},
    "headers": {"request": {"set": {"x-team": "search"}, "deny": ["x-stainless-*"]}, "response": {"deny": ["server"]}},
    "access_log": {"path": "access.log"},
    "retry": {"attempts": 3},
}
"""In the order in which they stand."""


@dataclass(frozen=True)
class Variant:
    """A chain that is measured: names of CHAIN beside `retry`."""

    name: str
    filters: Sequence[str] = ()
    store: str = "memory"
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, object] = field(default_factory=lambda: LIMITS)
    """Of `rate_limit`."""
    workers: int = 1


BASE = Variant("retry alone")
ALL_FILTERS = Variant("all filters, shared", list(CHAIN), "shared")
VARIANTS = (
    BASE,
    Variant(f"auth, {KEYS:,} keys", ["auth"]),
    Variant("rate_limit", ["rate_limit"]),
    Variant("the same, and how many at once", ["rate_limit"], limits=AT_ONCE),
    Variant("budget", ["budget"]),
    Variant("circuit_breaker", ["circuit_breaker"]),
    Variant("headers", ["headers"]),
    Variant("access_log", ["access_log"]),
    Variant("an answer that explains itself", headers={"x-headgate-explain": "1"}),
    ALL_FILTERS,
    Variant("all, and the answer explains itself", list(CHAIN), "shared", {"x-headgate-explain": "1"}),
    Variant("retry alone, two workers", store="shared", workers=2),
    Variant("all filters, shared by two workers", list(CHAIN), "shared", workers=2),
)


def compare(plan: Plan, *, alone: bool = False) -> dict[str, list[float]]:
    """Microseconds of CPU per request, by name of the variant and by round; `envoy` first where it can be had."""
    cores = choose_cores()
    rounds: dict[str, list[float]] = {}
    envoy = next(contestant for contestant in ALL if contestant.name == "envoy")
    try:
        home: Path | None = envoy.prepare()
    except UnavailableError as reason:
        print(f"skipped envoy: {reason}", file=sys.stderr)
        home = None
    with on_core(cores.load, alone=alone), closing(Load()) as load:
        for number in range(plan.rounds):
            if home is not None:
                with _folder() as work:
                    port = free_port()
                    launch = envoy.launch(home, work, port, load.provider_port)
                    figure = _measure(load, plan, launch.argv, work, cores.gateway, Subject(port, launch.headers))
                rounds.setdefault("envoy", []).append(figure)
            for variant in VARIANTS:
                with _folder() as work:
                    port = free_port()
                    write_config(variant, work, port, load.provider_port)
                    argv = [sys.executable, "-m", "headgate", "serve", "gateway.yaml"]
                    subject = Subject(port, {"Authorization": f"Bearer {KEY}", **variant.headers})
                    figure = _measure(load, plan, argv, work, cores.gateway, subject)
                rounds.setdefault(variant.name, []).append(figure)
            latest = ", ".join(f"{name} {figures[-1]:.1f}" for name, figures in rounds.items())
            print(f"round {number + 1}/{plan.rounds} µs/request: {latest}", file=sys.stderr)
    return rounds


def _measure(load: Load, plan: Plan, argv: Sequence[str], work: Path, core: int, subject: Subject) -> float:
    with running(argv, os.environ, work, core) as process:
        subject = Subject(subject.port, subject.headers, process.cpu, process.pss)
        wait_ready(load, process, subject)
        time.sleep(plan.rest)
        sample = load.plain(
            subject.port,
            subject.plain(),
            subject.cpu,
            connections=plan.connections,
            warm=plan.warm,
            seconds=plan.seconds,
        )
        if sample.failed:
            raise RuntimeError(f"{sample.failed} requests failed")
        return sample.cpu / max(1, sample.requests) * 1e6


def write_config(variant: Variant, work: Path, port: int, provider_port: int, *, keys: int = KEYS) -> None:
    """The gateway.yaml of the chain, and its `keys_file` where it has one."""
    urls = [{"url": f"http://{address}:{provider_port}/v1"} for address in PROVIDER_ADDRESSES]
    target = {"provider": "openai", "price": {"input": 0.15, "output": 0.6}}
    chain = {**CHAIN, "rate_limit": variant.limits}
    config = {
        "workers": variant.workers,
        "listeners": {"data": {"port": port}, "admin": {"port": 0}},
        "providers": {"openai": {"endpoints": urls, "api_key": "sk-provider-0123456789"}},
        "models": {MODEL: {"targets": [target]}, "*": {"targets": [{"provider": "openai"}]}},
        "filters": [{name: value} for name, value in chain.items() if name in variant.filters or name == "retry"],
        "stores": {"default": variant.store},
    }
    (work / "gateway.yaml").write_text(json.dumps(config))
    if "auth" in variant.filters:
        pepper, lines = _keys(keys)
        for name, data in ((PEPPER_FILE, pepper), ("keys.db", lines)):
            (work / name).write_bytes(data)
            (work / name).chmod(0o600)


@cache
def _keys(count: int) -> tuple[bytes, bytes]:
    """A pepper, and a keys_file of many keys under it, the client's among them."""
    pepper = secrets.token_hex(32).encode()
    lines = bytearray()
    for number in range(count):
        key = KEY if number == count // 2 else f"{PREFIX}{number:043d}"
        team = f"team-{number % 500}"
        made = digest(pepper, key.encode()).hex()
        record = KeyRecord(f"key-{number}", made, time.time(), team=team, roles=("viewer",))  # who may ask for explain
        lines += msgspec.json.encode(record) + b"\n"
    return pepper, bytes(lines)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        yield Path(folder)
