"""What the finished gateway.yaml has and this version has not.

Such a key is refused by its name: passing over it would let an operator believe in a limit that
nobody keeps, and calling it unknown would send him looking for a typing error.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from .events import Events
from .gateway import GatewayConfig, Routing
from .listeners import Listeners
from .models import Model
from .providers import Provider
from .routes import Route

LATER_FILTERS: Final = frozenset({"classifier", "strategy"})

LATER_KEYS: Final[Mapping[type[BaseModel], frozenset[str]]] = {
    GatewayConfig: frozenset({"agents", "policies", "telemetry"}),
    Listeners: frozenset({"grpc"}),
    Provider: frozenset({"tls"}),
    Model: frozenset({"strategy"}),
    Route: frozenset({"strategy"}),
    Routing: frozenset({"plano_embedded", "plano_proxy"}),
}

LATER_VALUES: Final[Mapping[tuple[type[BaseModel], str], frozenset[str]]] = {
    (Listeners, "admin"): frozenset({"shared"}),
    (Provider, "api_key"): frozenset({"client"}),
    (Provider, "dialect"): frozenset({"anthropic", "gemini"}),
    (Events, "sink"): frozenset({"kafka", "postgres"}),
    (Routing, "mode"): frozenset({"plano_embedded", "plano_proxy"}),
}


def not_yet(name: str) -> str:
    """The refusal."""
    return f"'{name}' is not in this version"
