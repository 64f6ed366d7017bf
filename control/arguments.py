"""What may be said on the command line, and how it is explained: the commands, their options, their examples.

Every command's `-h` is enough to use it. What the commands do is in __main__.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .process.source import ConfigSource
    from .process.worker_process import Command

    Run = Callable[[argparse.Namespace], int]

DEFAULT_FILE = "gateway.yaml"
SIGNALS = """\
Signals:
  SIGHUP    read the config again; a bad one changes nothing
  SIGUSR2   replace the workers one by one, without a failed request (needs --workers 2 or more)
  SIGTERM   drain: take no new work, finish what runs (limits.drain), exit 0
  SIGINT    the same; once more: cut what runs, exit 130"""
LEVELS = ("debug", "info", "warning", "error")


def make_parser(run: Mapping[str, Run]) -> tuple[argparse.ArgumentParser, Sequence[str]]:
    """The parser, and the names of its commands; `run` is what each of them does."""
    parser = argparse.ArgumentParser(
        prog="headgate",
        description="A gateway for LLM traffic: point an OpenAI SDK's base_url at it and nothing else changes.",
        epilog="Start with: headgate serve",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = _command(commands, "serve", run, "run the gateway", "headgate serve gateway.yaml --workers 2")
    serve.formatter_class = argparse.RawDescriptionHelpFormatter
    serve.description = f"{serve.description}\n\n{SIGNALS}"
    _add_file(serve)
    serve.add_argument(
        "--workers", type=_number(1, 256), metavar="N", help="processes that serve traffic; overrides the file"
    )
    _add_log_level(serve)

    check = _command(commands, "check", run, "check a config file", "headgate check gateway.yaml")
    _add_file(check)

    _command(commands, "schema", run, "print the JSON Schema of the config", "headgate schema > gateway.schema.json")

    usage = _command(commands, "usage", run, "what was used and what it cost", "headgate usage --by model --since 7d")
    usage.add_argument(
        "--by",
        choices=("key", "model", "day", "team", "provider", "endpoint"),
        default="key",
        help="what to sum over (default: key)",
    )
    usage.add_argument(
        "--since", type=_age, metavar="AGE", help="only what is younger: 90m, 12h, 7d (default: everything)"
    )
    usage.add_argument("--json", action="store_true", help="JSON instead of a table")
    usage.add_argument(
        "--config", metavar="FILE", help=f"config that names the ledger (default: ./{DEFAULT_FILE}, if any)"
    )

    why = _command(
        commands,
        "explain",
        run,
        "why one request went the way it went",
        "headgate explain hg_5f0c9a1b2c3d4e5f0000002a",
    )
    why.add_argument("id", metavar="ID", help="the x-headgate-decision-id of its answer")
    why.add_argument("--json", action="store_true", help="JSON instead of sentences")
    why.add_argument(
        "--config",
        metavar="FILE",
        help="config of the running gateway; its first key with a role asks, unless HEADGATE_ADMIN_KEY holds one "
        f"(default: ./{DEFAULT_FILE}, if any)",
    )

    _add_keys(commands, run)

    mock = _command(
        commands,
        "mock",
        run,
        "serve a mock provider that speaks the OpenAI API, and fails on request",
        "headgate mock --fault close-in-body --every 3",
    )
    mock.add_argument("--address", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    mock.add_argument(
        "--port",
        type=_number(0, 65535),
        default=8071,
        metavar="PORT",
        help="port to listen on, 0 for a free one (default: 8071)",
    )
    mock.add_argument(
        "--delay", type=_milliseconds, default=0.0, metavar="MS", help="pause before each event (default: 0)"
    )
    mock.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME",
        help="fail in this way; more than one are met in turn, and 'all' is every one. Without it, only requests "
        "for the model mock-fault-NAME fail",
    )
    mock.add_argument("--list-faults", action="store_true", help="print the names of all faults and what they do")
    mock.add_argument(
        "--every",
        type=_number(1, 1_000_000),
        default=1,
        metavar="N",
        help="let only every N-th chat completion fail (default: 1)",
    )
    mock.add_argument(
        "--times", type=_number(1, 1_000_000), metavar="N", help="let N of them fail, and then no more (default: all)"
    )
    mock.add_argument(
        "--speed",
        type=_factor,
        default=1.0,
        metavar="X",
        help="play the pauses of faults X times faster, for time-outs that are shorter than in life (default: 1)",
    )
    _add_log_level(mock)

    _command(commands, "version", run, "print the version", "headgate version")

    worker = commands.add_parser("_worker", add_help=False)
    worker.add_argument("file", nargs="?")
    worker.add_argument("--name", required=True)
    worker.add_argument("--parent", type=int, required=True)
    worker.add_argument("--control-fd", type=int, required=True)
    worker.add_argument("--data-fd", type=int, required=True)
    worker.add_argument("--workers", type=int)
    worker.add_argument("--shared-fd", type=int)
    worker.add_argument("--process", type=int)
    worker.add_argument("--log-level", required=True)
    worker.set_defaults(run=run["_worker"])
    return parser, tuple(commands.choices)


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser], run: Mapping[str, Run]) -> None:
    keys = _command(
        commands,
        "keys",
        run,
        "make, list, replace and revoke the keys in auth.keys_file",
        "headgate keys create --name app --models 'gpt-*'",
    )
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = _action(actions, "create", "make a key and show it, once")
    create.add_argument("--name", required=True, help="how usage rows and routes call it")
    create.add_argument("--owner", help="who answers for it; stands on usage rows")
    create.add_argument("--team", help="whose files and stored responses it sees")
    create.add_argument("--roles", type=_list, default=(), metavar="A,B", help="on the admin listener: viewer, admin")
    create.add_argument("--models", type=_list, metavar="A,B", help="models it may ask for: 'gpt-*' (default: all)")
    create.add_argument("--paths", type=_list, metavar="A,B", help="paths it may call: '/v1/files/**' (default: all)")
    create.add_argument("--tags", type=_list, default=(), metavar="A,B", help="for routes that match tags")
    create.add_argument("--allow-tags", type=_list, default=(), metavar="A,B", help="tags that its requests may add")
    _add_expires(create)

    rotate = _action(actions, "rotate", "make another key of a name; the old one is good a while longer")
    rotate.add_argument("name", help="of the key")
    rotate.add_argument(
        "--overlap", type=_age, default=3600.0, metavar="AGE", help="how long: 30m, 12h, 7d, 0m (default: 1h)"
    )
    _add_expires(rotate)

    listing = _action(actions, "list", "say what keys there are, and never the keys themselves")
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")

    revoke = _action(actions, "revoke", "refuse every key of a name from now on")
    revoke.add_argument("name", help="of the key")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    action.add_argument(
        "--config", metavar="FILE", help=f"config with auth.keys_file (default: ./{DEFAULT_FILE}, if any)"
    )
    return action


def _add_expires(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--expires", type=_end, metavar="WHEN", help="90d, 12h, a date like 2030-06-30, or with time and zone"
    )


def worker_command(source: ConfigSource, log_level: str) -> Command:
    """The command line that `_worker` reads. Nothing of the working directory may be imported by accident (-P)."""
    path = [] if source.path is None else [str(source.path)]
    workers = [] if source.workers is None else ["--workers", str(source.workers)]
    common = ["--parent", str(os.getpid()), "--log-level", log_level, *workers, *path]

    def command(name: str, control_fd: int, data_fd: int) -> Sequence[str]:
        own = ["--name", name, "--control-fd", str(control_fd), "--data-fd", str(data_fd)]
        return [sys.executable, "-P", "-m", "headgate", "_worker", *own, *common]

    return command


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Mapping[str, Run],
    what: str,
    example: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=f"Example: {example}"
    )
    command.set_defaults(run=run[name])
    return command


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", nargs="?", help=f"config file (default: ./{DEFAULT_FILE} if there is one, else defaults)"
    )


def _add_log_level(command: argparse.ArgumentParser) -> None:
    level = os.environ.get("HEADGATE_LOG", "info")
    command.add_argument(
        "--log-level",
        choices=LEVELS,
        default=level if level in LEVELS else "info",
        help="least severe event to log on stderr (default: HEADGATE_LOG, else info)",
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3_600_000:
        raise argparse.ArgumentTypeError("must be milliseconds from 0 to 3600000")
    return value


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 100_000:
        raise argparse.ArgumentTypeError("must be a number from 0.001 to 100000")
    return value


def _age(text: str) -> float:
    """Seconds."""
    units = {"m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not (number.isascii() and number.isdigit()) or len(number) > 6:
        raise argparse.ArgumentTypeError("must be a number and m, h or d, like 90m, 12h or 7d")
    return float(number) * units[unit]


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _end(text: str) -> Callable[[float], float]:
    """From now to then, in Unix seconds."""
    from ..config.units import parse_moment

    try:
        age = _age(text)
    except argparse.ArgumentTypeError:
        try:
            moment = parse_moment(text).timestamp()
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be like 90d, or {str(error).removeprefix('must be ')}") from None
        return lambda _: moment
    return lambda now: now + age


def nearest(name: str, commands: Sequence[str]) -> str:
    """A hint for a command that does not exist: the nearest one, or all."""
    from difflib import get_close_matches

    shown = [command for command in commands if not command.startswith("_")]
    near = get_close_matches(name[:64], shown, n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else f"; there are {', '.join(shown)}"
