"""A cluster loses nodes, moves slots and cuts connections under load, without a silent loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from asyncio import to_thread
from collections.abc import AsyncIterator

import pytest

from django_sockets import Gap
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import DEAD_PEER_SECONDS, quick
from django_sockets.testing.proxy import Direction
from django_sockets.testing.slots import slot_of
from support.faults.cluster_faults import behind_proxy, connections_received, kill_clients, setting
from support.faults.harness import CHANNELS, under_load
from support.faults.nemesis import Nemesis

pytestmark = [pytest.mark.load, pytest.mark.timeout(90)]


AT_MOST_SECONDS = 1.2
"""For a publish that fails, with the deadlines of `quick`."""
OUTAGE_SECONDS = 5
"""The pauses between attempts to connect have grown to the longest one, 1 s, by then."""


@pytest.fixture
async def cluster(valkey_cluster: CacheCluster) -> AsyncIterator[CacheCluster]:
    yield valkey_cluster
    await to_thread(valkey_cluster.restore)


async def test_a_killed_primary_is_back_a_second_after_its_replica_leads(
    cluster: CacheCluster,
) -> None:
    async with under_load(quick(cluster.url)) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        await to_thread(node.kill)
        await to_thread(cluster.wait_promoted, node)
        await load.moment("the promotion").traffic(within_seconds=1)
        load.expect_untouched(spared)


async def test_a_frozen_primary_is_replaced_and_says_nothing_when_it_wakes_up(
    cluster: CacheCluster,
) -> None:
    # It accepts connections and sends nothing. No caller may wait for such a connection.
    async with under_load(quick(cluster.url, connect_timeout_seconds=5)) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        await to_thread(node.pause)
        await to_thread(cluster.wait_promoted, node)
        await load.moment("the promotion").traffic(within_seconds=2)
        # Messages queued at the frozen node are old only if a newer one has arrived.
        await load.healthy()
        await to_thread(node.resume)
        awake = load.moment("the awakening")
        load.may_replay = True
        await to_thread(cluster.wait_ok)
        await asyncio.sleep(1)  # What was queued at the sleeper would come now.
        load.expect_untouched(spared)
        load.expect_untouched(load.channels_on(cluster, *await to_thread(cluster.primaries)), awake)


async def test_slots_that_move_in_bulk_lose_nothing_without_a_gap(cluster: CacheCluster) -> None:
    async with under_load(quick(cluster.url)) as load:
        source, target, other = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, target, other)
        await to_thread(cluster.move_slots, range(2000), source, target)
        await load.moment("the move").traffic(within_seconds=1)
        load.expect_untouched(spared)


async def test_an_orderly_failover(cluster: CacheCluster) -> None:
    async with under_load(quick(cluster.url)) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        (replica,) = await to_thread(cluster.replicas_of, node)
        await to_thread(cluster.failover, replica)
        await load.moment("the failover").traffic(within_seconds=1)
        load.expect_untouched(spared)


async def test_all_subscribers_can_be_disconnected_again_and_again(
    cluster: CacheCluster,
) -> None:
    async with under_load(quick(cluster.url)) as load:
        for number in range(20):
            cut = load.moment(f"cut {number}")
            await to_thread(kill_clients, cluster.nodes)
            await cut.traffic(within_seconds=1)
            await asyncio.sleep(max(0.0, 0.3 - cut.seconds))


@pytest.mark.parametrize("direction", ["reads", "writes", "both"])
async def test_a_link_that_carries_nothing_any_more_is_noticed(
    cluster: CacheCluster, direction: Direction
) -> None:
    node, *others = await to_thread(cluster.primaries)
    async with behind_proxy(cluster, node) as proxy, under_load(quick(cluster.url)) as load:
        spared = load.channels_on(cluster, *others)
        silence = load.moment("the silence")
        proxy.blackhole(direction)
        await silence.traffic(within_seconds=DEAD_PEER_SECONDS + 1)
        load.expect_untouched(spared)


async def test_a_cluster_that_was_down_as_a_whole(cluster: CacheCluster) -> None:
    async with under_load(quick(cluster.url)) as load:
        await to_thread(cluster.kill_all)
        await asyncio.sleep(OUTAGE_SECONDS)
        await to_thread(cluster.start_all)
        await load.moment("the end of the outage").traffic(within_seconds=2)


async def test_without_full_coverage_only_the_lost_slots_fail_and_they_fail_fast(
    cluster: CacheCluster,
) -> None:
    with setting(cluster.nodes, {"cluster-require-full-coverage": "no"}):
        async with under_load(quick(cluster.url)) as load:
            node, *others = await to_thread(cluster.primaries)
            spared = load.channels_on(cluster, *others)
            hit = set(load.channels_on(cluster, node))
            (replica,) = await to_thread(cluster.replicas_of, node)
            await to_thread(replica.kill)
            await to_thread(node.kill)
            lost = load.moment("the loss")
            await asyncio.sleep(3)
            await load.moment("3 s without some slots").traffic(within_seconds=0.5, channels=spared)
            failures = [f for f in load.traffic.failures if f.began > lost.at]
            assert {f.channel for f in failures} == hit
            slowest = max(f.seconds for f in failures)
            print(f"failures took {slowest:.2f} s at most, bound {AT_MOST_SECONDS:g} s")
            assert slowest < AT_MOST_SECONDS
            load.expect_untouched(spared)
            await to_thread(cluster.start_all)
            await load.moment("the return").traffic(within_seconds=2)


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_while_slots_are_missing_publishes_raise_and_once_mended_all_flows(
    cluster: CacheCluster, all_or_nothing: bool
) -> None:
    slots = (0, 1999)
    # By default a cluster that is "down" goes on with the sharded channels of slots that it has.
    what = {"cluster-allow-pubsubshard-when-down": "no" if all_or_nothing else "yes"}
    with setting(cluster.nodes, what):
        async with under_load(quick(cluster.url)) as load:
            owner, *_ = await to_thread(cluster.primaries)
            await to_thread(cluster.execute_on_all, "CLUSTER", "DELSLOTSRANGE", *slots)
            refusal = load.moment("the refusal")
            await asyncio.sleep(2)
            failures = [f for f in load.traffic.failures if f.began > refusal.at + 0.2]
            hit = {channel for channel in CHANNELS if slot_of(channel) <= slots[1]}
            assert hit
            assert {f.channel for f in failures} == (set(CHANNELS) if all_or_nothing else hit)
            slowest = max(f.seconds for f in failures)
            print(f"failures took {slowest:.2f} s at most, bound {AT_MOST_SECONDS:g} s")
            assert slowest < AT_MOST_SECONDS
            if not all_or_nothing:
                load.expect_untouched(set(CHANNELS) - hit)
            await to_thread(owner.execute, "CLUSTER", "ADDSLOTSRANGE", *slots)
            await to_thread(cluster.wait_ok)
            await load.moment("the mending").traffic(within_seconds=2)


@pytest.mark.timeout(120)
async def test_10000_channels_follow_a_lost_primary_over_few_connections(
    cluster: CacheCluster,
) -> None:
    quiet = [f"quiet:{number}" for number in range(9800)]
    async with under_load(quick(cluster.url), quiet=quiet) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        spans = await to_thread(cluster.slots_of, node)
        hit = {c for c in [*CHANNELS, *quiet] if any(a <= slot_of(c) <= b for a, b in spans)}
        assert len(hit) > 3000
        others = [server for server in cluster.nodes if server is not node]
        before = await to_thread(connections_received, others)
        start = len(load.heard.events)
        await to_thread(node.kill)
        await to_thread(cluster.wait_promoted, node)
        promoted = load.moment("the promotion")
        asked = await to_thread(connections_received, others)

        def all_back(event: object) -> bool:
            if isinstance(event, Gap):
                hit.difference_update(event.channels)
            return not hit

        with contextlib.suppress(AssertionError):
            await load.heard.until(all_back, start=start, within_seconds=2 - promoted.seconds)
        assert not hit, f"{len(hit)} not resubscribed after 2 s; {load.describe(promoted)}"
        print(f"resubscribed {promoted.seconds:.2f} s after the promotion, bound 2 s")
        await promoted.traffic(within_seconds=2)
        await asyncio.sleep(1)
        after = await to_thread(connections_received, others)
        print(f"{asked - before} connections until the promotion, {after - asked} after it")
        assert after - asked < 40
        load.expect_untouched(spared)


async def test_a_server_that_says_nothing_is_noticed_by_default_within_5_seconds(
    cluster: CacheCluster,
) -> None:
    alone = {"cluster-require-full-coverage": "no", "cluster-replica-no-failover": "yes"}
    with setting(cluster.nodes, alone):
        async with under_load(cluster.url) as load:
            node, *others = await to_thread(cluster.primaries)
            spared = load.channels_on(cluster, *others)
            await to_thread(node.pause)
            frozen = load.moment("the freeze")
            load.may_replay = True
            while not load.watch.logged("subscribing connection lost", frozen.at):
                assert frozen.seconds < 6
                await asyncio.sleep(0.05)
            print(f"noticed after {frozen.seconds:.2f} s, bound 6 s")
            await load.moment("the notice").traffic(within_seconds=0.5, channels=spared)
            load.expect_untouched(spared)
            await to_thread(node.resume)
            await to_thread(cluster.wait_ok)
            await load.moment("the return").traffic(within_seconds=2)


SEED = int(os.environ.get("DJANGO_SOCKETS_NEMESIS_SEED") or random.randrange(1 << 32))
STUCK_SECONDS = 10.0
"""After some strikes roles go on changing for a moment: no bound on that, but it has to end."""
SECONDS = float(os.environ.get("DJANGO_SOCKETS_NEMESIS_SECONDS") or 30)


@pytest.mark.timeout(SECONDS + 60)
async def test_whatever_happens_in_whatever_order(cluster: CacheCluster) -> None:
    """DJANGO_SOCKETS_NEMESIS_SEED repeats the strikes, DJANGO_SOCKETS_NEMESIS_SECONDS adds more."""
    print(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}", flush=True)
    story: list[str] = []
    try:
        async with (
            behind_proxy(cluster, node := cluster.nodes[0]) as proxy,
            under_load(quick(cluster.url)) as load,
        ):
            load.may_replay = True
            nemesis = Nemesis(cluster, node, proxy, SEED)
            began = load.moment("the first strike")
            while began.seconds < SECONDS:
                story.append(await nemesis.strike())
                await nemesis.restore()
                await load.moment(f"{story[-1]}, and back").traffic(within_seconds=STUCK_SECONDS)
    except Exception as exc:
        raise AssertionError(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}: after {story}: {exc}") from exc
