"""A primary that sentinels watch is killed, frozen, demoted and replaced under load."""

from __future__ import annotations

import asyncio
from asyncio import to_thread
from collections.abc import AsyncIterator

import pytest

from django_sockets.testing.census import answering, until
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.faults.harness import under_load

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

BOUND_SECONDS = 2.0
"""From the promotion to traffic on every channel."""
NEVER_SECONDS = 600


@pytest.fixture
async def trio(valkey_sentinels: SentinelTrio) -> AsyncIterator[SentinelTrio]:
    yield valkey_sentinels
    await to_thread(valkey_sentinels.restore)


async def test_a_killed_primary(trio: SentinelTrio) -> None:
    async with under_load(quick(trio.url)) as load:
        primary = await to_thread(trio.primary)
        await to_thread(primary.kill)
        await to_thread(trio.wait_promoted, primary)
        await load.moment("the promotion").traffic(within_seconds=BOUND_SECONDS)


async def test_a_frozen_primary_is_replaced_and_says_nothing_when_it_wakes_up(
    trio: SentinelTrio,
) -> None:
    async with under_load(quick(trio.url)) as load:
        primary = await to_thread(trio.primary)
        await to_thread(primary.pause)
        await to_thread(trio.wait_promoted, primary)
        await load.moment("the promotion").traffic(within_seconds=BOUND_SECONDS)
        await to_thread(primary.resume)
        awake = load.moment("the awakening")
        await asyncio.sleep(1.5)  # What was queued at the sleeper would come now.
        await load.moment("1.5 s after the awakening").traffic(within_seconds=BOUND_SECONDS)
        assert load.gaps(awake) == []


async def test_a_primary_demoted_by_hand_is_left_for_the_one_that_the_sentinels_name(
    trio: SentinelTrio,
) -> None:
    """It still accepts messages, and delivers them to its own subscribers only."""
    async with under_load(quick(trio.url)) as load:
        primary = await to_thread(trio.primary)
        (other, *_) = await to_thread(trio.replicas)
        await to_thread(primary.execute, "REPLICAOF", "127.0.0.1", other.port)
        # Until a sentinel acts there is no primary at all: it promotes one, or this one again.
        await to_thread(_until_there_is_a_primary, trio)
        # That took seconds: the pauses between attempts have grown to one.
        await load.moment("the promotion").traffic(within_seconds=BOUND_SECONDS + 1)
        assert load.gaps()


def _until_there_is_a_primary(trio: SentinelTrio) -> CacheServer:
    def primary() -> CacheServer | None:
        try:
            node = trio.primary()
        except LookupError:
            return None
        return node if answering([node]) and node.execute("ROLE")[0] == "master" else None

    return until(primary, 20, "nobody is the primary")


async def test_an_orderly_failover_is_followed_without_waiting_for_a_probe(
    trio: SentinelTrio,
) -> None:
    async with under_load(quick(trio.url, probe_interval_seconds=NEVER_SECONDS)) as load:
        old = await to_thread(trio.primary)
        new = await to_thread(trio.failover)
        assert new is not old
        await load.moment("the failover").traffic(within_seconds=BOUND_SECONDS)


@pytest.mark.parametrize("password", ["the same", "another"])
async def test_a_stranger_at_the_address_of_the_old_primary(
    trio: SentinelTrio, password: str
) -> None:
    options = {"password": "another"} if password == "another" else {}
    async with under_load(quick(trio.url)) as load:
        primary = await to_thread(trio.primary)
        await to_thread(primary.kill)
        await to_thread(trio.wait_promoted, primary)
        with trio.impostor_at(primary, **options) as stranger:
            try:
                await load.moment("the promotion").traffic(within_seconds=BOUND_SECONDS)
            except AssertionError:
                # A server at the old address can cause another election, and the time starts again.
                await to_thread(trio.wait_promoted, primary)
                await load.moment("the next election").traffic(within_seconds=BOUND_SECONDS)
            assert await to_thread(stranger.execute, "PUBSUB", "CHANNELS", "*:{*") == []


async def test_a_sentinel_that_is_dead_all_the_time_changes_nothing(trio: SentinelTrio) -> None:
    await to_thread(trio.sentinels[0].kill)
    async with under_load(quick(trio.url)) as load:
        primary = await to_thread(trio.primary)
        await to_thread(primary.kill)
        await to_thread(trio.wait_promoted, primary)
        await load.moment("the promotion").traffic(within_seconds=BOUND_SECONDS)
