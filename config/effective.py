"""A configuration as it took effect: shown to operators, and named by a digest.

`dump` is for eyes, with secrets masked; `digest` sees every secret through its hash, so that a
rotated key is a new version and no version tells a key.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any

from pydantic import BaseModel

from .secret import Secret


def dump(config: BaseModel) -> dict[str, Any]:
    """All settings, defaults included, as JSON values: durations and sizes as written, secrets as `***`."""
    return config.model_dump(mode="json")


def digest(config: BaseModel) -> str:
    """The first 12 hex digits of a SHA-256 over everything a file can set."""
    text = json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:12]


def fingerprint(*parts: Any) -> str:
    """64 hex digits over parts of a configuration."""
    text = json.dumps([_canonical(part) for part in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {name: _canonical(getattr(value, name)) for name, info in fields.items() if not info.exclude}
    if isinstance(value, Mapping):
        # A pair list: the order of providers and models decides which is the first.
        return [[key, _canonical(one)] for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, Secret):
        return value.digest()
    if isinstance(value, timedelta):
        return value // timedelta(microseconds=1)
    return value if isinstance(value, str | int | float) or value is None else str(value)
