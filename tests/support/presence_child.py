"""A process with one hub that tracks members of a channel and watches it.

Run it as `python -m support.presence_child URL NAME`. It reads commands as lines of JSON, and
answers each with one line. `Commands` has one method for each command. The environment may have
PRESENCE_PORTS, an object in JSON: connections to the first port of a pair go to the second one,
which is a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from django_sockets import BrokerError, Hub, PresenceError, open_hub
from django_sockets.delivery.events import Events, Presence

ROOM = "hall"
"""In a cluster of three, another node has its slot than that of the leases."""
AGAIN_SECONDS = 0.1
WAIT_SECONDS = 5.0


class Watcher:
    """The members, as the events tell them."""

    def __init__(self, events: Events) -> None:
        recovery = events.recoveries[ROOM]
        self.members = dict(recovery.presence or {})
        self.told: Counter[str] = Counter(f"+{key}" for key in self.members)
        self.wrong: list[str] = []
        self.gaps = 0
        self._events = events
        self._changed = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        async for event in self._events:
            if not isinstance(event, Presence):
                self.gaps += 1
                continue
            self.wrong += [f"+{key}" for key in event.joined if key in self.members]
            self.wrong += [f"-{key}" for key in event.left if key not in self.members]
            self.wrong += [f"~{key}" for key in event.updated if key not in self.members]
            self.members |= {**event.joined, **event.updated}
            for key in event.left:
                self.members.pop(key, None)
            self.told.update(f"+{key}" for key in event.joined)
            self.told.update(f"-{key}" for key in event.left)
            self._changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()


class Wishes:
    """Entries that the process shall have. Each is put or removed until the server has taken it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._wanted: dict[str, list[Any] | None] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def open(self) -> int:
        """The number of entries that the server has not taken yet."""
        return sum(not task.done() for task in self._tasks.values())

    def want(self, entries: Mapping[str, list[Any] | None]) -> None:
        for entry, member in entries.items():
            self._wanted[entry] = member
            task = self._tasks.get(entry)
            if task is None or task.done():
                self._tasks[entry] = asyncio.create_task(self._apply(entry))

    async def _apply(self, entry: str) -> None:
        done: Any = ()
        while (member := self._wanted[entry]) is not done:
            try:
                if member is None:
                    await self._hub.untrack(ROOM, entry)
                else:
                    await self._hub.track(ROOM, *member, entry=entry)
                done = member
            except PresenceError:
                await asyncio.sleep(AGAIN_SECONDS)

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class WallClock:
    """`time.time` of this process, which can be moved, and the modules that read it."""

    def __init__(self) -> None:
        self.moved = 0.0
        self.readers: set[str] = set()
        self._real = time.time
        time.time = self._read

    def _read(self) -> float:
        self.readers.add(sys._getframe(1).f_globals.get("__name__", ""))
        return self._real() + self.moved


def in_order(members: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The members, with the infos of each in one order: that of its entries has no meaning."""
    return {key: sorted(infos, key=json.dumps) for key, infos in members.items()}


class Commands:
    """What a test can tell the process to do."""

    def __init__(self, hub: Hub, watcher: Watcher, wishes: Wishes, clock: WallClock) -> None:
        self._hub = hub
        self._watcher = watcher
        self._wishes = wishes
        self._clock = clock

    async def track(self, keys: list[str]) -> None:
        """Put members whose info is the name of this process."""
        await asyncio.gather(*(self._hub.track(ROOM, key, sys.argv[2]) for key in keys))

    async def want(self, entries: dict[str, list[Any] | None]) -> None:
        """Entry -> [key, info] or null: see `Wishes`. It does not wait for the server."""
        self._wishes.want(entries)

    async def move_clock(self, seconds: float) -> None:
        """Move the wall clock."""
        self._clock.moved += seconds

    async def until(self, number: int) -> None:
        """Wait until the watcher knows so many members."""
        await self._watcher.until(lambda: len(self._watcher.members) == number)

    async def members(self, wanted: dict[str, list[Any]]) -> None:
        """Wait until the watcher knows these members, with these infos, for `WAIT_SECONDS`."""
        wanted = in_order(wanted)
        known = self._watcher.until(lambda: in_order(self._watcher.members) == wanted)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(known, WAIT_SECONDS)

    async def report(self, _: bool) -> dict[str, Any]:
        """What the watcher was told, and the list of the hub at the same moment."""
        return {
            "list": await self._hub.presence(ROOM),
            "members": self._watcher.members,
            "told": self._watcher.told,
            "wrong": self._watcher.wrong,
            "gaps": self._watcher.gaps,
            "open": self._wishes.open,
            "stats": self._hub.stats(),
            "clock readers": sorted(self._clock.readers),
        }


def through_proxies(ports: Mapping[str, int]) -> None:
    """Send the connections to some ports of this machine to other ports."""
    real = asyncio.open_connection

    async def open_connection(host: Any, port: Any, **options: Any) -> Any:
        return await real(host, ports.get(str(port), port), **options)

    asyncio.open_connection = open_connection  # type: ignore[assignment]


async def watch(hub: Hub, stack: contextlib.AsyncExitStack) -> Events:
    """Watch the channel as soon as the server lets it."""
    while True:
        with contextlib.suppress(BrokerError):
            return await stack.enter_async_context(hub.subscribe(ROOM, presence=True))
        await asyncio.sleep(AGAIN_SECONDS)


async def serve(url: str, clock: WallClock) -> None:
    loop = asyncio.get_running_loop()
    async with open_hub(url) as hub, contextlib.AsyncExitStack() as stack:
        watcher, wishes = Watcher(await watch(hub, stack)), Wishes(hub)
        commands = Commands(hub, watcher, wishes, clock)
        print(json.dumps("ready"), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            ((name, argument),) = json.loads(line).items()
            if name == "close":
                break
            print(json.dumps(await getattr(commands, name)(argument)), flush=True)
        await wishes.aclose()
        watcher.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher.task
    print(json.dumps("closed"), flush=True)


if __name__ == "__main__":
    through_proxies(json.loads(os.environ.get("PRESENCE_PORTS") or "{}"))
    asyncio.run(serve(sys.argv[1], WallClock()))
