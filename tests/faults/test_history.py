"""With a history, faults of connections lose nothing and cause no gap, and a failover is one gap.

Publishers have connections of their own, so that only the reader is hit where the test says so. A
publish that fails is a gap by itself, with a history as without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio import to_thread
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator

import pytest

from django_sockets import Gap, open_hub
from django_sockets.testing.census import until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import DEAD_PEER_SECONDS, quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.proxy import Direction, FaultProxy
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from support.faults.harness import Load, under_load
from support.loop_thread import LoopThread

pytestmark = [pytest.mark.load, pytest.mark.timeout(90)]

KEPT = {"history_messages": 20_000, "history_seconds": 300}
PER_SECOND = 600
PATIENT = {**KEPT, "publish_timeout_seconds": 20, "dead_peer_seconds": 20}


def kept(url: str, **options: object) -> str:
    """The URL with short deadlines and a history of all channels."""
    return quick(url, **KEPT, **options)


@contextlib.asynccontextmanager
async def loaded(
    url: str, publishers_url: str | None = None, thread: LoopThread | None = None
) -> AsyncIterator[Load]:
    async with under_load(
        url, publishers_url=publishers_url, publishers_thread=thread, per_second=PER_SECOND
    ) as load:
        yield load


@contextlib.asynccontextmanager
async def whole(
    url: str, publishers_url: str, thread: LoopThread | None = None
) -> AsyncIterator[Load]:
    """Load with a history on the reader's URL; nothing fails or is lost, and there is no gap."""
    async with loaded(url, publishers_url, thread) as load:
        yield load
    assert load.traffic.failures == []
    assert load.gaps() == []
    assert len(load.heard.messages) == load.traffic.accepted


@pytest.fixture
async def cluster(valkey_cluster: CacheCluster) -> AsyncIterator[CacheCluster]:
    yield valkey_cluster
    await to_thread(valkey_cluster.restore)


@pytest.fixture
async def trio(valkey_sentinels: SentinelTrio) -> AsyncIterator[SentinelTrio]:
    yield valkey_sentinels
    await to_thread(valkey_sentinels.restore)


@pytest.fixture
def elsewhere() -> Iterator[LoopThread]:
    with LoopThread() as loop:
        yield loop


# Faults after which the server still has everything


async def test_a_link_that_is_cut_again_and_again(fresh_redis_server: CacheServer) -> None:
    server = fresh_redis_server
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        whole(kept(server.url_at(proxy.port)), kept(server.url)) as load,
    ):
        for number in range(6):
            cut = load.moment(f"cut {number}")
            proxy.drop()
            await cut.traffic(within_seconds=1)


async def test_a_link_with_tls(fresh_redis_tls_server: CacheServer) -> None:
    server = fresh_redis_tls_server
    async with whole(kept(server.url), kept(server.url)) as load:
        for number in range(3):
            cut = load.moment(f"cut {number}")
            await to_thread(server.execute, "CLIENT", "KILL", "TYPE", "pubsub")
            await cut.traffic(within_seconds=1)


@pytest.mark.parametrize("direction", ["reads", "both"])
async def test_a_link_that_carries_nothing(
    fresh_valkey_server: CacheServer, direction: Direction
) -> None:
    server = fresh_valkey_server
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        whole(kept(server.url_at(proxy.port)), kept(server.url)) as load,
    ):
        silence = load.moment("the silence")
        proxy.blackhole(direction)
        await silence.traffic(within_seconds=DEAD_PEER_SECONDS + 2)


async def test_a_server_that_is_stopped_and_continues(fresh_valkey_server: CacheServer) -> None:
    server = fresh_valkey_server
    async with whole(kept(server.url), quick(server.url, **PATIENT)) as load:
        await to_thread(server.pause)
        await asyncio.sleep(2 * DEAD_PEER_SECONDS)  # The reader has dropped its connection by then.
        await to_thread(server.resume)
        await load.moment("the awakening").traffic(within_seconds=3)


async def test_a_process_that_is_stopped_for_ten_seconds(
    fresh_valkey_server: CacheServer, elsewhere: LoopThread
) -> None:
    server = fresh_valkey_server
    server.execute("CONFIG", "SET", "client-output-buffer-limit", "pubsub 2097152 0 0")
    async with whole(kept(server.url), kept(server.url), elsewhere) as load:
        time.sleep(10)  # noqa: ASYNC251 - The event loop of the reader does nothing meanwhile.
        await load.moment("the awakening").traffic(within_seconds=3)


async def test_slots_that_move_in_bulk(cluster: CacheCluster) -> None:
    async with whole(kept(cluster.url), quick(cluster.url, **PATIENT)) as load:
        source, target, other = await to_thread(cluster.primaries)
        moved = {slot_of(name) for name in load.channels_on(cluster, source)[:20]}
        await to_thread(move_with_keys, moved, source, target, other)
        await load.moment("the move").traffic(within_seconds=2)


def move_with_keys(
    slots: Collection[int], source: CacheServer, target: CacheServer, other: CacheServer
) -> None:
    """Move slots and their keys, as the tools of the servers do."""
    source_id, target_id = (node.execute("CLUSTER", "MYID") for node in (source, target))
    for slot in slots:
        target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.execute("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                source.execute("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        for node in (target, source, other):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)


async def test_a_link_to_one_node_of_a_cluster(cluster: CacheCluster) -> None:
    node, *_ = await to_thread(cluster.primaries)
    async with whole(kept(cluster.url), kept(cluster.url)) as load:
        for number in range(3):
            cut = load.moment(f"cut {number}")
            await to_thread(node.execute, "CLIENT", "KILL", "TYPE", "pubsub")
            await cut.traffic(within_seconds=1)


async def test_connections_are_replaced_before_their_greatest_age(
    valkey_server: CacheServer,
) -> None:
    url = kept(valkey_server.url, connection_max_age_seconds=1)
    async with whole(url, kept(valkey_server.url)) as load:
        load.may_replay = True  # For a moment, both connections deliver.
        await asyncio.sleep(3)  # Several rotations.


@pytest.mark.parametrize("size_bytes", [1024, 8192])
async def test_a_subscriber_that_the_server_cuts_for_its_full_output_buffer(
    fresh_valkey_server: CacheServer, elsewhere: LoopThread, size_bytes: int
) -> None:
    server = fresh_valkey_server
    server.execute("CONFIG", "SET", "client-output-buffer-limit", "pubsub 2097152 0 0")
    room, published = "slow:1", [b""]
    rules = {"history_messages": 40_000, "history_seconds": 300}
    reader_url = quick(server.url, events_queue_size=1 << 20, **rules)

    def cuts() -> int:
        log = (server.directory / "server.log").read_text(errors="replace")
        return log.count("overcoming of output buffer limits")

    async def publish_until_the_cut() -> None:
        async with open_hub(quick(server.url, **rules)) as publisher:
            while not cuts():
                first = len(published)
                payloads = [b"%d " % n + bytes(size_bytes) for n in range(first, first + 200)]
                published.extend(payloads)
                await asyncio.gather(*(publisher.publish(room, one) for one in payloads))
            await publisher.publish(room, b"the end")

    async with open_hub(reader_url) as reader, listening(reader, room) as heard:
        elsewhere.run(publish_until_the_cut())  # Nothing runs on this loop meanwhile.
        await heard.until_payload(b"the end")
        assert heard.gaps == []
        assert [event.payload for event in heard.messages] == [*published[1:], b"the end"]


# Failovers: one gap of each channel


def gaps_by_channel(load: Load) -> Counter[str]:
    return Counter(name for gap in load.gaps() for name in gap.channels)


async def test_an_orderly_failover_of_a_cluster_is_one_gap(cluster: CacheCluster) -> None:
    async with loaded(kept(cluster.url)) as load:
        node, *others = await to_thread(cluster.primaries)
        moved = load.channels_on(cluster, node)
        load.expect_untouched(load.channels_on(cluster, *others))
        (replica,) = await to_thread(cluster.replicas_of, node)
        await to_thread(cluster.failover, replica)
        await load.moment("the failover").traffic(within_seconds=2)
    assert gaps_by_channel(load) == dict.fromkeys(moved, 1)


async def test_a_killed_primary_of_a_cluster_is_one_gap(cluster: CacheCluster) -> None:
    async with loaded(kept(cluster.url)) as load:
        node, *_ = await to_thread(cluster.primaries)
        moved = load.channels_on(cluster, node)
        await to_thread(node.kill)
        await to_thread(cluster.wait_promoted, node)
        await load.moment("the promotion").traffic(within_seconds=2)
    gaps = gaps_by_channel(load)
    assert {name: gaps[name] for name in moved} == dict.fromkeys(moved, 1)
    # Without all of its slots, a cluster refuses to write anywhere, and the publish raises.
    failed = {failure.channel for failure in load.traffic.failures}
    assert set(gaps) <= failed.union(moved)


async def test_a_frozen_primary_that_is_replaced_and_wakes_up(cluster: CacheCluster) -> None:
    async with loaded(kept(cluster.url)) as load:
        node, *_ = await to_thread(cluster.primaries)
        moved = load.channels_on(cluster, node)
        await to_thread(node.pause)
        await to_thread(cluster.wait_promoted, node)
        await load.moment("the promotion").traffic(within_seconds=4)
        # Each publisher has signalled by then that a publish had failed.
        await load.healthy()
        await to_thread(node.resume)
        awake = load.moment("the awakening")
        load.may_replay = True
        await to_thread(cluster.wait_ok)
        await load.moment("the end").traffic(within_seconds=4)
    gaps = gaps_by_channel(load)
    assert {name: gaps[name] >= 1 for name in moved} == dict.fromkeys(moved, True)
    assert load.gaps(awake) == []


async def test_a_takeover_and_a_failover_back_are_inside_gaps(cluster: CacheCluster) -> None:
    async with loaded(kept(cluster.url)) as load:
        node, *_ = await to_thread(cluster.primaries)
        moved = load.channels_on(cluster, node)
        (replica,) = await to_thread(cluster.replicas_of, node)
        await to_thread(replica.execute, "CLUSTER", "FAILOVER", "TAKEOVER")
        await load.moment("the takeover").traffic(within_seconds=3)
        load.may_replay = True
        await to_thread(until, lambda: leads_others(replica, node), 10, "the old one is no replica")
        await to_thread(cluster.failover, node)
        await load.moment("the failover back").traffic(within_seconds=3)
    gaps = gaps_by_channel(load)
    assert {name: gaps[name] >= 1 for name in moved} == dict.fromkeys(moved, True)
    assert max(gaps.values()) <= 2


def leads_others(primary: CacheServer, replica: CacheServer) -> bool:
    role = replica.execute("ROLE")
    return role[0] == "slave" and role[2] == primary.port and role[3] == "connected"


@pytest.mark.parametrize("fault", ["kill", "failover"])
async def test_a_failover_by_sentinels_is_one_gap(trio: SentinelTrio, fault: str) -> None:
    async with loaded(kept(trio.url)) as load:
        if fault == "kill":
            primary = await to_thread(trio.primary)
            await to_thread(primary.kill)
            await to_thread(trio.wait_promoted, primary)
        else:
            await to_thread(trio.failover)
        await load.moment("the promotion").traffic(within_seconds=3)
    assert all(isinstance(gap, Gap) for gap in load.gaps())
    assert gaps_by_channel(load) == dict.fromkeys(load.traffic.channels, 1)
