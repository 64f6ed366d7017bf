"""`GET /v1/models` and `/v1/models/{id}`: the names a client may ask for, in OpenAI's shape, and what is known of each.

Names are those of the config, then those that providers list and a wildcard or a direct address leads to. An id of a
provider's list is shown only where the routing rules ask that very provider for it first: of two that list the same id
one answers, and the entry tells of that one. What nobody knows of a model is absent from its entry.

Pure. Not here: asking providers (control/model_watch.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from .accounting.prices import OTHER_RATES, TOKEN_RATES
from .errors import ModelNotFoundError
from .plan import build_plan
from .replies import Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .accounting.prices import Rates
    from .exchange import Exchange
    from .graph import Graph
    from .plan import Target
    from .upstream.cluster import Cluster

PATH = "/v1/models"
CREATED = 1_700_000_000
"""OpenAI's shape needs a number; the config knows no date."""
UNIT = "USD per 1M tokens"
_encode = msgspec.json.encode


def list_models(ex: Exchange) -> Reply:
    """Every model with an exact name, in config order, then those that were found at providers; of these, those that
    the key may use."""
    graph, allowed = ex.graph, ex.principal.models
    entries = [
        _encode(describe(graph, name)) for name in graph.models.names() if allowed is None or allowed.allow(name)
    ]
    if allowed is None:
        entries += graph.found_models.values()
    else:
        entries += [entry for name, entry in graph.found_models.items() if allowed.allow(name)]
    return Reply(200, b'{"object":"list","data":[%b]}' % b",".join(entries))


def retrieve_model(ex: Exchange) -> Reply:
    """One model; any name that would be served is found, wildcards included. Ids may hold `/` and arrive
    percent-encoded."""
    name = unquote(ex.head.target.decode("latin-1").partition(PATH + "/")[2])
    allowed = ex.principal.models
    if not name or not name.isprintable() or not (allowed is None or allowed.allow(name)):
        raise ModelNotFoundError("The model does not exist.", param="model")
    return json_reply(describe(ex.graph, name))


def found_models(graph: Graph) -> Iterator[tuple[str, bytes] | None]:
    """The models that providers list, under the first name that leads to them, with their encoded entries; None for a
    name that leads elsewhere.

    Up to a millisecond each: whoever runs it lets others in between.
    """
    exact = set(graph.models.names())
    seen: set[tuple[Cluster, str]] = set()
    for name, cluster, model in graph.models.listed():
        target = _first(graph.models.targets(name))
        if name in exact or (cluster, model) in seen or target.cluster is not cluster or target.model != model:
            yield None
        else:
            seen.add((cluster, model))
            yield name, _encode(describe(graph, name))


def describe(graph: Graph, name: str) -> dict[str, Any]:
    """What is known of a model: of the target that the config has asked first. Raises ModelNotFoundError."""
    target = _first(graph.models.targets(name))
    cluster = target.cluster
    told = cluster.listed.get(target.model)
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": (told.created if told is not None else None) or CREATED,
        "owned_by": cluster.name,
        "health": cluster.health,
    }
    price = graph.price(target)
    if price is not None:
        entry["price"] = {"unit": UNIT, **_rates(price.rates), "source": price.source}
    window = told.context_window if told is not None else None
    if window is None and (listed := graph.list_price(target)) is not None:
        window = listed.context_window
    if window is not None:
        entry["context_window"] = window
    if told is not None and told.capabilities:
        entry["capabilities"] = told.capabilities
    return entry


def _first(targets: Sequence[Target]) -> Target:
    """The one that is asked first, as far as the config alone decides."""
    plan = build_plan(targets, (), None, 0.0, soft=False)
    return (plan.targets or targets)[0]


def _rates(rates: Rates) -> dict[str, Any]:
    """The rates of a short prompt by name, and under `above` those that hold from some length on."""
    shown: dict[str, Any] = {}
    above: dict[int, dict[str, Any]] = {}
    for name in TOKEN_RATES:
        steps = getattr(rates, name)
        if steps is None:
            continue
        shown[name] = steps[0][1]
        for start, usd in steps[1:]:
            above.setdefault(start, {"prompt_tokens": start})[name] = usd
    if above:
        shown["above"] = [above[start] for start in sorted(above)]
    if rates.request:
        shown["per_request"] = rates.request
    for name in OTHER_RATES:
        if (usd := getattr(rates, name)) is not None:
            shown[f"per_{name}"] = usd
    return shown
