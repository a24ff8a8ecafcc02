"""The history while a real server forgets scripts, moves a slot, or takes over."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from django_sockets import open_hub
from django_sockets.backends.client.commands import server_name
from django_sockets.broker import HANDED_OVER
from django_sockets.conf import load_config
from django_sockets.errors import PublishError
from django_sockets.history import HistoryStatus, position_of
from django_sockets.registry import open_broker
from django_sockets.testing.census import until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import eventually, quick
from django_sockets.testing.contract.history import HISTORY, HistoryRecorder, KeptRoom, payloads
from django_sockets.testing.ledger import listening
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from support.faults.cluster_faults import setting


@contextlib.asynccontextmanager
async def kept_room(url: str) -> AsyncIterator[KeptRoom]:
    sink = HistoryRecorder()
    broker = open_broker(load_config({"url": url, "history": HISTORY}).url, sink)
    yield KeptRoom(broker, sink, f"kept:{uuid.uuid4().hex}")
    await broker.aclose()


async def received(kept: KeptRoom, count: int) -> list[bytes]:
    """The messages of the room, once there are so many."""
    while len(kept.received()) < count:
        await asyncio.wait_for(kept.sink.changed(len(kept.sink.seen)), 10)
    return kept.received()


async def test_a_server_that_forgets_scripts_keeps_the_order(valkey_server: CacheServer) -> None:
    async with kept_room(valkey_server.url) as kept:
        start = await kept.position()
        await kept.history.subscribe_with_history({kept.channel: start})
        published: list[bytes] = []
        unknown: list[str] = []
        leaving = False

        async def forget() -> None:
            while not leaving:
                await asyncio.to_thread(valkey_server.execute, "SCRIPT", "FLUSH", "SYNC")

        async def publish(payload: bytes) -> None:
            headers = kept.publisher.headers([kept.channel], is_text=False)
            try:
                await kept.broker.publish([kept.channel], payload, headers)
            except PublishError as exc:
                unknown.extend(exc.unknown)
            else:
                published.append(payload)

        forgetting = asyncio.ensure_future(forget())
        for turn in range(20):
            await asyncio.gather(*(publish(b"%d" % (turn * 10 + n)) for n in range(10)))
            kept.history.request_history(kept.channel, None)
        leaving = True
        await forgetting
        await kept.publish(b"200")
        messages = await received(kept, len(published) + 1)
        heard = payloads(messages)
        assert heard == sorted(heard, key=int)
        assert sorted([*published, b"200"], key=int) == heard
        assert len(published) > 100
        reply = (await kept.history.read_history({kept.channel: start}, messages=1000))[
            kept.channel
        ]
        # 100 messages are kept of these.
        assert reply.status is HistoryStatus.BROKEN
        assert reply.position is not None
        assert reply.position.offset == len(heard)


@pytest.mark.parametrize("exists", [True, False])
async def test_a_moving_slot_keeps_and_delivers_every_message(
    restored_valkey_cluster: CacheCluster, exists: bool
) -> None:
    cluster = restored_valkey_cluster
    async with kept_room(cluster.url) as kept:
        name = server_name(b"django_sockets", kept.channel)
        key = name + b":h"
        slot = slot_of(name)
        source = cluster.primary_of(slot)
        target = next(node for node in cluster.primaries() if node is not source)
        source_id, target_id = (node.execute("CLUSTER", "MYID") for node in (source, target))
        await kept.broker.subscribe([kept.channel])
        sent = [b"%d" % number for number in range(9)]
        if exists:
            await kept.publish(*sent[:3])
        target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        if exists:
            # The source still has the history, and serves it.
            await kept.publish(*sent[3:5])
            assert source.execute("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            source.execute("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        else:
            await kept.publish(*sent[:5])
            assert source.execute("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        await kept.publish(*sent[5:7])
        assert payloads(await received(kept, 7)) == sent[:7]
        everything = await kept.read(100)
        assert payloads(everything.messages) == sent[:7]
        for node in (target, source):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        await kept.sink.until("lost", (kept.channel,))
        assert kept.sink.reasons == [HANDED_OVER]
        kept.history.request_history(kept.channel, everything.position)
        await kept.publish(*sent[7:])
        assert payloads((await kept.read(100)).messages) == sent
        (reply,) = await kept.sink.replies(kept.channel)
        healed = [*everything.messages, *reply.messages]
        behind = kept.sink.seen.index(("reply", kept.channel, reply))
        while (
            len(live := [one[2] for one in kept.sink.seen[behind:] if one[0] == "message"])
            + len(healed)
            < 9
        ):
            await kept.sink.changed(len(kept.sink.seen))
        assert payloads([*healed, *live]) == sent
        for node in cluster.primaries():
            if node not in (source, target):
                node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)


@pytest.mark.parametrize("full_coverage", [True, False])
async def test_a_cluster_without_some_slots_keeps_nothing_and_delivers_other_messages(
    restored_valkey_cluster: CacheCluster, full_coverage: bool
) -> None:
    cluster = restored_valkey_cluster
    kept, other = (next(f"{p}:{n}" for n in range(99) if slot_of(f"{p}:{n}") > 2000) for p in "ab")
    source = {"url": quick(cluster.url), "history": {"a:": HISTORY["kept:"]}}
    coverage = {"cluster-require-full-coverage": "yes" if full_coverage else "no"}
    with setting(cluster.nodes, coverage):
        async with open_hub(source) as hub, listening(hub, kept, other) as heard:
            await hub.publish([kept, other], b"before")
            owner = cluster.primary_of(0)
            cluster.execute_on_all("CLUSTER", "DELSLOTSRANGE", 0, 9)
            if full_coverage:
                until(lambda: all(map(is_down, cluster.primaries())), 10, "the cluster works")
                with pytest.raises(PublishError, match="CLUSTERDOWN") as raised:
                    await hub.publish(kept, b"refused")
                assert (raised.value.failed, raised.value.unknown) == ((kept,), ())
            else:
                await hub.publish(kept, b"kept")
                await heard.until_payload(b"kept")
            await hub.publish(other, b"other")
            await heard.until_payload(b"other")
            owner.execute("CLUSTER", "ADDSLOTSRANGE", 0, 9)
            await asyncio.to_thread(cluster.wait_ok)
            await hub.publish(kept, b"after")
            await heard.until_payload(b"after")
            assert [gap.reason for gap in heard.gaps] == ["missed"] * full_coverage


def is_down(node: CacheServer) -> bool:
    return "cluster_state:fail" in node.execute("CLUSTER", "INFO")


async def test_a_promoted_server_has_another_history_id(
    fresh_valkey_server: CacheServer, fresh_redis_server: CacheServer
) -> None:
    """Its offsets are those of the former primary, and so only the id tells."""
    primary, replica = fresh_redis_server, fresh_valkey_server
    async with kept_room(primary.url) as kept, kept_room(replica.url) as taken_over:
        taken_over.channel = kept.channel
        primary.execute("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        replica.execute("REPLICAOF", "127.0.0.1", primary.port)

        async def in_sync() -> int:
            return int((await asyncio.to_thread(replica.execute, "ROLE"))[3] == "connected")

        await eventually(in_sync, 1, within_seconds=10)
        before = await kept.position()
        await kept.publish(b"one", b"two")
        newest = (await kept.read(2)).position
        assert newest is not None
        primary.execute("WAIT", 1, 5000)
        # Acknowledged and lost: the replica has gone before they arrive.
        replica.execute("REPLICAOF", "NO", "ONE")
        await kept.publish(b"lost")
        lost = (await kept.read(1)).position
        await taken_over.publish(b"other")
        reply = await taken_over.read(newest)
        assert payloads(reply.messages) == [b"other"]
        assert reply.position is not None
        assert lost is not None
        assert (reply.position.epoch, reply.position.offset) == (lost.epoch, lost.offset)
        assert reply.position.history_id != newest.history_id == before.history_id
        assert reply.previous_history_id == newest.history_id


async def test_the_first_replica_is_told_to_the_sink(
    fresh_valkey_server: CacheServer, fresh_redis_server: CacheServer
) -> None:
    async with kept_room(f"{fresh_redis_server.url}?probe_interval_seconds=0.1") as kept:
        await kept.history.subscribe_with_history({kept.channel: None})
        (first,) = await kept.sink.replies(kept.channel)
        assert first.position is not None
        fresh_redis_server.execute("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        fresh_valkey_server.execute("REPLICAOF", "127.0.0.1", fresh_redis_server.port)
        await asyncio.wait_for(kept.sink.changed(1), 20)
        (renamed,) = [seen for seen in kept.sink.seen if seen[0] == "renamed"]
        await kept.publish(b"one")
        newest = await kept.position()
        assert newest.history_id == renamed[2] != first.position.history_id
        assert newest.epoch == first.position.epoch
        (message,) = await received(kept, 1)
        assert position_of(message, renamed[2]) == newest
        assert [seen[0] for seen in kept.sink.seen] == ["reply", "renamed", "message"]
