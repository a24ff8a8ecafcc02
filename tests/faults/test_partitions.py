"""Messages are lost on the side of the publishers, after the subscriber has had its gap.

During a network split, the old primary still accepts the messages of publishers on its side. No
subscriber gets these messages. They were published after the subscriber's gap and need another one.
The splits are made with network namespaces (see `namespaces`), the resets with a `FaultProxy`
between the publishers and the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import to_thread
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import redis

from django_sockets.testing.census import until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.faults.cluster_faults import kill_clients
from support.faults.harness import under_load
from support.faults.namespaces import (
    NamespacesUnavailable,
    Partition,
    PlacedSentinel,
    PlacedValkey,
    place,
)
from support.loop_thread import LoopThread

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

SPLIT_SECONDS = 1.5
"""How long both sides have a primary."""
PATIENCE_SECONDS = 10.0
RESETS = 100
RESET_EVERY_SECONDS = 0.02


@pytest.fixture
def network(missing: Callable[[str], NoReturn]) -> Iterator[Partition]:
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Partition())
        except NamespacesUnavailable as exc:
            missing(f"no network namespaces: run as root, with iproute2 ({exc})")
        yield network


def taken(node: CacheServer) -> int:
    """How many messages the node has accepted."""
    lines = node.execute("INFO", "commandstats").splitlines()
    words = ("cmdstat_publish:calls=", "cmdstat_spublish:calls=")
    return sum(int(line.split("=")[1].split(",")[0]) for line in lines if line.startswith(words))


def role(node: CacheServer) -> str:
    # A node that becomes a replica closes its clients' connections.
    with contextlib.suppress(redis.ConnectionError):
        return str(node.execute("ROLE")[0])
    return ""


def leads_to(node: CacheServer, other: CacheServer) -> bool:
    """Whether a node of a cluster knows that another one is a primary."""
    lines = [line.split(" ") for line in node.execute("CLUSTER", "NODES").splitlines()]
    return any(f":{other.port}@" in line[1] and "master" in line[2] for line in lines)


def subscriber_moves(old: CacheServer, new: CacheServer) -> bool:
    """Disconnect it; whether it then moves to the new primary. The old one may answer first."""
    kill_clients([old])
    with contextlib.suppress(TimeoutError):
        until(lambda: new.execute("PUBSUB", "SHARDCHANNELS", "*:{load:*"), 1, "it stays")
        return True
    return False


async def eventually(reach: Callable[[], object], otherwise: str) -> None:
    await to_thread(until, reach, PATIENCE_SECONDS, otherwise)


@pytest.fixture
def trio(network: Partition) -> Iterator[SentinelTrio]:
    """The first primary and one sentinel on the left; the rest, and the test, on the right."""
    trio = SentinelTrio(PlacedValkey)
    trio.sentinels = [PlacedSentinel(PlacedValkey.find_binary()) for _ in trio.sentinels]
    for servers in (trio.nodes, trio.sentinels):
        place(servers, network.left, network.right, network.right)
    with network.right.entered(), trio:
        yield trio


@pytest.fixture
def thread_on_the_left(network: Partition) -> Iterator[LoopThread]:
    with contextlib.ExitStack() as stack:
        with network.left.entered():
            thread = stack.enter_context(LoopThread())
        yield thread


async def test_sentinels_split_with_the_publishers_on_the_side_of_the_minority(
    network: Partition, trio: SentinelTrio, thread_on_the_left: LoopThread
) -> None:
    async with under_load(quick(trio.url), publishers_thread=thread_on_the_left) as load:
        old, *replicas = trio.nodes
        start = len(load.heard.events)
        await to_thread(network.split)
        await eventually(lambda: "master" in map(role, replicas), "no replica was promoted")
        await load.heard.until_gap(start=start)
        before = await to_thread(network.left.run, taken, old)
        await asyncio.sleep(SPLIT_SECONDS)
        assert await to_thread(network.left.run, taken, old) > before + 1000
        await to_thread(network.heal)
        await eventually(lambda: role(old) == "slave", "the old primary was not demoted")
        await load.moment("the demotion").traffic(within_seconds=2)


@pytest.fixture
def cluster(network: Partition) -> Iterator[CacheCluster]:
    """The first primary on the left, the rest on the right. The test reaches all, always."""
    cluster = CacheCluster(PlacedValkey)
    place(cluster.nodes, network.left, *[network.right] * (len(cluster.nodes) - 1))
    with network.router.entered(), cluster:
        yield cluster


async def test_a_cluster_bus_is_split_while_clients_reach_all_nodes(
    network: Partition, cluster: CacheCluster
) -> None:
    url = quick(cluster.url)
    # A publisher that gives up on its primary asks for the new one: on a busy machine it may.
    patient = quick(cluster.url, publish_timeout_seconds=10, dead_peer_seconds=10)
    async with under_load(url, publishers_url=patient) as load:
        old, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        load.may_replay = True  # The old primary passes on what it has taken to its former replica.
        await to_thread(network.split)
        new = await to_thread(cluster.wait_promoted, old)
        await eventually(lambda: all(leads_to(node, new) for node in others), "no news of it")
        # Its subscriber looks for the primary again; the publishers have no reason to.
        await eventually(lambda: subscriber_moves(old, new), "no subscription at the new primary")
        before = await to_thread(taken, old)
        await asyncio.sleep(SPLIT_SECONDS)
        assert await to_thread(taken, old) > before + 300
        await to_thread(network.heal)
        await eventually(lambda: role(old) == "slave", "the old primary was not demoted")
        await load.moment("the demotion").traffic(within_seconds=2)
        load.expect_untouched(spared)


@pytest.mark.parametrize("subscriber_is_cut", [False, True])
async def test_connections_of_publishers_are_reset_again_and_again(
    fresh_valkey_server: CacheServer, subscriber_is_cut: bool
) -> None:
    """The connection of the subscriber stays up, perhaps after a gap at the beginning."""
    server = fresh_valkey_server
    async with (
        FaultProxy(server.host, server.port) as proxy,
        under_load(quick(server.url), publishers_url=quick(server.url_at(proxy.port))) as load,
    ):
        load.may_replay = True  # What a connection carried when it was reset may come late.
        accepted = load.traffic.accepted
        if subscriber_is_cut:
            proxy.drop()
            await to_thread(kill_clients, [server])
        for _ in range(RESETS):
            proxy.drop()
            await asyncio.sleep(RESET_EVERY_SECONDS)
        assert load.traffic.accepted > accepted, "nothing was accepted"
        assert load.traffic.failures, "nothing failed"
        await load.moment("the last reset").traffic(within_seconds=2)
