"""Processes and servers fail at the same time: afterwards, every process knows who is present.

A failing run prints DJANGO_SOCKETS_NEMESIS_SEED=..., which repeats its faults.
DJANGO_SOCKETS_NEMESIS_SECONDS=600 makes the first test longer, and does the same to a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import uuid
from asyncio import to_thread
from collections.abc import Iterator

import pytest

from django_sockets.backends.client.commands import leases_key, server_name
from django_sockets.backends.watches import watch_of
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerURL
from support.faults.presence_crowd import Crowd, crowd_of
from support.faults.presence_nemesis import ClusterPresenceNemesis, PresenceNemesis
from support.presence_child import ROOM

SEED = int(os.environ.get("DJANGO_SOCKETS_NEMESIS_SEED") or random.randrange(1 << 32))
LONGER = os.environ.get("DJANGO_SOCKETS_NEMESIS_SECONDS")
SECONDS = float(LONGER or 30)
LEASE, GRACE = 2, 1
BOUND_SECONDS = LEASE + GRACE + 2
SPARE_SECONDS = 40
"""Connections begin again with timeouts of 1 s, and a busy machine needs several attempts."""

pytestmark = pytest.mark.timeout(SECONDS + 120)


def own(url: str, lease_seconds: float = LEASE) -> str:
    """The URL with short deadlines, a short lease, and a prefix that no other test uses."""
    return quick(
        with_options(
            url,
            prefix=f"p{uuid.uuid4().hex[:12]}",
            presence_lease_seconds=lease_seconds,
            presence_grace_seconds=GRACE,
        )
    )


async def agreed(crowd: Crowd) -> float:
    """Every process knows the members. Returns how long that took."""
    began = time.monotonic()
    await crowd.agreed(BOUND_SECONDS + SPARE_SECONDS)
    return time.monotonic() - began


async def strike_until_the_end(
    crowd: Crowd, nemesis: PresenceNemesis, seconds: float, story: list[str]
) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        story.append(await nemesis.strike())
        await nemesis.restore()
        print(f"{story[-1]}: {await agreed(crowd):.1f} s", flush=True)


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """A list of the strikes. If the test fails, the error has it, and the seed."""
    print(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}", flush=True)
    story: list[str] = []
    try:
        yield story
    except Exception as exc:
        raise AssertionError(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}: after {story}: {exc}") from exc


async def test_whatever_happens_in_whatever_order(
    restored_valkey_sentinels: SentinelTrio,
) -> None:
    trio = restored_valkey_sentinels
    with told() as story:
        async with crowd_of(3, own(trio.url), trio.nodes, SEED) as crowd:
            nemesis = PresenceNemesis(trio, crowd, LEASE, SEED)
            await strike_until_the_end(crowd, nemesis, SECONDS, story)


@pytest.mark.load
@pytest.mark.skipif(not LONGER, reason="only with DJANGO_SOCKETS_NEMESIS_SECONDS")
async def test_whatever_happens_to_a_cluster(restored_valkey_cluster: CacheCluster) -> None:
    cluster = restored_valkey_cluster
    url = own(cluster.url)
    prefix = BrokerURL.parse(url).options.prefix.encode()
    keys = [server_name(prefix, watch_of(ROOM)), leases_key(prefix)]
    with told() as story:
        async with crowd_of(3, url, cluster.nodes, SEED) as crowd:
            nemesis = ClusterPresenceNemesis(cluster, crowd, LEASE, SEED, keys)
            await strike_until_the_end(crowd, nemesis, SECONDS, story)


async def test_a_process_and_the_primary_are_killed_at_once(
    restored_valkey_sentinels: SentinelTrio,
) -> None:
    trio = restored_valkey_sentinels
    async with crowd_of(3, own(trio.url), trio.nodes) as crowd:
        for actor in crowd.actors:
            name = actor.process.name
            await actor.want({f"tab {n}": [f"{name}-{n}", n] for n in range(300)})
        await agreed(crowd)
        primary = await to_thread(trio.primary)
        killed, *others = crowd.actors
        await asyncio.gather(crowd.kill(killed), to_thread(primary.kill))
        await to_thread(trio.wait_promoted, primary)
        for report in await crowd.agreed(BOUND_SECONDS + SPARE_SECONDS):
            left = {key for key in report["told"] if key.startswith("-")}
            assert left >= {f"-{killed.process.name}-{n}" for n in range(300)}
            assert len(report["members"]) == 600
        await others[0].want({"tab 1": None, "more": ["more", 1]})
        await agreed(crowd)


async def test_a_process_that_is_cut_off_leaves_for_the_others_and_comes_back(
    valkey_server: CacheServer,
) -> None:
    """Its clock, and that of each other process, is wrong by minutes."""
    async with crowd_of(3, own(valkey_server.url), [valkey_server]) as crowd:
        for actor in crowd.actors:
            name = actor.process.name
            await actor.want({f"tab {n}": [f"{name}-{n}", n] for n in range(20)})
        await agreed(crowd)
        cut, *others = crowd.actors
        cut.cut()
        # What it changes meanwhile reaches the others later.
        await cut.want({"tab 0": None, "tab 1": ["changed", 1], "tab 20": ["new", 1]})
        await asyncio.gather(*(actor.process.ask(until=40) for actor in others))
        await others[0].want({"tab 0": None})
        await asyncio.gather(*(actor.process.ask(until=39) for actor in others))
        cut.heal()
        own_report, *reports = await crowd.agreed(BOUND_SECONDS + SPARE_SECONDS)
        name = cut.process.name
        for report in reports:
            told = {key: report["told"].get(key) for key in (f"-{name}-0", f"+{name}-2")}
            assert told == {f"-{name}-0": 1, f"+{name}-2": 2}
        # A process does not see its own members leave. It knows the leave of another one.
        assert f"-{name}-2" not in own_report["told"]
        assert own_report["told"][f"-{others[0].process.name}-0"] == 1
        assert own_report["stats"]["presence_replaced"] >= 1


async def test_a_clock_that_is_moved_by_minutes_changes_nothing(
    valkey_server: CacheServer,
) -> None:
    url = own(valkey_server.url, lease_seconds=30)
    async with crowd_of(3, url, [valkey_server]) as crowd:
        for actor in crowd.actors:
            await actor.want({"tab": [actor.process.name, 1]})
        await agreed(crowd)
        for actor, seconds in zip(crowd.actors, (3600, -3600, 86400), strict=True):
            await actor.process.ask(move_clock=seconds)
            await actor.want({"tab": [actor.process.name, 2]})
        for report in await crowd.agreed(BOUND_SECONDS + SPARE_SECONDS):
            assert [key for key in report["told"] if key.startswith("-")] == []
            assert report["stats"]["presence_replaced"] == 0
