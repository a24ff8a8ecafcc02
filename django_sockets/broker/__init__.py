"""The Broker protocol: the contract between the hub and a backend.

A broker moves opaque `bytes` on named channels. It does not depend on sockets, JSON or Django.
`django_sockets.testing.BrokerContract` checks this contract on any backend:

- A broker belongs to one event loop. It connects when it is first used, not when it is created.
- `publish` returns when the server has accepted the payload for every channel. Otherwise it raises
  `PublishError` with the channels that failed and the channels whose outcome is unknown. A broker
  never repeats a publish whose outcome is unknown. On each channel, successive calls reach the
  server in the order of the calls. All callers share a small fixed number of connections.
- `subscribe` returns when the server has acknowledged every channel. Messages that are published
  after that are delivered. It waits at most `subscribe_timeout_seconds`. Then it raises
  `SubscribeError` and keeps none of the channels that this call requested first. When calls of
  `subscribe` and `unsubscribe` overlap, the last call decides.
- Messages go to the sink in the order of the server's stream. After a fault, a broker may lose,
  repeat or reorder messages, because the hub detects this with the envelope. When a connection
  with acknowledged subscriptions is lost, the broker subscribes again and then calls `sink.lost`
  with exactly those channels. The call comes after the last message before the loss and before the
  first message after it.
- A peer that is dead but has not closed the connection is detected within `dead_peer_seconds`.
- A broker raises no exception of a driver. No message, log line or repr contains a secret.
- `aclose` may be called twice. It leaves no task, thread, socket or subscription behind.

`Inspectable`, `SupportsHistory`, `SupportsPresence`, `SupportsQueue` and `ThreadPublisher` are
abilities that a broker may have in addition. Each has a module of its own.

Import all names from this package. `PresenceSink`, `SupportsPresence`, `Inspectable` and `Report`
are loaded when they are first used, because most processes do without them. The package imports
only `errors`, `history`, `presence` and `url`. The hub and the backends import it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .broker import Broker, Limits
from .channel_names import check_channel
from .history import HistoryItem, HistorySink, SupportsHistory
from .queues import QueueEntry, SupportsQueue
from .sink import HANDED_OVER, EagerSink, Sink, deliver_now
from .thread_publisher import NoReplyInTime, ThreadPublisher

if TYPE_CHECKING:
    from .inspection import Inspectable, Report
    from .presence import PresenceSink, SupportsPresence

__all__ = [
    "HANDED_OVER",
    "Broker",
    "EagerSink",
    "HistoryItem",
    "HistorySink",
    "Inspectable",
    "Limits",
    "NoReplyInTime",
    "PresenceSink",
    "QueueEntry",
    "Report",
    "Sink",
    "SupportsHistory",
    "SupportsPresence",
    "SupportsQueue",
    "ThreadPublisher",
    "check_channel",
    "deliver_now",
]

_LAZY = {
    "Inspectable": "inspection",
    "PresenceSink": "presence",
    "Report": "inspection",
    "SupportsPresence": "presence",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{module}", __name__), name)
