"""A Channels application with 200 consumers while its server fails.

Each message of a group is delivered once and in order, or lies inside a `broker.gap` of its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("channels")

from channels.consumer import AsyncConsumer

from django_sockets.errors import BrokerError
from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.faults.cluster_faults import kill_clients

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

CONSUMERS = 200
GROUPS = 20
PAUSE_SECONDS = 0.1
HEALTHY_SECONDS = 0.5
RECOVERY_SECONDS = 20.0
_prefixes = itertools.count()


class Application:
    """200 consumers in 20 groups, and a task that sends numbered messages to all groups.

    Attributes:
        seen: consumer -> its events in order, numbers and "gap".
        accepted: the numbers that `group_send` accepted, for each group.
    """

    def __init__(self, url: str) -> None:
        prefix = f"faults{next(_prefixes)}"
        options = {"url": quick(url), "prefix": prefix, "capacity": 10_000}
        self.layer = ChannelLayer(**options, gap_events=True)
        self.sender = ChannelLayer(**options)
        self.seen: list[list[Any]] = [[] for _ in range(CONSUMERS)]
        self.accepted: list[set[int]] = [set() for _ in range(GROUPS)]
        self.tried: list[int] = [-1] * GROUPS
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()

    def consumer(self, number: int) -> Any:
        application = self
        group = f"group{number % GROUPS}"

        class Member(AsyncConsumer):  # type: ignore[misc]
            async def start(self, event: dict[str, Any]) -> None:
                await self.channel_layer.group_add(group, self.channel_name)
                application.note(number, "joined")

            async def said(self, event: dict[str, Any]) -> None:
                application.note(number, event["n"])

            async def broker_gap(self, event: dict[str, Any]) -> None:
                if group in event["groups"]:
                    application.note(number, "gap")

        return Member.as_asgi()

    def note(self, number: int, what: object) -> None:
        self.seen[number].append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        while not condition():
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.01, give_up - loop.time()))
            except asyncio.TimeoutError:
                return condition()
        return True

    async def send(self) -> None:
        """Send to each group in turn until `stop`."""
        while not self._stop.is_set():
            await asyncio.gather(*(self.send_one(group) for group in range(GROUPS)))
            await asyncio.sleep(PAUSE_SECONDS)

    async def send_one(self, group: int) -> bool:
        number = self.tried[group] = self.tried[group] + 1
        try:
            await self.sender.group_send(f"group{group}", {"type": "said", "n": number})
        except BrokerError:
            return False
        self.accepted[group].add(number)
        return True

    def stop(self) -> None:
        self._stop.set()

    async def recovered(self) -> None:
        """Return when a message that is sent now reaches every consumer."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RECOVERY_SECONDS
        while loop.time() < give_up:
            fresh = [self.tried[number % GROUPS] for number in range(CONSUMERS)]

            def complete(fresh: list[int] = fresh) -> bool:
                return all(
                    any(isinstance(e, int) and e > n for e in events[-50:])
                    for events, n in zip(self.seen, fresh, strict=True)
                )

            if await self.until(complete, 1.0):
                return
        raise AssertionError("some consumers do not hear messages again")

    def check(self) -> None:
        """Each accepted message was delivered once and in order, or is inside a gap."""
        for number, events in enumerate(self.seen):
            last: int | None = None
            gap = False
            for event in events[1:]:
                if event == "gap":
                    gap = True
                    continue
                assert last is None or event > last, f"{number}: {event} after {last}"
                accepted = self.accepted[number % GROUPS]
                missed = set() if last is None else accepted.intersection(range(last + 1, event))
                assert gap or not missed, f"{number}: {sorted(missed)[:5]} missing before {event}"
                last, gap = event, False


@contextlib.asynccontextmanager
async def running(url: str, settings: Any) -> AsyncIterator[Application]:
    application = Application(url)
    from channels.layers import channel_layers

    settings.configure_layers(channel_layers, application.layer)
    tasks = []
    for number in range(CONSUMERS):
        incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        incoming.put_nowait({"type": "start"})
        consumer = application.consumer(number)
        tasks.append(asyncio.create_task(consumer({"type": "test"}, incoming.get, _no_send)))
    assert await application.until(lambda: all(application.seen), 20)
    sending = asyncio.create_task(application.send())
    try:
        await application.recovered()
        await asyncio.sleep(HEALTHY_SECONDS)
        yield application
        await application.recovered()
        await asyncio.sleep(HEALTHY_SECONDS)
        application.stop()
        await sending
        last = [application.tried[group] + 1 for group in range(GROUPS)]
        for group in range(GROUPS):
            assert await application.send_one(group)
        assert await application.until(
            lambda: all(e[-1] == last[n % GROUPS] for n, e in enumerate(application.seen)), 20
        )
    finally:
        sending.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(sending, *tasks, return_exceptions=True)
        for layer in (application.layer, application.sender):
            await layer.close()
    application.check()
    ended = [task for task in tasks if not task.cancelled() and task.exception() is not None]
    assert ended == []


async def _no_send(event: object) -> None:
    pass


class Settings:
    """Makes a layer the default one of Channels, for the consumers of a test."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def configure_layers(self, manager: Any, layer: ChannelLayer) -> None:
        old = manager.set("default", layer)
        self._undo.append(lambda: manager.set("default", old))

    def undo(self) -> None:
        for undo in self._undo:
            undo()


@pytest.fixture
def layers(django_project: None) -> Any:
    settings = Settings()
    yield settings
    settings.undo()


# Faults of one server


async def cut_subscribers(server: CacheServer) -> None:
    for _ in range(5):
        await to_thread(kill_clients, [server])
        await asyncio.sleep(0.05)


async def cut_publishers(server: CacheServer) -> None:
    for _ in range(5):
        await to_thread(kill_clients, [server], "NORMAL")
        await asyncio.sleep(0.05)


async def kill_and_start(server: CacheServer) -> None:
    await to_thread(server.kill)
    await asyncio.sleep(0.3)
    await to_thread(server.start)


async def freeze(server: CacheServer) -> None:
    await to_thread(server.pause)
    await asyncio.sleep(2)
    await to_thread(server.resume)


@pytest.mark.parametrize("fault", [cut_subscribers, cut_publishers, kill_and_start, freeze])
async def test_one_server(
    fresh_valkey_server: CacheServer, layers: Any, fault: Callable[[CacheServer], Awaitable[None]]
) -> None:
    async with running(fresh_valkey_server.url, layers) as application:
        await fault(fresh_valkey_server)
    # A publish that failed with its connection is a gap, too, if it has not arrived.
    if fault is not cut_publishers:
        assert application.layer.stats()["gaps"] > 0


# Faults of a cluster and of sentinels


async def kill_primary(cluster: CacheCluster) -> None:
    node = (await to_thread(cluster.primaries))[0]
    await to_thread(node.kill)
    await to_thread(cluster.wait_promoted, node)


async def freeze_primary(cluster: CacheCluster) -> None:
    node = (await to_thread(cluster.primaries))[0]
    await to_thread(node.pause)
    await to_thread(cluster.wait_promoted, node)
    await to_thread(node.resume)


async def fail_over(cluster: CacheCluster) -> None:
    node = (await to_thread(cluster.primaries))[0]
    replica = (await to_thread(cluster.replicas_of, node))[0]
    await to_thread(cluster.failover, replica)


async def move_slots(cluster: CacheCluster) -> None:
    source, target = (await to_thread(cluster.primaries))[:2]
    first, last = (await to_thread(cluster.slots_of, source))[0]
    await to_thread(cluster.move_slots, range(first, min(last, first + 500) + 1), source, target)


@pytest.mark.parametrize("fault", [kill_primary, freeze_primary, fail_over, move_slots])
async def test_a_cluster(
    restored_valkey_cluster: CacheCluster,
    layers: Any,
    fault: Callable[[CacheCluster], Awaitable[None]],
) -> None:
    async with running(restored_valkey_cluster.url, layers):
        await fault(restored_valkey_cluster)


async def test_sentinels(restored_valkey_sentinels: SentinelTrio, layers: Any) -> None:
    trio = restored_valkey_sentinels
    async with running(trio.url, layers):
        await to_thread(trio.failover)
