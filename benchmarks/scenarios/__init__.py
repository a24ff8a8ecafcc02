"""The scenarios: each has a measurement, its peers and its broker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from ..brokers import Broker
from ..contenders import (
    BARE,
    CORE,
    FLOOR,
    LIMIT,
    NODE,
    OURS,
    OURS_EXCLUDE_SELF,
    OURS_GAP,
    OURS_PLAIN,
    PUBLISHED,
    PUBSUB,
    REDIS_PY,
)
from ..environments import Peer
from ..messages import texts
from .broadcasts import Broadcasts
from .channel_layers import LAYERS
from .inside import Program
from .joining import Idle, Storm
from .lost_link import LostLink
from .steady import Steady

ALL = (FLOOR, LIMIT, OURS, PUBLISHED, PUBSUB, CORE, NODE)
FASTEST = (FLOOR, OURS, OURS_PLAIN, NODE)

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
JSON_1K = texts(97, 1000)
"""Not a divisor of any number of rooms: each room gets all of them in turn."""
IDLE_TEXTS = JSON_1K[:4]
INTERLEAVED = (1, 10)
JSON_64K = texts(7, 64_000)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        title: the title of its table.
        measure: measures once; raises Failed. The names of the figures contain their units.
        peers: the peers that are measured.
        primaries: number of primaries of the cluster; 0 for a single server.
        most_runs: it is measured in that many runs, if more would not change what it shows.
    """

    title: str
    measure: Callable[[Peer, Broker], dict[str, float]]
    peers: tuple[Peer, ...]
    primaries: int = 0
    most_runs: int = 1000


def with_and_without_compression(
    name: str, title: str, broadcasts: Broadcasts, most_runs: int
) -> dict[str, Scenario]:
    """A scenario of broadcasts without compression, and with it as browsers negotiate it."""
    # The floor has no compression.
    compressing = tuple(peer for peer in FASTEST if peer is not FLOOR)
    deflate = dataclasses.replace(broadcasts, deflate=True)
    return {
        name: Scenario(title, broadcasts, FASTEST, most_runs=most_runs),
        f"{name}-deflate": Scenario(
            f"{title}, compressed", deflate, compressing, most_runs=most_runs
        ),
    }


PRIVATE = Broadcasts(sockets=1000, rooms=1000, messages=80_000)

SCENARIOS = {
    "fan-out": Scenario(
        "Fan-out: 500 sockets in one channel",
        Broadcasts(sockets=500, rooms=1, messages=1000),
        (*ALL, OURS_PLAIN, OURS_GAP, OURS_EXCLUDE_SELF),
    ),
    **with_and_without_compression(
        "fan-out-1k",
        "Fan-out of 1 kB of JSON: 500 sockets in one channel",
        Broadcasts(500, 1, messages=600, texts=JSON_1K, compressing_share=0.1),
        most_runs=5,
    ),
    "private": Scenario(
        "Private channels: 1,000 sockets, a channel each", PRIVATE, (*ALL, OURS_PLAIN)
    ),
    **with_and_without_compression(
        "private-1k",
        "1 kB of JSON on private channels: 1,000 sockets, a channel each",
        Broadcasts(sockets=1000, rooms=1000, messages=20_000, texts=JSON_1K),
        most_runs=3,
    ),
    "steady-private": Scenario(
        "One message at a time: 1,000 sockets, a channel each, 1,000 messages a second",
        Steady(sockets=1000, rooms=1000, per_second=1000, messages=3000, warm_up=1000),
        (FLOOR, LIMIT, OURS, OURS_PLAIN, NODE),
    ),
    "latency": Scenario(
        "Latency: 100 sockets in one channel, 100 messages a second",
        Steady(sockets=100, rooms=1, per_second=100, messages=500, warm_up=150),
        (*ALL, OURS_PLAIN),
    ),
    "rooms": Scenario(
        "Small rooms: 1,000 sockets, 10 in each of 100 channels",
        Broadcasts(sockets=1000, rooms=100, messages=20_000),
        ALL,
    ),
    **with_and_without_compression(
        "rooms-1k",
        "1 kB of JSON in small rooms: 1,000 sockets, 10 in each of 100 channels",
        Broadcasts(sockets=1000, rooms=100, messages=5000, texts=JSON_1K),
        most_runs=3,
    ),
    **{
        f"interleaved-{rooms}": Scenario(
            f"300 sockets, each in the same {rooms} channel{'s' * (rooms > 1)}, which take turns",
            Broadcasts(sockets=300, rooms=rooms, messages=1000, in_all_rooms=True),
            (FLOOR, OURS, NODE),
        )
        for rooms in INTERLEAVED
    },
    "large": Scenario(
        "64 KiB messages: 100 sockets in one channel",
        Broadcasts(100, 1, messages=200, texts=(json.dumps("x" * 65_534),), count="count"),
        ALL,
    ),
    **with_and_without_compression(
        "large-json",
        "64 kB of JSON: 100 sockets in one channel",
        Broadcasts(100, 1, 100, texts=JSON_64K, count="count", compressing_share=0.2),
        most_runs=3,
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
        (BARE, *ALL, OURS_PLAIN),
    ),
    **{
        name: Scenario(
            f"Idle sockets: 2,000 in one channel, after {len(IDLE_TEXTS)} messages of 1 kB{how}",
            Idle(sockets=2000, texts=IDLE_TEXTS, deflate=deflate),
            (OURS, OURS_PLAIN, NODE),
            most_runs=3,
        )
        for name, how, deflate in (
            ("idle-1k", "", False),
            ("idle-1k-deflate", ", compressed", True),
        )
    },
    **{
        f"sockets-{count}": Scenario(
            f"Growth: {count:,} sockets in one channel",
            Broadcasts(sockets=count, rooms=1, messages=BURST, warm_up=BURST),
            (FLOOR, LIMIT, OURS),
            most_runs=3,
        )
        for count in SOCKETS
    },
    **{
        f"channels-{count}": Scenario(
            f"Growth: {SOCKETS_OF_CHANNELS} sockets in {count:,} channels",
            Broadcasts(sockets=SOCKETS_OF_CHANNELS, rooms=count, messages=100_000),
            (FLOOR, LIMIT, OURS),
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
    "plain-publishing": Scenario(
        "In one process: calls of `broadcast` and of redis-py's `publish` from plain threads",
        Program("plain_publishing"),
        (OURS, REDIS_PY),
    ),
    "history": Scenario(
        "In one process: a channel with a rule for the history, and one without",
        Program("history"),
        (OURS,),
    ),
    **{name: Scenario(*scenario) for name, scenario in LAYERS.items()},
    "import": Scenario(
        "Import time; ours beyond that of redis-py", Program("imports"), (OURS, REDIS_PY)
    ),
}
