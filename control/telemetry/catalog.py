"""Every metric there is: name, kind, labels, and one line that says what it counts. docs/admin.md is made from it.

The `gen_ai_*` names and their labels are those of OpenTelemetry's conventions for generative AI, as its exporter for
Prometheus writes them; `headgate_upstream_*` follows Envoy's cluster statistics, one series for each provider.

Counters that are read off an object as they stand are in tables, from the attribute to its metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["counter", "gauge", "histogram", "summary"]


class Metric(NamedTuple):
    """One line of the table. Counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counters(prefix: str, labels: tuple[str, ...], helps: Mapping[str, str]) -> dict[str, Metric]:
    return {
        name: Metric(f"{prefix}_{name.removesuffix('_total')}_total", "counter", text, labels)
        for name, text in helps.items()
    }


GEN_AI: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
"""Endpoint, the provider's name in the config, and the model it was asked for."""

ENGINE: Final = _counters(
    "headgate",
    (),
    {
        "refused_by_auth": "Requests to a metered endpoint that auth refused; they leave no record.",
        "turned_away": "Requests refused before anything else because the worker had too much to do.",
        "retries": "Attempts that followed a failed one.",
        "internal_errors": "Bugs: each has a traceback in the log.",
        "rows": "Records of finished exchanges handed to the spool.",
        "issuer_lookups": "Questions who made an object that this worker did not make.",
        "issuer_lookups_failed": "Of these, those that nobody could answer in time.",
    },
)
CLUSTER: Final = _counters(
    "headgate_upstream",
    ("provider",),
    {
        "rq_total": "Attempts started.",
        "rq_success": "Attempts that the provider answered well.",
        "rq_error": "Attempts that failed, on the way or by the provider's word.",
        "rq_retry": "Attempts that followed a failed one.",
        "rq_hedged": "Second attempts at streams whose first token was late.",
        "rq_timeout": "Attempts that took too long.",
        "rq_overflow": "Attempts that found the provider's limits reached, and no room to wait.",
        "ejections": "Endpoints ejected by outlier detection.",
        "ejections_overflow": "Endpoints left in although they failed: too many were out already.",
        "healthy_panic": "Attempts sent to any endpoint, well or not, because too few were well.",
    },
)
ENDPOINT: Final = _counters(
    "headgate_upstream",
    ("provider",),
    {
        "cx_total": "Connections opened.",
        "cx_http2_total": "Connections opened that speak HTTP/2.",
        "cx_connect_fail": "Connections that could not be opened.",
        "cx_connect_timeout": "Connections that were not open in time.",
        "cx_destroy_with_active_rq": "Connections that broke in the middle of a request.",
        "cx_idle_timeout": "Idle connections closed for their age.",
        "cx_close_notify": "Goodbyes on connections of HTTP/2, which then take no more requests.",
        "cx_keepalive_timeout": "Connections of HTTP/2 given up because a PING was not answered.",
        "cx_moved": "Connections left because the provider's name leads elsewhere.",
        "cx_protocol_error": "Connections closed because what came back was not HTTP.",
        "rq_rx_reset": "Streams of HTTP/2 that the provider reset.",
        "rq_tx_reset": "Streams of HTTP/2 that were reset towards the provider.",
        "rq_cancelled": "Requests given up because nobody waited for them any more.",
        "rq_pending_overflow": "Requests refused because too many waited for a connection.",
        "rq_pending_timeout": "Requests that waited too long for a connection.",
    },
) | {
    # The cluster has taken the name: there it is an attempt, here the same attempt on another connection.
    "rq_retry": Metric(
        "headgate_upstream_rq_resent_total",
        "counter",
        "Requests sent again: their idle connection was closed as they were sent, or nobody had looked at them.",
        ("provider",),
    ),
}
GAUGES: Final = {
    "cx_active": Metric("headgate_upstream_cx_active", "gauge", "Open connections.", ("provider",)),
    "rq_active": Metric("headgate_upstream_rq_active", "gauge", "Requests on a connection.", ("provider",)),
    "rq_pending_active": Metric(
        "headgate_upstream_rq_pending_active", "gauge", "Requests waiting for a connection.", ("provider",)
    ),
    "failed_active_hc": Metric(
        "headgate_upstream_unhealthy",
        "gauge",
        "Endpoints that fail their health check, in all workers.",
        ("provider",),
    ),
    "failed_outlier_check": Metric(
        "headgate_upstream_ejected", "gauge", "Endpoints that are ejected, in all workers.", ("provider",)
    ),
}
CHECKS: Final = {
    f"health_check.{name}": Metric(f"headgate_upstream_health_check_{name}_total", "counter", text, ("provider",))
    for name, text in {
        "attempt": "Health checks made.",
        "success": "Health checks that were passed.",
        "failure": "Health checks that were not, those without an answer in time included.",
        "network_failure": "Health checks without an answer in time.",
        "passive_failure": "Endpoints taken out because an answer of theirs said so.",
    }.items()
}
RESTING_KEYS: Final = Metric(
    "headgate_upstream_keys_resting",
    "gauge",
    "Keys that rest after a 401, or for a model after a 429, in all workers.",
    ("provider",),
)
CIRCUITS: Final = Metric(
    "headgate_upstream_circuits_open",
    "gauge",
    "Models whose circuit breaker is open or half open, in all workers.",
    ("provider",),
)
EDGE: Final = _counters(
    "headgate_edge",
    (),
    {
        "accepted": "Connections accepted.",
        "over_limit": "Connections turned away at the bound.",
        "requests": "Requests whose head was read.",
        "refused": "Requests answered before anybody saw them: malformed, or from a host or origin not allowed.",
        "head_timeouts": "Clients too slow with a request's head.",
        "body_timeouts": "Clients too slow with a request's body.",
        "write_stalls": "Clients that stopped reading their answer.",
        "idle_closed": "Idle connections closed.",
        "gone": "Clients that left before their answer was whole.",
    },
)
AUTH: Final = _counters(
    "headgate_auth", ("filter",), {"admitted": "Requests let in.", "refused": "Requests without a known key."}
)
SPOOL: Final = _counters(
    "headgate_spool",
    (),
    {
        "dropped": "Records lost because the spool was full.",
        "errors": "Records lost, or folders not read, because of the disk.",
    },
)
STORE_COMMANDS: Final = ("answered", "failed", "refused")
LEDGER: Final = _counters(
    "headgate_ledger",
    (),
    {
        "rows": "Records taken over into the event store.",
        "lost": "Exchanges of dead workers, written as lost.",
        "dead_letters": "Lines that were no record.",
        "errors": "Turns in which the event store was away.",
        "trimmed": "Records removed for their age or the store's size.",
    },
)

CATALOG: Final = (
    Metric("headgate_build_info", "gauge", "Always 1.", ("version", "python")),
    Metric("headgate_config_info", "gauge", "Always 1, under the version of the configuration.", ("version",)),
    Metric("headgate_start_time_seconds", "gauge", "When the gateway started, in Unix seconds."),
    Metric("headgate_ready", "gauge", "1 while /ready says LIVE."),
    Metric("headgate_warnings", "gauge", "How many warnings /ready shows."),
    Metric("headgate_config_reloads_total", "counter", "Reloads by result: applied or refused.", ("result",)),
    Metric("headgate_exchanges_total", "counter", "Exchanges that are over.", ("endpoint", "outcome", "status")),
    Metric("headgate_exchanges_active", "gauge", "Exchanges under way."),
    Metric("headgate_websockets_active", "gauge", "Sessions over a WebSocket under way; each is an exchange, too."),
    *ENGINE.values(),
    Metric("gen_ai_server_request_duration_seconds", "histogram", "From request to the end of its answer.", GEN_AI),
    Metric("gen_ai_server_time_to_first_token_seconds", "histogram", "From request to the first token.", GEN_AI),
    Metric(
        "gen_ai_client_token_usage",
        "summary",
        "Tokens of an answer, reported or estimated, by token type: input or output.",
        (*GEN_AI, "gen_ai_token_type"),
    ),
    Metric("headgate_cost_usd_total", "counter", "US dollars, as far as prices are known.", GEN_AI),
    Metric("headgate_unknown_cost_total", "counter", "Answers missing in the cost: nobody knows their price.", GEN_AI),
    *CLUSTER.values(),
    *ENDPOINT.values(),
    *GAUGES.values(),
    *CHECKS.values(),
    RESTING_KEYS,
    CIRCUITS,
    *EDGE.values(),
    Metric("headgate_edge_connections", "gauge", "Open connections of clients."),
    *AUTH.values(),
    Metric("headgate_filter_total", "counter", "The public integers of any other filter.", ("filter", "counter")),
    Metric(
        "headgate_budget_alerts_total",
        "counter",
        "Callers that had spent so many percent of a budget, each once in a period.",
        ("filter", "percent"),
    ),
    *SPOOL.values(),
    Metric("headgate_spool_full", "gauge", "1 while a worker's spool is full."),
    Metric("headgate_store_up", "gauge", "Workers that reach the store.", ("store",)),
    Metric(
        "headgate_store_commands_total",
        "counter",
        "Questions to the store by result: answered, failed, or refused, which was not even sent.",
        ("store", "result"),
    ),
    Metric("headgate_store_opened_total", "counter", "Times that a worker gave the store up for a while.", ("store",)),
    Metric("headgate_store_seconds", "histogram", "From question to answer.", ("store",)),
    *LEDGER.values(),
    Metric("headgate_ledger_up", "gauge", "1 while the event store can be written."),
    Metric("headgate_workers", "gauge", "Workers that are alive."),
    Metric("headgate_worker_restarts_total", "counter", "Workers replaced because they ended on their own."),
    Metric("headgate_workers_hung_total", "counter", "Workers killed because their event loop stood still."),
    Metric(
        "headgate_worker_replacements_total",
        "counter",
        "Replacements of all workers: done or aborted.",
        ("result",),
    ),
    Metric("headgate_worker_ready", "gauge", "1 while the worker takes new exchanges.", ("worker",)),
    Metric("headgate_worker_exchanges_active", "gauge", "Exchanges under way in the worker.", ("worker",)),
    Metric("headgate_worker_resident_memory_bytes", "gauge", "Memory of the worker's process.", ("worker",)),
    Metric("headgate_worker_memory_ratio", "gauge", "Part in use of the memory that the worker may use.", ("worker",)),
    Metric(
        "headgate_worker_loop_lag_seconds",
        "gauge",
        "How late the worker's event loop was at most of late.",
        ("worker",),
    ),
)
BY_NAME: Final = {metric.name: metric for metric in CATALOG}
