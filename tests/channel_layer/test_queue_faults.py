"""Normal channels with several readers while their server fails.

A message is given to one reader, and each reader gets the messages of a channel in order. An
accepted message is delivered, or counted in `queue_unknown` by the reader that may have taken it.
If a primary fails with writes that its replica does not have, these writes are undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from django_sockets.backends.client.commands import server_name, slot_of
from django_sockets.errors import QueueError
from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.faults.cluster_faults import kill_clients

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

CHANNELS = ["work", "mail", "images"]
READERS = 3
RECOVERY_SECONDS = 20.0
PAUSE_SECONDS = 0.003
REPLICATION_SECONDS = 1.0
"""The oldest write that a killed primary may not have replicated."""
LAST = 10**9
"""The number of the last message of a channel."""
_prefixes = itertools.count()

Fault: TypeAlias = tuple[float, float]
"""When the fault of a primary began and ended."""


class Workers:
    """Tasks that send numbered messages to three channels, and three layers that receive them.

    Attributes:
        accepted: channel -> number -> when `send` accepted it.
        unknown: channel -> the numbers of which `send` does not know whether they were accepted.
        got: channel -> the numbers that each reader received, in order.
        first: channel -> number -> when it was first received.
    """

    def __init__(self, url: str) -> None:
        self.prefix = f"queues{next(_prefixes)}"
        # Different options make different hubs, with connections of their own.
        self.layers = [
            ChannelLayer(url=quick(url, log_interval_seconds=5 + number), prefix=self.prefix)
            for number in range(READERS + 1)
        ]
        self.sender, *self.readers = self.layers
        self.accepted: dict[str, dict[int, float]] = {name: {} for name in CHANNELS}
        self.unknown: dict[str, set[int]] = {name: set() for name in CHANNELS}
        self.got: dict[str, list[list[int]]] = {
            name: [[] for _ in self.readers] for name in CHANNELS
        }
        self.first: dict[str, dict[int, float]] = {name: {} for name in CHANNELS}
        self.time = asyncio.get_running_loop().time
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()

    def slot(self, channel: str) -> int:
        return slot_of(server_name(b"django_sockets", f"{self.prefix}:q:{channel}"))

    async def send(self, channel: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            try:
                await self.sender.send(channel, {"type": "job", "n": number})
            except QueueError as exc:
                if exc.unknown:
                    self.unknown[channel].add(number)
            except self.sender.ChannelFull:
                pass
            else:
                self.accepted[channel][number] = self.time()
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self, channel: str, reader: int) -> None:
        while True:
            number = (await self.readers[reader].receive(channel))["n"]
            self.got[channel][reader].append(number)
            self.first[channel].setdefault(number, self.time())
            self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self._changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.2)

        await asyncio.wait_for(wait(), RECOVERY_SECONDS)

    async def more(self, count: int) -> None:
        """Return when each channel has delivered so many messages that are sent from now on."""
        newest = {name: max(self.accepted[name], default=-1) for name in CHANNELS}
        await self.until(
            lambda: all(
                sum(number > newest[name] for number in self.first[name]) >= count
                for name in CHANNELS
            )
        )

    def stop(self) -> None:
        self._stop.set()

    def lost(self) -> dict[str, list[int]]:
        return {n: sorted(self.accepted[n].keys() - self.first[n].keys()) for n in CHANNELS}

    def counted(self) -> int:
        return sum(layer.stats()["queue_unknown"] for layer in self.readers)

    def check(self, failed: Fault | None) -> None:
        """Check all messages.

        Args:
            failed: the fault of a primary. Its last writes may be undone.
        """
        for name in CHANNELS:
            numbers = [number for reader in self.got[name] for number in reader]
            again = {number for number in numbers if numbers.count(number) > 1}
            assert [n for n in again if not undone(self.first[name][n], failed)] == []
            assert set(numbers) <= self.accepted[name].keys() | self.unknown[name]
            for reader in self.got[name]:
                ordered = [number for number in reader if number not in again]
                assert ordered == sorted(ordered), name
        assert self.missing(failed) <= self.counted(), self.lost()

    def missing(self, failed: Fault | None) -> int:
        """The number of lost messages that the fault has not undone."""
        return sum(
            not undone(self.accepted[name][number], failed)
            for name, numbers in self.lost().items()
            for number in numbers
        )


def undone(when: float, failed: Fault | None) -> bool:
    """Whether a fault may have undone what a server had done at that time."""
    if failed is None:
        return False
    began, ended = failed
    return began - REPLICATION_SECONDS < when < ended + REPLICATION_SECONDS


@contextlib.asynccontextmanager
async def working(url: str, *, undoes: bool = False) -> AsyncIterator[Workers]:
    """Workers before, during and after a fault, which is the block.

    Args:
        undoes: a primary fails without a chance to replicate its last writes.
    """
    workers = Workers(url)
    sending = [asyncio.create_task(workers.send(name)) for name in CHANNELS]
    reading = [
        asyncio.create_task(workers.read(name, reader))
        for name in CHANNELS
        for reader in range(READERS)
    ]
    try:
        await workers.more(20)
        failed_at = workers.time()
        yield workers
        ended_at = workers.time()
        await workers.more(20)
        workers.stop()
        await asyncio.gather(*sending)
        failed = (failed_at, ended_at) if undoes else None
        if undoes:
            # Each channel may be on another server. Its queue is empty after its last message.
            for name in CHANNELS:
                await workers.sender.send(name, {"type": "job", "n": LAST})
                workers.accepted[name][LAST] = workers.time()
            await workers.until(lambda: all(LAST in workers.first[name] for name in CHANNELS))
        # Another reader may have taken an earlier message, whose reply is on its way.
        await workers.until(lambda: workers.missing(failed) <= workers.counted())
    finally:
        for task in (*sending, *reading):
            task.cancel()
        await asyncio.gather(*sending, *reading, return_exceptions=True)
        await workers.sender.flush()
        for layer in workers.layers:
            await layer.close()
    workers.check(failed)
    assert [task for task in reading if not task.cancelled()] == []


async def test_lost_connections(fresh_valkey_server: CacheServer) -> None:
    async with working(fresh_valkey_server.url) as workers:
        for kind in ("NORMAL", "PUBSUB") * 3:
            await to_thread(kill_clients, [fresh_valkey_server], kind)
            await workers.more(3)


# A cluster


async def migrate_keys(cluster: CacheCluster, workers: Workers) -> None:
    """Move a slot key by key, as `valkey-cli --cluster reshard` does."""
    slot = workers.slot("work")
    primaries = await to_thread(cluster.primaries)
    source = await to_thread(cluster.primary_of, slot)
    target = next(node for node in primaries if node is not source)
    source_id, target_id = (node.execute("CLUSTER", "MYID") for node in (source, target))
    target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    await workers.more(10)
    while keys := source.execute("CLUSTER", "GETKEYSINSLOT", slot, 10):
        for key in keys:
            source.execute("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    await workers.more(10)
    for node in (target, source, *(n for n in primaries if n not in (source, target))):
        node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)


async def migrate_atomically(cluster: CacheCluster, workers: Workers) -> None:
    """Move a slot as a whole, which Valkey 9 can do."""
    slot = workers.slot("work")
    primaries = await to_thread(cluster.primaries)
    source = await to_thread(cluster.primary_of, slot)
    target = next(node for node in primaries if node is not source)
    target_id = target.execute("CLUSTER", "MYID")
    source.execute("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)
    while await to_thread(cluster.primary_of, slot) is source:
        await workers.more(1)


async def fail_over(cluster: CacheCluster, workers: Workers) -> None:
    node = await to_thread(cluster.primary_of, workers.slot("work"))
    replica = (await to_thread(cluster.replicas_of, node))[0]
    await to_thread(cluster.failover, replica)


async def kill_primary(cluster: CacheCluster, workers: Workers) -> None:
    node = await to_thread(cluster.primary_of, workers.slot("work"))
    await to_thread(node.kill)
    await to_thread(cluster.wait_promoted, node)


async def freeze_primary(cluster: CacheCluster, workers: Workers) -> None:
    node = await to_thread(cluster.primary_of, workers.slot("work"))
    await to_thread(node.pause)
    await to_thread(cluster.wait_promoted, node)
    await to_thread(node.resume)


Cause = Callable[[CacheCluster, Workers], Awaitable[Any]]


@pytest.mark.parametrize("fault", [migrate_keys, migrate_atomically, fail_over])
async def test_a_cluster_whose_slots_move(
    restored_valkey_cluster: CacheCluster, fault: Cause
) -> None:
    async with working(restored_valkey_cluster.url) as workers:
        await fault(restored_valkey_cluster, workers)


@pytest.mark.parametrize("fault", [kill_primary, freeze_primary])
async def test_a_cluster_that_loses_a_primary(
    restored_valkey_cluster: CacheCluster, fault: Cause
) -> None:
    async with working(restored_valkey_cluster.url, undoes=True) as workers:
        await fault(restored_valkey_cluster, workers)


async def test_sentinels(restored_valkey_sentinels: SentinelTrio) -> None:
    async with working(restored_valkey_sentinels.url, undoes=True):
        await to_thread(restored_valkey_sentinels.failover)
