"""Clients resume from old positions after failovers, and are told the truth about what is missing.

A failover loses acknowledged messages here, because the replica is cut off before they arrive. The
positions were taken before a failover, while messages were lost, between failovers, and after them.
"""

from __future__ import annotations

import contextlib
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NoReturn

import pytest

from django_sockets import Gap, Hub, Message, PublishError, open_hub
from django_sockets.delivery.events import Event
from django_sockets.delivery.message import Delivery
from django_sockets.history import Position
from django_sockets.testing.census import until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import flow, quick
from django_sockets.testing.ledger import Ledger, Listener, listening
from django_sockets.testing.servers import CacheServer, ServerUnavailable, ValkeyServer
from django_sockets.testing.slots import slot_of

pytestmark = [pytest.mark.load, pytest.mark.timeout(60)]

KEPT = {"history_messages": 1000, "history_seconds": 300}
NEVER_SECONDS = 600


class Account:
    """One publisher and one subscriber of a room, and what the server has acknowledged.

    Attributes:
        accepted: the numbers of the acknowledged messages, in order.
    """

    def __init__(self, publisher: Hub, heard: Listener, room: str, name: str = "one") -> None:
        self.ledger = Ledger(name)
        self.accepted: list[int] = []
        self.heard = heard
        self._publisher = publisher
        self._room = room

    async def publish(self, count: int) -> None:
        for _ in range(count):
            payload = self.ledger.write(self._room)
            with contextlib.suppress(PublishError):
                await self._publisher.publish(self._room, payload)
                self.accepted.append(number_of(payload))

    async def flows(self) -> None:
        """Publish until the subscriber receives messages; then only acknowledged ones follow."""
        await flow(self._publisher, self.ledger, self.heard, self._room)
        await self.publish(1)
        await self.heard.until(self.is_newest)

    def is_newest(self, event: Event) -> bool:
        """Whether an event is the last acknowledged message."""
        return isinstance(event, Message) and number_of(event.payload) == self.accepted[-1]

    def positions(self) -> list[tuple[int, str]]:
        """The number and the position of each message that the subscriber has received."""
        return [
            (number_of(message.payload), str(message.position)) for message in self.heard.messages
        ]


def number_of(payload: bytes) -> int:
    return int(payload.split(b" ", 2)[1])


async def resume(hub: Hub, room: str, position: str) -> tuple[bool, list[int]]:
    """Subscribe from a position.

    Returns:
        Whether the subscriber is told that it has recovered, and the numbers of the replayed
        messages.
    """
    queue = hub.new_queue()
    recovery = (await hub.add(queue, room, since=position))[room]
    events = queue.drain()
    await hub.remove(queue)
    gaps = [event for event in events if isinstance(event, Gap)]
    assert len(gaps) == (0 if recovery.recovered else 1)
    assert events[:1] == gaps or not gaps
    replayed = [number_of(event.payload) for event in events if isinstance(event, Delivery)]
    assert len(replayed) == recovery.count
    return recovery.recovered, replayed


async def resume_from_all(hub: Hub, account: Account, room: str, expected: int) -> None:
    """Resume from every position that the subscriber has seen.

    Args:
        expected: at least so many of them are recovered.
    """
    recovered = 0
    for number, position in account.positions():
        told, replayed = await resume(hub, room, position)
        missed = [other for other in account.accepted if other > number]
        if told:
            recovered += 1
            assert [other for other in replayed if other in missed] == missed
        else:
            assert replayed == []
    assert recovered >= expected


# Two failovers in a row, each of which loses acknowledged messages


@contextlib.contextmanager
def cut_off(primary: CacheServer, replica: CacheServer) -> Iterator[None]:
    """A replica that gets nothing from its primary any more."""
    # The primary has no password and refuses it, which ends each attempt to connect.
    replica.execute("CONFIG", "SET", "masterauth", "wrong")
    try:
        primary.execute("CLIENT", "KILL", "TYPE", "replica")
        until(lambda: replica.execute("ROLE")[3] != "connected", 10, "the replica is connected")
        yield
    finally:
        replica.execute("CONFIG", "SET", "masterauth", "")


def follows(replica: CacheServer, primary: CacheServer) -> bool:
    role = replica.execute("ROLE")
    return role[0] == "slave" and role[2] == primary.port and role[3] == "connected"


@pytest.fixture
async def cluster(valkey_cluster: CacheCluster) -> AsyncIterator[CacheCluster]:
    yield valkey_cluster
    await to_thread(valkey_cluster.restore)


async def test_two_failovers_and_the_former_primary_leads_again(cluster: CacheCluster) -> None:
    room = next(f"room:{n}" for n in range(100) if slot_of(f"room:{n}") < 5000)
    url = quick(cluster.url, **KEPT)
    node = await to_thread(cluster.primary_of, slot_of(room))
    (replica,) = await to_thread(cluster.replicas_of, node)
    async with (
        open_hub(url) as reader,
        open_hub(url) as publisher,
        open_hub(url) as resuming,
        listening(reader, room) as heard,
    ):
        account = Account(publisher, heard, room)
        await account.publish(20)
        lost: list[int] = []
        for old, new in ((node, replica), (replica, node)):
            await to_thread(until, lambda old=old, new=new: follows(new, old), 10, "no replica")
            await to_thread(old.execute, "WAIT", 1, 5000)
            with cut_off(old, new):
                first = len(account.accepted)
                await account.publish(20)
                assert len(account.accepted) == first + 20
                lost += account.accepted[first:]
                await heard.until(account.is_newest)
                await to_thread(new.execute, "CLUSTER", "FAILOVER", "TAKEOVER")
                await account.publish(20)
            await account.flows()
            after = len(account.accepted)
            await account.publish(20)
            await heard.until(account.is_newest)
            assert heard.gaps
            await resume_from_all(resuming, account, room, expected=20)
            assert after < len(account.accepted)
        # The positions of lost messages were among them.
        assert set(lost) <= {number for number, _ in account.positions()}
        heard.check(account.ledger)
        assert len(heard.gaps) <= 4


# A primary that is demoted in place


@pytest.fixture
def pair(missing: Callable[[str], NoReturn]) -> Iterator[list[CacheServer]]:
    config = {"repl-diskless-sync-delay": "0"}
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(ValkeyServer(config=config)) for _ in range(2)]
        except ServerUnavailable as exc:
            missing(str(exc))


async def test_a_primary_that_is_demoted_in_place(pair: list[CacheServer]) -> None:
    """The same connections see two histories; only the messages themselves tell."""
    server, other = pair
    room, url = "room:1", quick(server.url, probe_interval_seconds=NEVER_SECONDS, **KEPT)
    await to_thread(other.execute, "REPLICAOF", "127.0.0.1", server.port)
    await to_thread(until, lambda: follows(other, server), 10, "no replica")
    async with (
        open_hub(url) as reader,
        open_hub(url) as publisher,
        open_hub(quick(other.url, **KEPT, probe_interval_seconds=NEVER_SECONDS)) as elsewhere,
        open_hub(url) as resuming,
        listening(reader, room) as heard,
    ):
        account = Account(publisher, heard, room)
        await account.publish(10)
        await to_thread(server.execute, "WAIT", 1, 5000)
        await to_thread(other.execute, "REPLICAOF", "NO", "ONE")
        await account.publish(10)  # Acknowledged, and lost below.
        await heard.until(account.is_newest)
        async with listening(elsewhere, room) as heard_there:
            there = Account(elsewhere, heard_there, room, "two")
            await there.publish(9)  # The messages that the server gets instead.
            await heard_there.until(there.is_newest)
            await to_thread(server.execute, "REPLICAOF", "127.0.0.1", other.port)
            await to_thread(until, lambda: follows(server, other), 10, "no replica")
            await there.publish(3)  # They arrive at the subscribers of the replica, too.
            await heard_there.until(there.is_newest)
            await to_thread(other.execute, "WAIT", 1, 5000)
            await to_thread(server.execute, "REPLICAOF", "NO", "ONE")
            others = there.positions()
        await account.flows()
        await account.publish(10)
        await heard.until(account.is_newest)
        assert heard.gaps
        # Of the same epoch, and partly with the same offsets.
        positions = [Position.parse(position) for _, position in [*account.positions(), *others]]
        assert len({one.epoch for one in positions}) == 1
        assert len({one.offset for one in positions}) < len(positions)
        for _, position in others:
            assert (await resume(resuming, room, position))[0] is False
        await resume_from_all(resuming, account, room, expected=10)
        heard.check(account.ledger, there.ledger)
