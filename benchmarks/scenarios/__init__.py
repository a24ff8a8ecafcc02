"""The scenarios: each has a measurement, its peers and its broker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from ..brokers import Broker
from ..environments import BARE, CORE, LIMIT, NODE, OURS, PUBLISHED, PUBSUB, REDIS_PY, Peer
from .broadcasts import Broadcasts
from .channel_layers import LAYERS
from .inside import Program
from .joining import Idle, Storm
from .latency import Latency
from .lost_link import LostLink

ALL = (LIMIT, OURS, PUBLISHED, PUBSUB, CORE, NODE)

SOCKETS = (1000, 2000, 5000, 10_000)
CHANNELS = (1000, 10_000, 100_000)
SOCKETS_OF_CHANNELS = 100
BEFORE_STORMS = (100, 300, 500, 700, 900)
"""Number of sockets that exist before a storm. About once in a thousand sockets, CPython's garbage
collector visits all objects, which takes a tenth of a storm. With a single number one peer could
always be measured just before a collection, and another one just after it."""
BURST = 40
"""Messages to each number of sockets: the same for all, because a delivery costs less in a longer
burst. As many are sent as a warm-up: the kernel writes to a new connection for a quarter less."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        title: the title of its table.
        measure: measures once; raises Failed. The names of the figures contain their units.
        peers: the peers that are measured.
        primaries: number of primaries of the cluster; 0 for a single server.
    """

    title: str
    measure: Callable[[Peer, Broker], dict[str, float]]
    peers: tuple[Peer, ...]
    primaries: int = 0


PRIVATE = Broadcasts(sockets=1000, rooms=1000, messages=80_000)

SCENARIOS = {
    "fan-out": Scenario(
        "Fan-out: 500 sockets in one channel",
        Broadcasts(sockets=500, rooms=1, messages=500),
        ALL,
    ),
    "private": Scenario("Private channels: 1,000 sockets, a channel each", PRIVATE, ALL),
    "latency": Scenario(
        "Latency: 100 sockets in one channel, 100 messages a second",
        Latency(sockets=100, per_second=100, messages=500),
        ALL,
    ),
    "rooms": Scenario(
        "Small rooms: 1,000 sockets, 10 in each of 100 channels",
        Broadcasts(sockets=1000, rooms=100, messages=20_000),
        ALL,
    ),
    "large": Scenario(
        "64 KiB messages: 100 sockets in one channel",
        Broadcasts(100, 1, messages=200, text=json.dumps("x" * 65_534), count="count"),
        ALL,
    ),
    **{
        f"storm-{before}": Scenario(
            f"Connect storm: 2,000 sockets, a channel each, after {before} others",
            Storm(2000, before),
            (BARE, *ALL) if before == BEFORE_STORMS[0] else (BARE, LIMIT, OURS),
        )
        for before in BEFORE_STORMS
    },
    "idle": Scenario(
        "Idle sockets: 2,000 in one channel",
        Idle(sockets=2000),
        (BARE, *ALL),
    ),
    **{
        f"sockets-{count}": Scenario(
            f"Growth: {count:,} sockets in one channel",
            Broadcasts(sockets=count, rooms=1, messages=BURST, warm_up=BURST),
            (LIMIT, OURS),
        )
        for count in SOCKETS
    },
    **{
        f"channels-{count}": Scenario(
            f"Growth: {SOCKETS_OF_CHANNELS} sockets in {count:,} channels",
            Broadcasts(sockets=SOCKETS_OF_CHANNELS, rooms=count, messages=100_000),
            (LIMIT, OURS),
        )
        for count in CHANNELS
    },
    "lost-link": Scenario(
        "Lost link: the broker cuts every subscription of 1,000 sockets, a channel each",
        LostLink(sockets=1000, give_up_seconds=10),
        # The limit does not reconnect; the core layer polls lists and does not subscribe.
        (OURS, PUBLISHED, PUBSUB, NODE),
    ),
    **{
        f"cluster-{primaries}": Scenario(
            f"Private channels on a cluster of {primaries}; the others have no sharded pub/sub",
            PRIVATE,
            (OURS,),
            primaries,
        )
        for primaries in (1, 3)
    },
    "delivery": Scenario(
        "In one process, without a server: deliveries to 500 sockets",
        Program("delivery"),
        (LIMIT, OURS, PUBLISHED),
    ),
    "reading": Scenario(
        "In one process: reading messages off the broker", Program("reading"), (OURS, REDIS_PY)
    ),
    "publishing": Scenario(
        "In one process: broadcasts of 1,000 tasks at once; redis-py awaited one by one",
        Program("publishing"),
        (OURS, REDIS_PY),
    ),
    **{name: Scenario(*scenario) for name, scenario in LAYERS.items()},
    "import": Scenario(
        "Import time; ours beyond that of redis-py", Program("imports"), (OURS, REDIS_PY)
    ),
}
