"""The channel layers of Django Channels beside each other, under the same consumer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable

from ..brokers import Broker
from ..contenders import CORE, OUR_LAYER, PUBSUB
from ..environments import APPS, Peer
from ..publisher import publisher_for
from ..results import Failed
from .broadcasts import TEXT, Broadcasts
from .steady import Steady

__all__ = ["LAYERS"]

PEERS = (OUR_LAYER, PUBSUB, CORE)
GIVE_UP_SECONDS = 120
WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Sending:
    """`group_send` in a process of its own, `peers/channels_sending.py`.

    Attributes:
        way: "tasks": 1,000 tasks at once; "threads": `async_to_sync` on 16 threads.
    """

    way: str

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        done = subprocess.run(
            [str(peer.python), str(APPS / "channels_sending.py"), self.way],
            env={**peer.environ(), "BENCH_BROKER_URL": broker.url},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
        )
        if done.returncode:
            raise Failed((done.stderr.strip() or "it has failed").splitlines()[-1])
        found: dict[str, float] = json.loads(done.stdout)
        return found


@dataclasses.dataclass(frozen=True)
class Receiving:
    """The layer alone: tasks that only call `receive`, in `peers/channels_receiving.py`.

    A consumer adds the cost of Channels, which is the same with every layer and several times as
    high: two tasks and a thread for each message.

    Attributes:
        tasks, groups: the numbers of receivers and groups.
        messages: the number of messages to each group; a slow peer gets its share of them.
    """

    tasks: int
    groups: int
    messages: int

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        messages = max(2, int(self.messages * peer.share))
        arguments = map(str, (self.tasks, self.groups, WARM_UP, messages))
        command = [str(peer.python), str(APPS / "channels_receiving.py"), *arguments]
        environ = {**peer.environ(), "BENCH_BROKER_URL": broker.url}
        rooms = [f"room-{number}" for number in range(self.groups)]
        with (
            subprocess.Popen(
                command, env=environ, cwd="/", stdout=subprocess.PIPE, text=True
            ) as process,
            publisher_for(peer, broker) as publisher,
        ):
            try:
                _expect(process, "ready")
                publisher.send(publisher.prepare([(room, TEXT) for room in rooms] * WARM_UP))
                _expect(process, "warm")
                publisher.send(publisher.prepare([(room, TEXT) for room in rooms] * messages))
                found: dict[str, float] = json.loads(_expect(process, "{"))
            finally:
                process.kill()
        return found


def _expect(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith(start):
        raise Failed(line.strip() or "the receiving process has failed")
    return line


Measure = Callable[[Peer, Broker], dict[str, float]]

LAYERS: dict[str, tuple[str, Measure, tuple[Peer, ...]]] = {
    "layer-fan-out": (
        "Channel layers, fan-out: 500 consumers in one group",
        Broadcasts(sockets=500, rooms=1, messages=500),
        PEERS,
    ),
    "layer-private": (
        "Channel layers, private channels: 1,000 consumers, a group each",
        Broadcasts(sockets=1000, rooms=1000, messages=80_000),
        PEERS,
    ),
    "layer-latency": (
        "Channel layers, latency: 50 consumers in one group, 40 messages a second",
        Steady(sockets=50, rooms=1, per_second=40, messages=200, warm_up=80),
        PEERS,
    ),
    "layer-receiving": (
        "Channel layers alone, fan-out: 500 calls of `receive` in one group",
        Receiving(tasks=500, groups=1, messages=2000),
        PEERS,
    ),
    "layer-receiving-private": (
        "Channel layers alone, private channels: 1,000 calls of `receive`, a group each",
        Receiving(tasks=1000, groups=1000, messages=300),
        PEERS,
    ),
    "layer-tasks": ("Channel layers: `group_send` of 1,000 tasks at once", Sending("tasks"), PEERS),
    "layer-threads": (
        "Channel layers: `async_to_sync(group_send)` on 16 plain threads",
        Sending("threads"),
        PEERS,
    ),
}
"""Name -> title, measurement, peers."""
