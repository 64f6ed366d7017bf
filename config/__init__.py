"""What the operator wrote, as frozen values: `load_config()` gives a `GatewayConfig` or every reason why not.

Imports nothing else of Headgate. After a load nobody checks again.
"""

from .access_log import AccessLogConfig
from .budget import BudgetConfig, BudgetLimit
from .cache import CacheConfig
from .chain import (
    AuthConfig,
    CircuitBreakerConfig,
    FilterConfig,
    FilterEntry,
    HedgeConfig,
    Key,
    RetryBudget,
    RetryConfig,
    UseConfig,
)
from .effective import dump
from .endpoints import MOCK_URL, EndpointConfig
from .errors import ConfigError, Problem
from .events import Events, Spool
from .gateway import GatewayConfig, Prices, Routing
from .guard import GuardConfig, GuardRule
from .headers import HeaderRules, HeadersConfig
from .listeners import Limits, Listener, Listeners, is_loopback
from .load import check, load_config, parse_config
from .models import Model, Price, Target
from .providers import Provider, Timeouts
from .rate_limit import Limit, RateLimitConfig
from .resilience import HealthCheck, OutlierDetection, ProviderLimits
from .routes import Match, Route
from .schema import json_schema
from .secret import Secret
from .stores import Redis, Stores

__all__ = [
    "MOCK_URL",
    "AccessLogConfig",
    "AuthConfig",
    "BudgetConfig",
    "BudgetLimit",
    "CacheConfig",
    "CircuitBreakerConfig",
    "ConfigError",
    "EndpointConfig",
    "Events",
    "FilterConfig",
    "FilterEntry",
    "GatewayConfig",
    "GuardConfig",
    "GuardRule",
    "HeaderRules",
    "HeadersConfig",
    "HealthCheck",
    "HedgeConfig",
    "Key",
    "Limit",
    "Limits",
    "Listener",
    "Listeners",
    "Match",
    "Model",
    "OutlierDetection",
    "Price",
    "Prices",
    "Problem",
    "Provider",
    "ProviderLimits",
    "RateLimitConfig",
    "Redis",
    "RetryBudget",
    "RetryConfig",
    "Route",
    "Routing",
    "Secret",
    "Spool",
    "Stores",
    "Target",
    "Timeouts",
    "UseConfig",
    "check",
    "dump",
    "is_loopback",
    "json_schema",
    "load_config",
    "parse_config",
]
