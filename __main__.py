"""The `headgate` command: reads its arguments and hands over. Every command's `-h` is enough to use it.

What a command needs is imported when it runs: `headgate version` must not load a server, and no command loads a client
library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .control.arguments import DEFAULT_FILE, make_parser, nearest, worker_command

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Coroutine, Sequence

    from .config import ConfigError, GatewayConfig, Listener
    from .control.process.source import ConfigSource, Loaded

OK, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 when something failed, 2 when what was asked for is wrong."""
    parser, commands = make_parser(
        {
            "serve": _serve,
            "check": _check,
            "schema": _schema,
            "usage": _usage,
            "keys": _keys,
            "explain": _explain,
            "mock": _mock,
            "version": _version,
            "_worker": _worker,
        }
    )
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return USAGE
    if [*argv] == ["--version"]:
        argv = ["version"]
    if not argv[0].startswith("-") and argv[0] not in commands:
        return _fail(f"there is no command '{argv[0][:64]}'{nearest(argv[0], commands)}", USAGE)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _file(named: str | None) -> str | None:
    return named if named is not None else DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None


def _version_text() -> str:
    from importlib.metadata import version

    return version("headgate")


def _fail(message: object, code: int = FAILED) -> int:
    print(f"headgate: {message}", file=sys.stderr)
    return code


def _refuse(error: ConfigError, name: str = "") -> int:
    """Every problem on a line of its own; `name` is the file that problems without one are of."""
    print(error.in_file(name), file=sys.stderr)
    count = len(error.problems)
    return _fail(f"the config is refused: {count} problem{'s' if count != 1 else ''}", USAGE)


def _serve(arguments: Namespace) -> int:
    from .control.process.signals import hold_signals

    hold_signals()
    from .config import ConfigError
    from .control.logs import configure
    from .control.process.source import ConfigSource

    configure(arguments.log_level)
    source = ConfigSource(_file(arguments.file), arguments.workers)
    try:
        loaded = source.loaded()
    except ConfigError as error:
        return _refuse(error)
    _raise_file_limit()
    if loaded.config.workers == 1:
        return _run(_serve_single(source, loaded))
    return _run(_serve_many(source, loaded, arguments.log_level))


async def _serve_single(source: ConfigSource, loaded: Loaded) -> int:
    from .control.process.single import run_single
    from .gateway import Gateway

    return await run_single(Gateway(loaded.config), source, loaded, _version_text(), _announce)


async def _serve_many(source: ConfigSource, loaded: Loaded, log_level: str) -> int:
    from functools import partial

    from .control.process.supervisor import Supervisor
    from .control.resources import open_provider
    from .gateway import check_startable
    from .proxy.clock import Deadlines, LoopClock

    clock = LoopClock()
    deadlines = Deadlines(clock)
    check_startable(loaded.config, clock)
    supervisor = Supervisor(
        source,
        loaded,
        command=worker_command(source, log_level),
        version=_version_text(),
        clock=clock,
        deadlines=deadlines,
        open_provider=partial(open_provider, clock=clock, deadlines=deadlines),
    )
    return await supervisor.run(_announce)


def _worker(arguments: Namespace) -> int:
    import signal
    import socket

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # what these mean is the supervisor's to say

    from .control.logs import configure
    from .control.process.errors import BootError
    from .control.process.orphans import die_with
    from .control.process.source import ConfigSource
    from .control.process.worker import run_worker
    from .filters.stores.shared import SharedStore
    from .filters.stores.shared_memory import SharedMemory
    from .gateway import Gateway

    die_with(arguments.parent)
    configure(arguments.log_level)
    _raise_file_limit()
    control = socket.socket(fileno=arguments.control_fd)
    data = socket.socket(fileno=arguments.data_fd)
    source = ConfigSource(arguments.file, arguments.workers)

    def make(config: GatewayConfig) -> Gateway:
        store = None
        if arguments.shared_fd is not None:
            try:
                store = SharedStore(SharedMemory.attach(arguments.shared_fd), arguments.process)
            except OSError as error:
                raise BootError(f"limits cannot be counted: {error}") from error
        return Gateway(config, worker=arguments.name, store=store)

    return _run(run_worker(make, source, _version_text(), control, data))


def _run(work: Coroutine[object, object, int]) -> int:
    """Run to the end; what an operator can mend becomes clear lines."""
    import uvloop

    from .config import ConfigError
    from .control.process.errors import BootError

    try:
        return uvloop.run(work)
    except ConfigError as error:
        return _refuse(error)
    except BootError as error:
        return _fail(error)


def _scheme(listener: Listener) -> str:
    return "http" if listener.tls is None else "https"


def _announce(config: GatewayConfig, data_port: int, admin_port: int) -> None:
    """The one human line, once everything answers."""
    data, admin = config.listeners.data, config.listeners.admin
    providers = ", ".join(
        name + (" (no key)" if provider.unconfigured else "") for name, provider in config.providers.items()
    )
    guard = "open to every process of this machine" if config.auth_is_open else "keys required"
    _say(
        f"headgate {_version_text()} serves {_scheme(data)}://{_host(data.address)}:{data_port}/v1 ({guard}); "
        f"providers: {providers}; admin {_scheme(admin)}://{_host(admin.address)}:{admin_port}/"
    )


def _say(line: str) -> None:
    """To whoever started a server; that nobody reads it is no reason to stop."""
    from contextlib import suppress

    with suppress(OSError):
        print(line, flush=True)


def _host(address: object) -> str:
    text = str(address)
    return f"[{text}]" if ":" in text else text


def _raise_file_limit() -> None:
    """Every exchange needs two descriptors: take what the system allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check(arguments: Namespace) -> int:
    from .config import ConfigError
    from .control.process.source import ConfigSource
    from .gateway import check_buildable

    source = ConfigSource(_file(arguments.file))
    try:
        config = source.load()
        check_buildable(config)
    except ConfigError as error:
        return _refuse(error, source.name)
    print(f"{source.name}: good (version {config.digest})")
    for provider_name, provider in config.providers.items():
        origin = provider.credential_origin or "its api_key"
        state = f"not configured: set {origin}" if provider.unconfigured else "configured"
        places = ", ".join(place.url for place in provider.places) or provider.base_url
        print(f"  provider {provider_name}: {places} ({state})")
    for model_name, model in config.models.items():
        print(f"  model {model_name}: {', '.join(target.provider for target in model.targets)}")
    print(f"  chain: {' -> '.join(entry.name for entry in config.filters) or 'empty'}")
    for warning in config.warnings:
        print(f"  warning: {warning}")
    return OK


def _schema(_: Namespace) -> int:
    import json

    from .config import json_schema

    print(json.dumps(json_schema(), indent=2))
    return OK


def _usage(arguments: Namespace) -> int:
    import sqlite3

    from .config import ConfigError
    from .control.events.report import as_json, as_table, usage
    from .control.process.source import ConfigSource
    from .proxy.clock import wall_time

    try:
        path = ConfigSource(_file(arguments.config)).load().events.path
    except ConfigError as error:
        return _refuse(error)
    since = None if arguments.since is None else wall_time() - arguments.since
    try:
        rows = usage(path, arguments.by, since)
    except FileNotFoundError:
        return _fail(f"no ledger at {path.absolute()} yet: it is made when a gateway first runs there")
    except (sqlite3.Error, OSError) as error:
        return _fail(f"the ledger at {path} cannot be read: {error}")
    print(as_json(rows, arguments.by).decode() if arguments.json else as_table(rows, arguments.by))
    return OK


def _keys(arguments: Namespace) -> int:
    from .config import ConfigError
    from .control.keys_command import keys
    from .proxy.clock import wall_time

    try:
        return keys(arguments, _file(arguments.config), wall_time)
    except ConfigError as error:
        return _refuse(error)


def _explain(arguments: Namespace) -> int:
    import json

    from .config import ConfigError
    from .control.explain import ExplainError, as_text, explain
    from .control.process.source import ConfigSource

    try:
        decision = explain(
            ConfigSource(_file(arguments.config)).load(), arguments.id, os.environ.get("HEADGATE_ADMIN_KEY")
        )
    except ConfigError as error:
        return _refuse(error)
    except ExplainError as error:
        return _fail(error)
    print(json.dumps(decision, indent=2) if arguments.json else as_text(decision))
    return OK


def _mock(arguments: Namespace) -> int:
    from .control.logs import configure
    from .control.mock.catalogue import FAULTS, find, listing
    from .control.mock.provider import MockProvider
    from .control.mock.schedule import Schedule
    from .control.process.mock_server import run_mock

    if arguments.list_faults:
        print(listing())
        return OK
    try:
        faults = [fault for name in arguments.fault for fault in (FAULTS.values() if name == "all" else [find(name)])]
    except KeyError as unknown:
        return _fail(unknown.args[0], USAGE)
    configure(arguments.log_level)
    schedule = Schedule(faults, every=arguments.every, times=arguments.times)

    def announce(port: int) -> None:
        url = f"http://{_host(arguments.address)}:{port}/v1"
        _say(f"headgate mock: an OpenAI API at {url}, any key, any model; stop it with Ctrl-C")

    provider = MockProvider(schedule, delay=arguments.delay / 1000)
    return _run(run_mock(arguments.address, arguments.port, provider, announce, speed=arguments.speed))


def _version(_: Namespace) -> int:
    print(f"headgate {_version_text()}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
