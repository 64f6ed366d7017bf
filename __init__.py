"""Headgate: an Envoy-style gateway for LLM traffic.

The public names are looked up in one fixed table, on first use (PEP 562). Nothing is imported here: pytest also imports
this file under the checkout's own name, and whatever it imported would then exist twice.
"""

TYPE_CHECKING = False  # the form that type checkers know and that costs no import
if TYPE_CHECKING:
    from .clients.middleware import GatewayMiddleware
    from .clients.transport import GatewayTransport
    from .clients.upstream_transport import UpstreamTransport
    from .config import ConfigError, GatewayConfig, load_config
    from .gateway import Gateway
    from .proxy.errors import GatewayError
    from .proxy.exchange import Exchange
    from .proxy.filter import Filter, SkipTarget
    from .proxy.replies import Reply

__all__ = [
    "ConfigError",
    "Exchange",
    "Filter",
    "Gateway",
    "GatewayConfig",
    "GatewayError",
    "GatewayMiddleware",
    "GatewayTransport",
    "Reply",
    "SkipTarget",
    "UpstreamTransport",
    "__version__",
    "load_config",
]

_MODULES = {
    "ConfigError": ".config",
    "Exchange": ".proxy.exchange",
    "Filter": ".proxy.filter",
    "Gateway": ".gateway",
    "GatewayConfig": ".config",
    "GatewayError": ".proxy.errors",
    "GatewayMiddleware": ".clients.middleware",
    "GatewayTransport": ".clients.transport",
    "Reply": ".proxy.replies",
    "SkipTarget": ".proxy.filter",
    "UpstreamTransport": ".clients.upstream_transport",
    "load_config": ".config",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("headgate")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
