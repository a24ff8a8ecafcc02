"""Metrics for Prometheus, traces for OpenTelemetry, and observers of your own.

Nothing here is imported with `django_sockets`. The names that need `prometheus_client`,
`opentelemetry` or Django are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..observer import (
    BatchDelivered,
    ConnectFailed,
    ConnectionClosed,
    ConsumerSlow,
    GapSignalled,
    HandshakeEnded,
    HistoryHealed,
    HookCalled,
    LinkLost,
    LinkRestored,
    Observer,
    Published,
    RequestAnswered,
    add_observer,
    remove_observer,
)

if TYPE_CHECKING:
    from .live.watching import answer_surveys
    from .prometheus import HubCollector, collect_metrics, metrics_text, start_metrics_server
    from .tracing import start_tracing, stop_tracing
    from .views import metrics_view

__all__ = [
    "BatchDelivered",
    "ConnectFailed",
    "ConnectionClosed",
    "ConsumerSlow",
    "GapSignalled",
    "HandshakeEnded",
    "HistoryHealed",
    "HookCalled",
    "HubCollector",
    "LinkLost",
    "LinkRestored",
    "Observer",
    "Published",
    "RequestAnswered",
    "add_observer",
    "answer_surveys",
    "collect_metrics",
    "metrics_text",
    "metrics_view",
    "remove_observer",
    "start_metrics_server",
    "start_tracing",
    "stop_tracing",
]

_LAZY = {
    "answer_surveys": "live.watching",
    "HubCollector": "prometheus",
    "collect_metrics": "prometheus",
    "metrics_text": "prometheus",
    "metrics_view": "views",
    "start_metrics_server": "prometheus",
    "start_tracing": "tracing",
    "stop_tracing": "tracing",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{module}", __name__), name)
