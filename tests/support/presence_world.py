"""Hubs of one memory bus whose clock a test moves, and what each watcher was told."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

from django_sockets import Gap, Hub, open_hub
from django_sockets.backends.memory_presence import MemoryPresence
from django_sockets.delivery.events import EventQueue, Presence
from django_sockets.hub.presence.values import pack_value
from django_sockets.testing import Faults
from django_sockets.testing.clock import MovedClock, moved_clock

ROOM = "room"
LEASE, GRACE = 15, 10
_names = itertools.count()

Members = Mapping[str, list[Any]]


class View:
    """One watcher, and the members as the events tell them.

    Attributes:
        told: the keys of all events in order: "+key", "-key" and "~key".
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.queue: EventQueue = hub.new_queue()
        self.members: dict[str, list[Any]] = {}
        self.told: list[str] = []
        self.gaps = 0

    async def open(self) -> None:
        found = await self.hub.add(self.queue, ROOM, presence=True)
        members = found[ROOM].presence
        assert members is not None
        self.members = dict(members)

    def look(self) -> None:
        """Apply the new events. Each must be a transition of what was known before."""
        for event in self.queue.drain():
            if isinstance(event, Gap):
                self.gaps += 1
                continue
            assert isinstance(event, Presence)
            for key in event.joined:
                assert key not in self.members, f"{key} has joined twice"
            for key in (*event.left, *event.updated):
                assert key in self.members, f"{key} was not present"
            self.members.update(event.joined)
            self.members.update(event.updated)
            for key in event.left:
                del self.members[key]
            self.told += [f"+{key}" for key in event.joined]
            self.told += [f"-{key}" for key in event.left]
            self.told += [f"~{key}" for key in event.updated]


class Process:
    """One hub with a watcher."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = Faults()
        self.hub: Hub = open_hub(self.faults.around(world.url))
        self.view = View(self.hub)
        self.alive = True

    @property
    def presence(self) -> Any:
        return self.hub._presence

    @property
    def id(self) -> str:
        (lease,) = self.presence._leases.values()
        return str(lease.process)

    async def crash(self) -> None:
        """End without a word: nothing is sent any more, and nothing arrives."""
        self.alive = False
        self.presence._context.closed = True
        await self.presence._context.end_tasks()
        await self.hub._broker.unwatch_presence([ROOM])  # type: ignore[attr-defined]
        await self.hub.remove(self.view.queue)

    async def close(self) -> None:
        if not self.alive:
            await self.hub._broker.aclose()
        await self.hub.aclose()


class World:
    """The bus, its clock and its processes."""

    def __init__(self, clock: MovedClock, options: str = "") -> None:
        self.clock = clock
        self.url = f"memory://presence-{next(_names)}?{options}"
        self.processes: list[Process] = []

    async def start(self) -> Process:
        process = Process(self)
        bus = self.bus_of(process)
        if not self.processes:
            bus.presence = MemoryPresence(bus._changed, lambda: round(self.clock.now * 1000))
        self.processes.append(process)
        await process.view.open()
        return process

    @staticmethod
    def bus_of(process: Process) -> Any:
        return process.hub._broker._broker._bus  # type: ignore[attr-defined]

    @property
    def bus(self) -> Any:
        return self.bus_of(self.processes[0])

    @property
    def entries(self) -> dict[str, bytes]:
        """What the server has: field -> value."""
        return dict(self.bus.presence.snapshot(ROOM).entries)

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def write_late(self, process: str, key: str) -> None:
        """A command of a dead process that was still on its way."""
        with self.bus.lock:
            value = pack_value(key, None, 100)
            self.bus.presence.change(ROOM, {f"{process}:late": value}, 20_000)

    def end_lease(self, process: Process) -> None:
        """The process could not renew its lease in time."""
        leases = self.bus.presence.leases
        if process.id in leases._ends:
            leases._ends[process.id] = round(self.clock.now * 1000)

    async def move(self, seconds: float) -> None:
        await self.clock.move(seconds)
        for process in self.living:
            process.view.look()


@contextlib.asynccontextmanager
async def world_of(processes: int, options: str = "") -> AsyncIterator[World]:
    """A world with some processes that all watch one channel."""
    with moved_clock() as clock:
        world = World(clock, options)
        try:
            for _ in range(processes):
                await world.start()
            yield world
        finally:
            for process in world.processes:
                process.faults.stop()
                await process.close()
