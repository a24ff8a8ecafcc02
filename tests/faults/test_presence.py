"""Presence while servers fail, fail over, forget scripts, fill up, or give slots away."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from django_sockets.backends.client.commands import leases_key, server_name
from django_sockets.backends.watches import watch_of
from django_sockets.errors import PresenceError, SubscribeError
from django_sockets.presence import ABSENT, LeaseAction, LeaseState, PresenceChange
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import (
    CacheControl,
    ClusterControl,
    PresenceFaultContract,
    SentinelControl,
)
from django_sockets.testing.contract.base import PATIENT, patient, with_options
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.contract.presence_faults import (
    PresenceFollower,
    follower,
    patiently,
)
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from support.faults.cluster_faults import move_with_keys

LONG_SECONDS = 600


def own(url: str) -> str:
    """The URL with short deadlines, and a prefix that no other test uses."""
    return quick(with_options(url, prefix=f"p{uuid.uuid4().hex}"))


def calm(url: str) -> str:
    """As `own`, with deadlines for tests in which every server answers."""
    return patient(with_options(url, prefix=f"p{uuid.uuid4().hex}", probe_interval_seconds=0.2))


def prefix_of(follower: PresenceFollower) -> bytes:
    return follower.url.partition("prefix=")[2].partition("&")[0].encode()


def own_prefix_of(follower: PresenceFollower, server: CacheServer) -> str:
    """The URL of the server with the prefix of a follower, and without its other options."""
    return patient(with_options(server.url, prefix=prefix_of(follower).decode()))


@pytest.fixture
def room() -> str:
    return f"room:{uuid.uuid4().hex}"


class TestValkey(PresenceFaultContract):
    @pytest.fixture
    def server(self, fresh_valkey_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_valkey_server)


class TestSentinels(PresenceFaultContract):
    @pytest.fixture
    def server(self, restored_valkey_sentinels: SentinelTrio) -> SentinelControl:
        return SentinelControl(restored_valkey_sentinels)


class TestCluster(PresenceFaultContract):
    @pytest.fixture
    def server(self, restored_valkey_cluster: CacheCluster) -> ClusterControl:
        return ClusterControl(restored_valkey_cluster)


# Failovers


async def test_a_failover_of_sentinels_keeps_entries_and_leases(
    restored_valkey_sentinels: SentinelTrio, room: str
) -> None:
    trio = restored_valkey_sentinels
    async with follower(own(trio.url)) as watcher, follower(watcher.url) as other:
        await fail_over(watcher, other, room, lambda: asyncio.to_thread(trio.failover))


async def test_a_failover_of_a_cluster_keeps_entries_and_leases(
    restored_valkey_cluster: CacheCluster, room: str
) -> None:
    cluster = restored_valkey_cluster
    async with follower(own(cluster.url)) as watcher, follower(watcher.url) as other:
        name = server_name(prefix_of(watcher), watch_of(room))
        nodes = {
            id(node): node
            for node in map(
                cluster.primary_of, (slot_of(name), slot_of(leases_key(prefix_of(watcher))))
            )
        }

        async def all_fail_over() -> None:
            for node in nodes.values():
                (replica, *_) = await asyncio.to_thread(cluster.replicas_of, node)
                await asyncio.to_thread(cluster.failover, replica)

        await fail_over(watcher, other, room, all_fail_over)


async def fail_over(
    watcher: PresenceFollower,
    other: PresenceFollower,
    room: str,
    failing: Callable[[], Awaitable[object]],
) -> None:
    """Change a channel before, while and after servers change their roles."""
    leases = watcher.broker.lease_server_of(room)
    await watcher.broker.watch_presence([room])
    first = await other.broker.change_presence(room, {"p:before": b"x"})
    await other.broker.lease(leases, "p", LeaseAction.NEW, lease_seconds=LONG_SECONDS)
    done = False

    async def churn() -> int:
        number = 0
        while not done:
            number += 1
            change = {f"p:{number}": b"x", f"p:{number - 1}": b""}
            await patiently(lambda: other.broker.change_presence(room, change))  # noqa: B023
            await asyncio.sleep(0.002)
        return number

    churning = asyncio.create_task(churn())
    try:
        await failing()
    finally:
        done = True
        last = await churning
    await watcher.wait(lambda: watcher.reasons)
    # The last changes that the former primary accepted may be lost: the owner makes them again.
    again = {f"p:{number}": b"x" if number == last else b"" for number in range(last + 1)}
    await patiently(lambda: other.broker.change_presence(room, again))
    truth = await watcher.until_equal(room)
    assert truth.entries == {"p:before": b"x", f"p:{last}": b"x"}
    assert truth.epoch == first.epoch
    reply = await patiently(
        lambda: other.broker.lease(leases, "p", LeaseAction.RENEW, lease_seconds=LONG_SECONDS)
    )
    assert (reply.state, reply.dead) == (LeaseState.OK, frozenset())


# A slot that moves


@pytest.mark.parametrize("exists", [True, False])
async def test_a_moving_slot_delivers_every_change(
    restored_valkey_cluster: CacheCluster, room: str, exists: bool
) -> None:
    """While a slot moves, scripts run at its target, and all watchers are still at its source."""
    cluster = restored_valkey_cluster
    async with follower(calm(cluster.url)) as watcher, follower(watcher.url) as other:
        key = server_name(prefix_of(watcher), watch_of(room))
        slot = slot_of(key)
        source = cluster.primary_of(slot)
        target = next(node for node in cluster.primaries() if node is not source)
        source_id, target_id = (node.execute("CLUSTER", "MYID") for node in (source, target))
        await watcher.broker.watch_presence([room])
        changes = [{f"p:{number}": b"x", f"p:{number - 2}": b""} for number in range(9)]

        async def change(*some: dict[str, bytes]) -> None:
            for one in some:
                made = await other.broker.change_presence(room, one)
            await watcher.wait(lambda: watcher.replicas[room].version == made.version)

        if exists:
            await change(*changes[:3])
        target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        if exists:
            await change(*changes[3:5])
            assert source.execute("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            source.execute("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            await change(*changes[5:7])
        else:
            await change(*changes[:7])
        assert source.execute("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        # No change was missed, and so nothing was read again.
        assert watcher.reasons == []
        assert watcher.snapshots == 1
        read = (await other.broker.read_presence([room]))[room]
        assert read == watcher.replicas[room]
        for node in (target, source):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        await patiently(lambda: other.broker.change_presence(room, changes[7]))
        await watcher.wait(lambda: watcher.reasons)
        await patiently(lambda: other.broker.change_presence(room, changes[8]))
        truth = await watcher.until_equal(room)
        assert truth.entries == {"p:7": b"x", "p:8": b"x"}
        assert truth.version == 9
        for node in cluster.primaries():
            if node not in (source, target):
                node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)


async def test_slots_that_move_back_and_forth_lose_no_change(
    restored_valkey_cluster: CacheCluster,
) -> None:
    cluster = restored_valkey_cluster
    async with follower(own(cluster.url)) as watcher, follower(watcher.url) as other:
        prefix = prefix_of(watcher)
        rooms = [f"room:{number}" for number in range(3)]
        slots = {slot_of(server_name(prefix, watch_of(one))) for one in rooms}
        slots.add(slot_of(leases_key(prefix)))
        await watcher.broker.watch_presence(rooms)
        done = False
        written: dict[str, int] = {}

        async def churn(channel: str) -> None:
            number = 0
            while not done:
                number += 1
                change = {f"p:{number}": b"x", f"p:{number - 1}": b""}
                await patiently(lambda: other.broker.change_presence(channel, change))  # noqa: B023
                written[channel] = number

        async def renew() -> None:
            server = other.broker.lease_server_of(rooms[0])
            action = LeaseAction.NEW
            while not done:
                reply = await patiently(
                    lambda: other.broker.lease(server, "p", action, lease_seconds=LONG_SECONDS)  # noqa: B023
                )
                assert reply.state is LeaseState.OK
                action = LeaseAction.RENEW

        churning = asyncio.gather(*map(churn, rooms), renew())
        try:
            for slot in sorted(slots) * 2:
                await asyncio.to_thread(move_with_keys, cluster, slot)
        finally:
            done = True
            await churning
        for one in rooms:
            truth = await watcher.until_equal(one)
            assert truth.entries == {f"p:{written[one]}": b"x"}


# A server that forgets scripts, or ends connections with too much unread output


async def test_a_server_that_forgets_scripts_loses_no_change(
    valkey_server: CacheServer, room: str
) -> None:
    async with follower(calm(valkey_server.url)) as watcher, follower(watcher.url) as other:
        leases = other.broker.lease_server_of(room)
        await watcher.broker.watch_presence([room])
        done = False

        async def forget() -> None:
            while not done:
                await asyncio.to_thread(valkey_server.execute, "SCRIPT", "FLUSH", "SYNC")

        async def put(number: int) -> PresenceChange:
            change = {f"p:{number}": b"x"}
            return await patiently(lambda: other.broker.change_presence(room, change))

        forgetting = asyncio.create_task(forget())
        versions = []
        try:
            for turn in range(20):
                made = await asyncio.gather(*map(put, range(turn * 10, turn * 10 + 10)))
                versions += [change.version for change in made if change.changed]
                await patiently(
                    lambda: other.broker.lease(leases, "p", LeaseAction.NEW, lease_seconds=60)
                )
        finally:
            done = True
            await forgetting
        assert len(set(versions)) == len(versions)
        assert len((await watcher.until_equal(room)).entries) == 200


async def test_large_channels_are_read_without_too_much_unread_output(
    fresh_valkey_server: CacheServer,
) -> None:
    """All at once, their snapshots would make the server end the connection."""
    server = fresh_valkey_server
    rooms = [f"room:{number}" for number in range(12)]
    async with follower(calm(server.url)) as watcher, follower(watcher.url) as other:
        for one in rooms:
            entries = {f"p:{number}": b"x" * 1000 for number in range(1000)}
            await other.broker.change_presence(one, entries)
            await watcher.broker.watch_presence([one])
        # 5 MiB at once, and 12 MiB are asked for.
        server.execute("CONFIG", "SET", "client-output-buffer-limit", "pubsub 6mb 0 0")
        before = watcher.snapshots
        server.pause()
        for one in rooms:
            watcher.broker.request_presence(one)
        server.resume()
        await watcher.wait(lambda: watcher.snapshots == before + len(rooms))
        assert watcher.reasons == []
        server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        for one in rooms:
            assert len((await watcher.until_equal(one)).entries) == 1000
        assert len(watcher.reasons) == 1


# A connection that takes the place of an old one


@pytest.mark.parametrize("reads", [False, True])
async def test_a_watch_moves_to_a_new_connection_without_a_loss(
    fresh_valkey_server: CacheServer, room: str, reads: bool
) -> None:
    server = fresh_valkey_server
    url = with_options(calm(server.url), connection_max_age_seconds=0.5)
    async with follower(url) as watcher, follower(own_prefix_of(watcher, server)) as other:
        await watcher.broker.watch_presence([room])
        links: set[str] = set()
        number = 0
        while len(links) < 4:
            number += 1
            change = {f"p:{number}": b"x", f"p:{number - 3}": b""}
            await other.broker.change_presence(room, change)
            if reads:
                watcher.broker.request_presence(room)
            if number % 20 == 0:
                lines = await asyncio.to_thread(server.execute, "CLIENT", "LIST", "TYPE", "pubsub")
                links.update(line.split()[0] for line in lines.splitlines())
        truth = await watcher.until_equal(room)
        assert truth.version == number
        assert len(truth.entries) == 3
        assert watcher.reasons == []
        if not reads:
            assert watcher.snapshots == 1


# Several hosts


async def test_a_dead_host_affects_only_its_own_channels(
    fresh_valkey_server: CacheServer, fresh_redis_server: CacheServer
) -> None:
    prefix = f"p{uuid.uuid4().hex}"
    servers = (fresh_valkey_server, fresh_redis_server)
    # A call to a dead host fails at once, but a subscribe waits for the host to come back.
    options = {**PATIENT, "subscribe_timeout_seconds": 3, "prefix": prefix}
    url = " ".join(with_options(server.url, **options) for server in servers)
    async with follower(url) as watcher:
        broker = watcher.broker
        by_server = {broker.lease_server_of(f"room:{n}"): f"room:{n}" for n in range(50)}
        assert set(by_server) == set(broker.lease_servers)
        (dead,) = [server for server in by_server if str(fresh_redis_server.port) in server]
        (alive,) = [server for server in by_server if server != dead]
        lost, kept = by_server[dead], by_server[alive]
        await broker.watch_presence([kept, lost])
        await asyncio.to_thread(fresh_redis_server.kill)
        with pytest.raises(PresenceError) as failed:
            await broker.change_presence(lost, {"p:1": b"x"})
        assert failed.value.channels == (lost,)
        with pytest.raises(PresenceError) as failed:
            await broker.read_presence([kept, lost])
        assert failed.value.channels == (lost,)
        with pytest.raises(PresenceError):
            await broker.lease(dead, "p", LeaseAction.NEW, lease_seconds=LONG_SECONDS)
        await broker.lease(alive, "p", LeaseAction.NEW, lease_seconds=LONG_SECONDS)
        await broker.change_presence(kept, {"p:1": b"x"})
        assert (await watcher.until_equal(kept)).entries == {"p:1": b"x"}
        # A watch of both is all or nothing, and leaves an earlier watch alone.
        with pytest.raises(SubscribeError) as refused:
            await broker.watch_presence([f"{kept}:2", kept, lost, f"{lost}:2"])
        assert set(refused.value.channels) >= {kept, lost}
        await broker.change_presence(kept, {"p:2": b"x"})
        await watcher.wait(lambda: "p:2" in watcher.replicas[kept].entries)
        await asyncio.to_thread(fresh_redis_server.start)
        await patiently(lambda: broker.change_presence(lost, {"p:3": b"x"}))
        await watcher.wait(lambda: "p:3" in watcher.replicas.get(lost, ABSENT).entries)
