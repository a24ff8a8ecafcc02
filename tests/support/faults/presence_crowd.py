"""Processes whose members come and go, and the members that every one of them must know.

    async with crowd_of(3, url, servers) as crowd:
        await crowd.change(crowd.actors[0], random.Random(7))
        await crowd.kill(crowd.actors[1])
        for report in await crowd.agreed(): ...

The connections of each process go through proxies of its own, so that one process can be cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer
from support.presence_child import in_order
from support.presence_process import PresenceProcess

__all__ = ["Actor", "Crowd", "crowd_of"]

ENTRIES = range(8)
SHARED_KEYS = ("ann", "bob")
"""Members with connections to several processes."""
CLOCK_SECONDS = 600
"""The wall clocks of the processes differ by up to twice as much."""


class Actor:
    """One process, and the entries that it shall have.

    Attributes:
        wanted: entry -> [key, info].
        taken: a fault has this process at present, and nobody else may use it.
    """

    def __init__(self, url: str, name: str, proxies: Mapping[int, FaultProxy]) -> None:
        ports = {port: proxy.port for port, proxy in proxies.items()}
        self.process = PresenceProcess(url, name, ports)
        self.wanted: dict[str, list[Any]] = {}
        self.taken = False
        self._proxies = proxies.values()

    async def want(self, entries: Mapping[str, list[Any] | None]) -> None:
        """Put entries, or remove them (None)."""
        for entry, member in entries.items():
            if member is None:
                self.wanted.pop(entry, None)
            else:
                self.wanted[entry] = member
        await self.process.ask(want=entries)

    def stop(self) -> None:
        """Stop the process, as a machine that is paused."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process run on."""
        self.process.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """Lose every byte between the process and the servers. Neither side gets an error."""
        for proxy in self._proxies:
            proxy.blackhole("both", existing_only=False)

    def heal(self) -> None:
        """Let the process connect again. Connections that have lost bytes are reset."""
        for proxy in self._proxies:
            proxy.accept()
            proxy.drop()


class Crowd:
    """The processes of one test.

    Attributes:
        actors: the living ones.
    """

    def __init__(self, url: str, servers: Iterable[CacheServer]) -> None:
        self.actors: list[Actor] = []
        self._url = url
        self._servers = list(servers)
        self._numbers = itertools.count(1)
        self._stack = contextlib.AsyncExitStack()

    async def start(self, dice: random.Random) -> Actor:
        """Start one more process, with a wall clock that is wrong."""
        name = f"p{next(self._numbers)}"
        proxies = {
            server.port: await self._stack.enter_async_context(FaultProxy(server.host, server.port))
            for server in self._servers
        }
        actor = Actor(self._url, name, proxies)
        self._stack.push_async_callback(actor.process.kill)
        await actor.process.start()
        await actor.process.ask(move_clock=dice.uniform(-CLOCK_SECONDS, CLOCK_SECONDS))
        self.actors.append(actor)
        return actor

    async def kill(self, actor: Actor) -> None:
        """Kill a process (SIGKILL)."""
        self.actors.remove(actor)
        await actor.process.kill()

    async def close(self, actor: Actor) -> None:
        """End a process in order, as a deploy does."""
        self.actors.remove(actor)
        assert await actor.process.ask(close=True) == "closed"
        await actor.process.kill()

    async def change(self, actor: Actor, dice: random.Random) -> None:
        """Put, change or remove some entries of a process."""
        entries: dict[str, list[Any] | None] = {}
        for entry in dice.sample(ENTRIES, dice.randint(1, 3)):
            key = dice.choice((*SHARED_KEYS, f"{actor.process.name}-{entry}"))
            member = [key, dice.randrange(1000)]
            entries[f"tab {entry}"] = member if dice.random() < 0.6 else None
        await actor.want(entries)

    @property
    def members(self) -> dict[str, list[Any]]:
        """The members that everybody must know: key -> infos, in any order."""
        found: dict[str, list[Any]] = {}
        for actor in self.actors:
            for key, info in actor.wanted.values():
                found.setdefault(key, []).append(info)
        return found

    async def agreed(self, within_seconds: float) -> list[Any]:
        """Wait until every process knows the members. Returns the reports of the processes.

        Raises:
            AssertionError: a process does not know them, or was told something that is no change.
        """
        wanted = in_order(self.members)
        reports = await asyncio.gather(
            *(actor.process.until(wanted, within_seconds) for actor in self.actors)
        )
        problems = [
            f"{name} of {actor.process.name} differ: {_difference(report[name], wanted)}, "
            f"{report['open']} calls go on, {report['stats']}"
            for actor, report in zip(self.actors, reports, strict=True)
            for name in ("members", "list")
            if in_order(report[name]) != wanted
        ]
        assert not problems, f"after {within_seconds:g} s, {'; '.join(problems)}"
        for report in reports:
            assert report["wrong"] == [], f"no changes: {report['wrong'][:10]}"
            readers = [name for name in report["clock readers"] if _is_ours(name)]
            assert readers == [], f"{readers} read the wall clock"
        return reports

    async def aclose(self) -> None:
        await self._stack.aclose()


def _difference(members: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]]) -> str:
    known = in_order(members)
    keys = [key for key in {*known, *wanted} if known.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {known.get(key)}, not {wanted.get(key)}" for key in keys[:10])


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("django_sockets", "backends")


@contextlib.asynccontextmanager
async def crowd_of(
    number: int, url: str, servers: Iterable[CacheServer], seed: int = 0
) -> AsyncIterator[Crowd]:
    """A crowd of some processes. All of them are ended."""
    crowd, dice = Crowd(url, servers), random.Random(seed)
    try:
        await asyncio.gather(*(crowd.start(dice) for _ in range(number)))
        yield crowd
    finally:
        await crowd.aclose()
