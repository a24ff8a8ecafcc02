"""The promises on performance."""

from __future__ import annotations

from .contenders import (
    BARE,
    FLOOR,
    LIMIT,
    NODE,
    OURS,
    OURS_EXCLUDE_SELF,
    OURS_GAP,
    PUBLISHED,
    PUBSUB,
    REDIS_PY,
)
from .figures import (
    STORMS,
    against,
    difference,
    growth_points,
    most_connections,
    plain,
    ratio,
    storms_against,
)
from .scenarios import CHANNELS, INTERLEAVED, SOCKETS
from .verdict import Bound

_RATE, _CPU, _KIB = "deliveries_per_second", "server_cpu_us_per_delivery", "kib_per_socket"
_INSIDE, _READ = "cpu_us_per_delivery", "cpu_us_per_message"
_ONE_THREAD = "publishes_per_second_of_1_thread"
_THREADS = "publishes_per_second_of_16_threads"
_ONE_CHANNEL, _MANY_CHANNELS = (f"interleaved-{rooms}" for rooms in INTERLEAVED)

BOUNDS = (
    Bound("fan-out, deliveries/s: to the floor", against("fan-out", FLOOR, _RATE), at_least=0.5),
    Bound("fan-out: to node ws + ioredis", against("fan-out", NODE, _RATE), at_least=5),
    Bound(
        "fan-out of 1 kB of JSON, compressed: to uncompressed",
        ratio(("fan-out-1k-deflate", OURS, _RATE), ("fan-out-1k", OURS, _RATE)),
        at_least=0.8,
    ),
    Bound(
        f"{INTERLEAVED[1]} interleaved channels, server CPU per delivery: to one channel",
        ratio((_MANY_CHANNELS, OURS, _CPU), (_ONE_CHANNEL, OURS, _CPU)),
        at_most=4,
    ),
    Bound(
        f"{INTERLEAVED[1]} interleaved channels, server CPU per delivery",
        plain((_MANY_CHANNELS, OURS, _CPU)),
        at_most=1.5,
        unit="us",
    ),
    Bound(
        "fan-out, a class with a `gap` hook: to one without",
        ratio(("fan-out", OURS_GAP, _RATE), ("fan-out", OURS, _RATE)),
        at_least=0.95,
    ),
    Bound(
        "fan-out with exclude_self: to one without",
        ratio(("fan-out", OURS_EXCLUDE_SELF, _RATE), ("fan-out", OURS, _RATE)),
        at_least=0.95,
    ),
    Bound(
        "idle socket, compressed: without the same server's own uncompressed",
        difference(("idle-1k-deflate", OURS, _KIB), ("idle-1k", OURS, _KIB)),
        at_most=2,
        unit="KiB",
    ),
    Bound(
        "private channels one message at a time, server CPU: to the floor",
        against("steady-private", FLOOR, _CPU),
        at_most=2.2,
    ),
    Bound("latency, p50: to the floor", against("latency", FLOOR, "p50_ms"), at_most=1.2),
    Bound(
        "plain `broadcast` of one thread: to redis-py's `publish`",
        against("plain-publishing", REDIS_PY, _ONE_THREAD),
        at_least=0.8,
    ),
    Bound(
        "plain `broadcast` of 16 threads: to redis-py's `publish`",
        against("plain-publishing", REDIS_PY, _THREADS),
        at_least=1,
    ),
    Bound("fan-out, deliveries/s: to the limit", against("fan-out", LIMIT, _RATE), at_least=0.9),
    Bound("fan-out: to 3.1.0", against("fan-out", PUBLISHED, _RATE), at_least=3),
    Bound("fan-out: to channels + pubsub", against("fan-out", PUBSUB, _RATE), at_least=12),
    Bound("latency, p50: to the limit", against("latency", LIMIT, "p50_ms"), at_most=1.3),
    Bound("latency, p99: to the limit", against("latency", LIMIT, "p99_ms"), at_most=1.5),
    Bound(
        "private channels, server CPU per delivery: to the limit",
        against("private", LIMIT, _CPU),
        at_most=1.3,
    ),
    Bound(
        "delivery in one process: CPU, or 3.1.0's over it",
        plain(("delivery", OURS, _INSIDE)),
        at_most=0.8,
        unit="us",
        otherwise=Bound("", against("delivery", PUBLISHED, _INSIDE, inverse=True), at_least=12),
    ),
    Bound(
        "reading a message: CPU, or redis-py's over it",
        plain(("reading", OURS, _READ)),
        at_most=1.2,
        unit="us",
        otherwise=Bound("", against("reading", REDIS_PY, _READ, inverse=True), at_least=4),
    ),
    Bound(
        "broadcasts of 1,000 tasks/s: to redis-py one by one",
        against("publishing", REDIS_PY, "broadcasts_per_second"),
        at_least=5,
    ),
    Bound(
        "kept messages, published at once: to messages that are not kept",
        ratio(
            ("history", OURS, "kept_publishes_per_second"),
            ("history", OURS, "plain_publishes_per_second"),
        ),
        at_least=0.25,
    ),
    Bound(
        "reading a kept message, CPU: to one that is not kept",
        ratio(
            ("history", OURS, "kept_cpu_us_per_message"),
            ("history", OURS, "plain_cpu_us_per_message"),
        ),
        at_most=1.15,
    ),
    Bound(
        "broadcasts of 1,000 tasks: connections",
        plain(("publishing", OURS, "broker_connections_opened")),
        at_most=4,
        unit="",
    ),
    Bound(
        "broadcasts of 1,000 tasks: errors",
        plain(("publishing", OURS, "errors")),
        at_most=0,
        unit="",
    ),
    Bound(
        "idle socket, one channel for all: without the server's own",
        difference(("idle", OURS, _KIB), ("idle", BARE, _KIB)),
        at_most=10,
        unit="KiB",
    ),
    Bound(
        "idle socket, a channel each: without the server's own",
        difference((STORMS[0], OURS, _KIB), (STORMS[0], BARE, _KIB)),
        at_most=10,
        unit="KiB",
    ),
    Bound(
        "connect and subscribe storm, handshakes/s: to the limit, which subscribes, too",
        storms_against(LIMIT),
        at_least=0.95,
    ),
    Bound(
        "growth, 1k to 10k sockets: beyond the limit's",
        growth_points(f"sockets-{SOCKETS[0]}", f"sockets-{SOCKETS[-1]}"),
        at_most=15,
        unit="points",
    ),
    Bound(
        "growth, 1k to 100k channels: beyond the limit's",
        growth_points(f"channels-{CHANNELS[0]}", f"channels-{CHANNELS[-1]}"),
        at_most=15,
        unit="points",
    ),
    Bound(
        # A process has one connection to subscribe and one to publish.
        "broker connections of a process, at most",
        most_connections,
        at_most=2,
        unit="",
    ),
    Bound(
        "import beyond redis-py's",
        plain(("import", OURS, "import_ms")),
        at_most=50,
        unit="ms",
    ),
)
