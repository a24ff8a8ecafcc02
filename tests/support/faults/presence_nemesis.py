"""Breaks the servers and the processes of a crowd at random. The same seed repeats the faults.

    nemesis = PresenceNemesis(trio, crowd, lease_seconds=2, seed=7)
    while ...:
        print(await nemesis.strike())  # "killed p2 and 127.0.0.1:7001"
        await nemesis.restore()

To add a kind of strike, add a method named `_strike_...`, as in `nemesis`. `ClusterPresenceNemesis`
does the same to a cluster, and has kinds of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial

import redis

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from support.faults.cluster_faults import kill_clients, move_with_keys
from support.faults.presence_crowd import CLOCK_SECONDS, Actor, Crowd

__all__ = ["ClusterPresenceNemesis", "PresenceNemesis"]

PROMOTION_SECONDS = 5.0
CHANGE_EVERY_SECONDS = 0.05
PEACE_SECONDS = 0.5
Strike = Callable[[random.Random], Awaitable[str]]


class PresenceNemesis:
    """Chooses the strikes of one seed. Processes change their members during each strike.

    Args:
        servers: keep the members and the leases.
    """

    def __init__(
        self, servers: SentinelTrio | CacheCluster, crowd: Crowd, lease_seconds: float, seed: int
    ) -> None:
        self._servers = servers
        self._crowd = crowd
        self._lease_seconds = lease_seconds
        self._random = random.Random(seed)
        self._strikes: list[Strike] = [
            getattr(self, name) for name in sorted(dir(self)) if name.startswith("_strike_")
        ]
        self._bag: list[Strike] = []
        self._striking = False
        self._free = asyncio.Condition()

    async def strike(self) -> str:
        """Break one to three things at once, and return their description."""
        strikes = [self._next() for _ in range(self._random.choice((1, 2, 2, 3)))]
        # Each kind has its own random numbers: in parallel, the order of common ones would vary.
        dice = [random.Random(self._random.random()) for _ in (*strikes, "changes")]
        self._striking = True
        changing = asyncio.create_task(self._change(dice.pop()))
        try:
            done = await asyncio.gather(*map(self._try, strikes, dice))
            await asyncio.sleep(self._random.choice((0.0, PEACE_SECONDS)))
        finally:
            self._striking = False
            await changing
        return " and ".join(done)

    def _next(self) -> Strike:
        """The next kind. All kinds come before one comes again."""
        if not self._bag:
            self._bag = self._random.sample(self._strikes, len(self._strikes))
        return self._bag.pop()

    async def _try(self, strike: Strike, chance: random.Random) -> str:
        # Servers with other problems may refuse.
        with contextlib.suppress(redis.RedisError, LookupError, TimeoutError, RuntimeError):
            return await strike(chance)
        return f"{strike.__name__} in vain"

    async def restore(self) -> None:
        """Undo all faults of the servers. Those of processes end with their strikes."""
        await to_thread(self._servers.restore)

    async def _change(self, chance: random.Random) -> None:
        while self._striking:
            async with self._an_actor(chance) as actor:
                await self._crowd.change(actor, chance)
            await asyncio.sleep(CHANGE_EVERY_SECONDS)

    @contextlib.asynccontextmanager
    async def _an_actor(self, chance: random.Random) -> AsyncIterator[Actor]:
        """Take a process that no other fault has."""
        async with self._free:
            await self._free.wait_for(lambda: not all(one.taken for one in self._crowd.actors))
            actor = chance.choice([one for one in self._crowd.actors if not one.taken])
            actor.taken = True
        try:
            yield actor
        finally:
            actor.taken = False
            async with self._free:
                self._free.notify_all()

    def _pause_seconds(self, chance: random.Random) -> float:
        """A time that is well within a lease, or longer than one."""
        return self._lease_seconds * chance.choice((0.3, 1.5))

    # Processes

    async def _strike_kill_process(self, chance: random.Random) -> str:
        async with self._an_actor(chance) as actor:
            await self._crowd.kill(actor)
        await self._crowd.start(chance)
        return f"killed {actor.process.name}"

    async def _strike_deploy(self, chance: random.Random) -> str:
        """The members of the old process return in the new one, before it is closed."""
        async with self._an_actor(chance) as actor:
            successor = await self._crowd.start(chance)
            await successor.want(dict(actor.wanted))
            await self._crowd.close(actor)
        return f"{successor.process.name} took the place of {actor.process.name}"

    async def _strike_stop_process(self, chance: random.Random) -> str:
        seconds = self._pause_seconds(chance)
        async with self._an_actor(chance) as actor:
            actor.stop()
            await asyncio.sleep(seconds)
            actor.resume()
        return f"stopped {actor.process.name} for {seconds:g} s"

    async def _strike_cut_process(self, chance: random.Random) -> str:
        seconds = self._pause_seconds(chance)
        async with self._an_actor(chance) as actor:
            actor.cut()
            await self._crowd.change(actor, chance)
            await asyncio.sleep(seconds)
            actor.heal()
        return f"cut {actor.process.name} off for {seconds:g} s"

    async def _strike_move_clock(self, chance: random.Random) -> str:
        seconds = chance.uniform(-CLOCK_SECONDS, CLOCK_SECONDS)
        async with self._an_actor(chance) as actor:
            await actor.process.ask(move_clock=seconds)
        return f"moved the clock of {actor.process.name} by {seconds:.0f} s"

    # Servers

    async def _primary(self, chance: random.Random) -> CacheServer:
        """A server with members or leases. Raises LookupError if there is none now."""
        assert isinstance(self._servers, SentinelTrio)
        return await to_thread(self._servers.primary)

    async def _fail_over(self, chance: random.Random) -> CacheServer:
        """Let a replica take the place of a primary that works. Returns the new primary."""
        assert isinstance(self._servers, SentinelTrio)
        return await to_thread(self._servers.failover, PROMOTION_SECONDS)

    async def _strike_kill_primary(self, chance: random.Random) -> str:
        primary = await self._primary(chance)
        await to_thread(primary.kill)
        if chance.random() < 0.7:
            await to_thread(self._servers.wait_promoted, primary, PROMOTION_SECONDS)
        return f"killed {primary.port}"

    async def _strike_kill_both(self, chance: random.Random) -> str:
        primary = await self._primary(chance)
        async with self._an_actor(chance) as actor:
            await asyncio.gather(self._crowd.kill(actor), to_thread(primary.kill))
        with contextlib.suppress(TimeoutError):
            await to_thread(self._servers.wait_promoted, primary, PROMOTION_SECONDS)
        await self._crowd.start(chance)
        return f"killed {actor.process.name} and {primary.port}"

    async def _strike_freeze_primary(self, chance: random.Random) -> str:
        primary = await self._primary(chance)
        promoted = partial(self._servers.wait_promoted, primary, PROMOTION_SECONDS)
        await self._frozen(primary, promoted)
        return f"froze {primary.port} until it was replaced"

    async def _strike_freeze_for_a_moment(self, chance: random.Random) -> str:
        primary = await self._primary(chance)
        seconds = chance.uniform(0.05, 0.4)
        await self._frozen(primary, partial(time.sleep, seconds))
        return f"froze {primary.port} for {seconds:.2f} s"

    async def _frozen(self, server: CacheServer, wait: Callable[[], object]) -> None:
        await to_thread(server.pause)
        try:
            await to_thread(wait)
        finally:
            if server.running:  # Another strike may have killed it.
                await to_thread(server.resume)

    async def _strike_failover(self, chance: random.Random) -> str:
        new = await self._fail_over(chance)
        return f"failover to {new.port}"

    async def _strike_cut_links(self, chance: random.Random) -> str:
        kinds = chance.choice((("PUBSUB",), ("NORMAL",), ("PUBSUB", "NORMAL")))
        for kind in kinds:
            await to_thread(kill_clients, self._servers.nodes, kind)
        return f"cut all links of {' and '.join(kinds)}"


class ClusterPresenceNemesis(PresenceNemesis):
    """A nemesis of a cluster: it strikes the primaries that have the members and the leases.

    Args:
        keys: of the members and of the leases.
    """

    def __init__(
        self,
        cluster: CacheCluster,
        crowd: Crowd,
        lease_seconds: float,
        seed: int,
        keys: Iterable[bytes],
    ) -> None:
        super().__init__(cluster, crowd, lease_seconds, seed)
        self._cluster = cluster
        self._slots = [slot_of(key) for key in keys]

    async def _primary(self, chance: random.Random) -> CacheServer:
        return await to_thread(self._cluster.primary_of, chance.choice(self._slots))

    async def _fail_over(self, chance: random.Random) -> CacheServer:
        primary = await self._primary(chance)
        replicas = await to_thread(self._cluster.replicas_of, primary)
        if not replicas:
            raise LookupError("the primary has no replica now")
        await to_thread(self._cluster.failover, replicas[0])
        return replicas[0]

    async def _strike_move_slots(self, chance: random.Random) -> str:
        slots = chance.choice((self._slots, self._slots[:1], self._slots[1:]))
        for slot in slots:
            await to_thread(move_with_keys, self._cluster, slot)
        return f"moved the slots {slots}"
