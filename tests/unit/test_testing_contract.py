"""The helpers of the contract suite are right for brokers with several servers."""

from __future__ import annotations

from collections.abc import Sequence

from django_sockets.backends.sharded import sharded_broker
from django_sockets.conf import load_config
from django_sockets.registry import open_broker
from django_sockets.testing.contract.base import RecordingSink, fence

HOSTS = [f"memory://fence-{number}" for number in range(3)]
ROOMS = [f"room:{number}" for number in range(40)]


class HeldSink:
    """Holds back the messages of one host until a message on another channel than `ROOMS`."""

    def __init__(self, sink: RecordingSink) -> None:
        self._sink = sink
        self._held: list[tuple[str, bytes]] = []

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self._held += batch
        if not {channel for channel, _ in self._held} <= set(ROOMS):
            held, self._held = self._held, []
            await self._sink.deliver(held)

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self._sink.lost(channels, reason)


async def test_a_fence_waits_for_the_earlier_messages_of_each_host() -> None:
    url = load_config({"url": HOSTS}).url
    sink = RecordingSink()
    publisher = open_broker(url)
    broker = sharded_broker(url, [open_broker(host, HeldSink(sink)) for host in url.shards])
    await broker.subscribe(ROOMS)
    await publisher.publish(ROOMS, b"earlier")
    assert sink.seen == []
    await fence(publisher, broker, sink)
    assert sorted(sink.seen) == sorted(("message", room, b"earlier") for room in ROOMS)
    await publisher.aclose()
    await broker.aclose()
