"""`GET /v1/models` and `/v1/models/{id}`: the names a client may ask for, in OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from .errors import ModelNotFoundError
from .replies import Reply, json_reply

if TYPE_CHECKING:
    from .exchange import Exchange

PATH = "/v1/models"
_CREATED = 1_700_000_000
"""OpenAI's shape needs a number; the config knows no date."""


def list_models(ex: Exchange) -> Reply:
    """Every model with an exact name, in config order."""
    return json_reply({"object": "list", "data": [_entry(ex, name) for name in ex.graph.models.names()]})


def retrieve_model(ex: Exchange) -> Reply:
    """One model; any name that would be served is found, wildcards included. Ids may hold `/` and arrive
    percent-encoded."""
    name = unquote(ex.head.target.decode("latin-1").partition(PATH + "/")[2])
    if not name or not name.isprintable():
        raise ModelNotFoundError("The model does not exist.", param="model")
    return json_reply(_entry(ex, name))


def _entry(ex: Exchange, name: str) -> dict[str, object]:
    targets = ex.graph.models.resolve(name)
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": targets[0].cluster.name}
