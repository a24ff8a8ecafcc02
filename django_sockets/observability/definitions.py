"""The metrics: name, type, labels and meaning of each one.

The names follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/). A test
compares this list with docs/observability.md, with the dashboard and with the alert rules.

Label values are bounded: they come from this code, from the names of classes and methods of the
application, or from a fixed list. They are never a channel, a user or another text of a client.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METRICS", "NAMESPACE", "Definition"]

NAMESPACE = "django_sockets"


class Definition(NamedTuple):
    """One metric.

    Attributes:
        kind: "counter", "gauge" or "histogram".
        name: without the namespace, and for a counter without `_total`.
        labels: the names of its labels.
        help: a text for people.
        sources: for a number of `Hub.stats`: the names there -> the value of the second label, or
            "". Empty for metrics that are made from events.
        buckets: the upper bounds of a histogram.
    """

    kind: str
    name: str
    labels: tuple[str, ...]
    help: str
    sources: dict[str, str] = {}  # noqa: RUF012 - never changed
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name of its series, as in a query; a histogram has `_bucket`, `_sum` and `_count`."""
        return f"{NAMESPACE}_{self.name}{'_total' if self.kind == 'counter' else ''}"


FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a publish on one machine to the default timeouts."""
SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: from a reconnect to the failover of a cluster."""
SIZES = (64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 16777216.0)
"""Bytes: up to the default of `max_payload_bytes`."""

_BROKER = ("broker",)


def _counter(name: str, labels: tuple[str, ...], text: str, **sources: str) -> Definition:
    return Definition("counter", name, labels, text, sources)


def _gauge(name: str, text: str, source: str) -> Definition:
    return Definition("gauge", name, _BROKER, text, {source: ""})


def _histogram(
    name: str, labels: tuple[str, ...], text: str, buckets: tuple[float, ...]
) -> Definition:
    return Definition("histogram", name, labels, text, {}, buckets)


METRICS = {
    definition.name: definition
    for definition in [
        _counter(
            "messages_published", _BROKER,
            "Messages handed to the broker, one for each channel of a publish.", published="",
        ),
        _counter("publish_errors", _BROKER, "Publishes that failed.", publish_errors=""),
        _counter(
            "messages_received", _BROKER,
            "Received messages that had local subscribers, each counted once.",
        ),
        _counter(
            "messages_delivered", _BROKER,
            "Messages passed to local subscribers, one for each subscriber.", delivered="",
        ),
        _counter(
            "messages_dropped", _BROKER,
            "Of the delivered messages: dropped because the client or a hook was too slow.",
            dropped_overflow="",
        ),
        _counter(
            "messages_discarded", _BROKER,
            "Of the delivered messages: not sent, because the connection had ended.", discarded="",
        ),
        _counter(
            "messages_late", _BROKER, "Received messages dropped as late or repeated.",
            dropped_late="",
        ),
        _counter(
            "messages_foreign", _BROKER, "Received messages of other programs, which were skipped.",
            poison="",
        ),
        _counter(
            "gaps", ("broker", "reason"),
            "Gaps signalled, one for each loss and subscriber.",
            gaps_missed="missed", gaps_late="late", gaps_version="version", gaps_history="history",
            gaps_overflow="overflow", gaps_link="link",
        ),
        _counter(
            "limit_closes", ("broker", "limit"), "Sockets that the library closed at a limit.",
            closed_overflow="overflow", closed_too_big="too_big", closed_rate_limit="rate",
            closed_idle="idle", closed_drain="drain",
        ),
        _counter(
            "handshake_timeouts", _BROKER, "Handshakes that did not finish in time.",
            handshake_timeouts="",
        ),
        _counter(
            "handshakes_refused_draining", _BROKER,
            "Handshakes refused because the process was shutting down.", refused_draining="",
        ),
        _counter(
            "presence_changes", ("broker", "change"),
            "Members that joined or left watched channels, one for each process that watches.",
            presence_joined="joined", presence_left="left",
        ),
        _counter(
            "presence_entries_reaped", _BROKER,
            "Entries of dead processes that this process has removed.", presence_reaped="",
        ),
        _counter(
            "presence_resyncs", _BROKER,
            "Times that the members of a watched channel were read again after a loss.",
            presence_resyncs="",
        ),
        _counter(
            "presence_lease_renewals", _BROKER, "Renewals of the lease of a hub.",
            presence_renewals="",
        ),
        _counter(
            "presence_leases_missed", _BROKER,
            "Leases that ended before their renewal, so that the members were written again.",
            presence_replaced="",
        ),
        _gauge("open_sockets", "Open websockets, including those in their handshake.", "sockets"),
        _gauge(
            "open_sockets_with_frames", "Open websockets that get prepared frames.",
            "sockets_with_frames",
        ),
        _gauge("open_event_streams", "Open streams of server-sent events.", "event_streams"),
        _gauge("channels", "Channels subscribed to at the broker.", "channels"),
        _gauge("subscribers", "Sockets and other readers on at least one channel.", "subscribers"),
        _gauge(
            "presence_members", "Entries of presence that this process holds.", "presence_members",
        ),
        _gauge(
            "presence_watched_channels", "Channels whose members this process follows.",
            "presence_watched",
        ),
        _gauge(
            "queued_messages", "Messages that wait for slow clients or hooks.", "queued_messages"
        ),
        _gauge("queued_bytes", "Bytes that wait for slow clients or hooks.", "queued_bytes"),
        _gauge(
            "slow_clients", "Clients that read too slowly, or whose messages are dropped.",
            "slow_clients",
        ),
        _histogram(
            "publish_seconds", ("broker", "outcome"), "Time until the server has taken a publish.",
            FAST,
        ),
        _histogram("payload_bytes", _BROKER, "Size of published payloads.", SIZES),
        _histogram(
            "delivery_seconds", _BROKER, "Time to deliver a batch of messages to all subscribers.",
            FAST,
        ),
        _histogram(
            "broker_lag_seconds", _BROKER,
            "Time from a publish to its arrival in the same process.", FAST,
        ),
        _counter(
            "hook_calls", ("socket", "hook", "outcome"), "Calls of methods of socket classes."
        ),
        _histogram("hook_seconds", ("socket", "hook"), "Time of methods of socket classes.", FAST),
        _histogram("request_seconds", ("outcome",), "Time to answer requests of clients.", FAST),
        _counter("handshakes", ("outcome", "status"), "Handshakes that were decided."),
        _histogram("handshake_seconds", ("outcome",), "Time to decide a handshake.", FAST),
        _counter("connections_closed", ("code",), "Accepted websockets that have ended."),
        _histogram(
            "healing_seconds", ("broker", "outcome"),
            "Time from a loss until a channel had all kept messages, or a gap.", SLOW,
        ),
        _counter("slow_consumers", (), "Consumers that were found to be too slow."),
        _histogram(
            "slow_consumer_queue_bytes", (), "Bytes that waited when a consumer was found slow.",
            SIZES,
        ),
        _counter("links_lost", ("broker", "link"), "Lost connections to servers."),
        _histogram(
            "link_restore_seconds", ("broker", "link"),
            "Time from the loss of a connection to its replacement.", SLOW,
        ),
        _counter("connect_errors", ("broker", "link"), "Connections that could not be made."),
    ]
}  # fmt: skip
"""Name -> metric, in the order of the output."""
