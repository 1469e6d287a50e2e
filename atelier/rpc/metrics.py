"""Rate, errors and duration of every RPC, in the names that gRPC dashboards know (go-grpc-prometheus).

Labels are the service, the method and the code. Never a tenant, a resource or a prompt.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_METHOD_LABELS = ("grpc_service", "grpc_method")

STARTED = Counter("grpc_server_started_total", "RPCs started.", _METHOD_LABELS)
HANDLED = Counter("grpc_server_handled_total", "RPCs completed, by code.", (*_METHOD_LABELS, "grpc_code"))
IN_PROGRESS = Gauge("grpc_server_in_progress", "RPCs being served now.", _METHOD_LABELS)
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from the start of an RPC to its end.",
    _METHOD_LABELS,
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800),
)
