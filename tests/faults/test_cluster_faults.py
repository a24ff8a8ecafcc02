"""A cluster loses nodes, moves slots and cuts links under load; nothing is lost without a word."""

from __future__ import annotations

import asyncio
from asyncio import to_thread
from collections.abc import AsyncIterator

import pytest
from faults.harness import under_load

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick

pytestmark = [pytest.mark.load, pytest.mark.timeout(90)]


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
        load.expect_no_gap(spared)


async def test_a_frozen_primary_is_replaced_and_says_nothing_when_it_wakes_up(
    cluster: CacheCluster,
) -> None:
    async with under_load(quick(cluster.url)) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        await to_thread(node.pause)
        await to_thread(cluster.wait_promoted, node)
        await load.moment("the promotion").traffic(within_seconds=2)
        await to_thread(node.resume)
        awake = load.moment("the awakening")
        await to_thread(cluster.wait_ok)
        await asyncio.sleep(1)  # What was queued at the sleeper would come now.
        load.expect_no_gap(spared)
        load.expect_no_gap(load.channels_on(cluster, *await to_thread(cluster.primaries)), awake)


async def test_slots_that_move_in_bulk_lose_nothing_without_a_gap(cluster: CacheCluster) -> None:
    async with under_load(quick(cluster.url)) as load:
        source, target, other = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, target, other)
        await to_thread(cluster.move_slots, range(2000), source, target)
        await load.moment("the move").traffic(within_seconds=1)
        load.expect_no_gap(spared)


async def test_an_orderly_failover(cluster: CacheCluster) -> None:
    async with under_load(quick(cluster.url)) as load:
        node, *others = await to_thread(cluster.primaries)
        spared = load.channels_on(cluster, *others)
        (replica,) = await to_thread(cluster.replicas_of, node)
        await to_thread(cluster.failover, replica)
        await load.moment("the failover").traffic(within_seconds=1)
        load.expect_no_gap(spared)
