"""From a file to a `GatewayConfig`, or to every reason why not.

text -> tree with places (yaml_nodes) -> the models' form (written) -> plain data (bind) -> names
that refer to each other (checks) and types (pydantic). All stages report into one `Report`, and
what comes out needs no further check.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .bind import Binder
from .checks import check as check_references
from .checks import dropped_keys
from .complaints import find, message_of, place_of
from .errors import ConfigError, Place, Problem, Report
from .expand import Expander, read_text, reason
from .from_env import implicit_providers
from .gateway import GatewayConfig
from .nodes import Table
from .warnings import warnings_of
from .written import rewrite
from .yaml_nodes import MAX_BYTES, parse


def load_config(path: str | Path | None = None, *, env: Mapping[str, str] | None = None) -> GatewayConfig:
    """The configuration in a file; without a path, what an empty file means.

    `env` stands in for the process environment. Raises ConfigError with every problem.
    """
    if path is None:
        return parse_config("", name="defaults", env=env)
    name = str(path)
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(name, 0, 0, "", reason(error))]) from None
    return _load(text, name, (Path(path),), env)


def parse_config(text: str, *, name: str = "gateway.yaml", env: Mapping[str, str] | None = None) -> GatewayConfig:
    """The configuration in a text; `name` stands for the file in problems. Raises ConfigError."""
    return _load(text, name, (), env)


def check(path: str | Path, *, env: Mapping[str, str] | None = None) -> list[Problem]:
    """Every problem of a file; empty where it is good."""
    try:
        load_config(path, env=env)
    except ConfigError as error:
        return list(error.problems)
    return []


def _load(text: str, name: str, files: tuple[Path, ...], env: Mapping[str, str] | None) -> GatewayConfig:
    env = os.environ if env is None else env
    report = Report(name)
    expander = Expander(env)
    tree = rewrite(parse(text, report), report)
    binder = Binder(expander, report)
    data = binder.bind(tree, GatewayConfig)
    if "providers" not in data:
        data["providers"] = implicit_providers(env, report)
    for loc, message in check_references(data):
        report.add(place_of(*find(tree, loc)), message)
    config = _typed(data, tree, binder, report)

    if config.prices.file is not None:
        files = (*files, config.prices.file)
    for listener in (config.listeners.data, config.listeners.admin):
        if listener.tls is not None:
            files = (*files, *(path for path in (listener.tls.cert, listener.tls.key, listener.tls.client_ca) if path))
    warnings = (*report.warnings, *warnings_of(config, dropped_keys(data), env))
    return config.model_copy(update={"warnings": warnings, "files": (*files, *expander.files)})


def _typed(data: Mapping[str, Any], tree: Table, binder: Binder, report: Report) -> GatewayConfig:
    try:
        config = GatewayConfig.model_validate(data)
    except ValidationError as error:
        at: dict[Place, list[str]] = {}  # of a union each member says what it would have taken
        for detail in error.errors(include_url=False, include_input=False):
            node, missing = find(tree, detail["loc"])
            if not binder.is_reported(node, missing):
                placed = place_of(node, missing)
                at.setdefault(Place(placed.line, placed.column, placed.path), []).append(message_of(detail))
        for place, messages in at.items():
            report.add(place, " or ".join(dict.fromkeys(messages)).replace(" or must be ", " or "))
        report.raise_if_any()
        raise
    report.raise_if_any()
    return config
