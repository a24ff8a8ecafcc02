"""Hurts a cluster at random, in a way that a seed repeats.

    nemesis = Nemesis(cluster, proxy, seed=7)
    while ...:
        print(await nemesis.strike())  # "freeze 127.0.0.1:7001 for 0.4 s"
        await nemesis.restore()

One more kind of strike is one more method named `_strike_...`: it does the harm, waits for nothing
that the harm may prevent, and returns what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from asyncio import to_thread
from collections.abc import Awaitable, Callable

import redis

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.proxy import Direction, FaultProxy
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import spread
from faults.acts import kill_clients

__all__ = ["Nemesis"]

PROMOTION_SECONDS = 5.0
DIRECTIONS: tuple[Direction, ...] = ("reads", "writes", "both")


class Nemesis:
    """One seed, one sequence of strikes.

    Args:
        proxy: in front of one of the nodes.
    """

    def __init__(self, cluster: CacheCluster, proxy: FaultProxy, seed: int) -> None:
        self._cluster = cluster
        self._proxy = proxy
        self._random = random.Random(seed)
        self._strikes: list[Callable[[], Awaitable[str]]] = [
            getattr(self, name) for name in sorted(dir(self)) if name.startswith("_strike_")
        ]

    async def strike(self) -> str:
        """Do some harm, and say what; perhaps wait, so that the next act meets another state."""
        strike = self._random.choice(self._strikes)
        pause = self._random.choice((0.0, 0.0, 0.3, 1.0, 2.0))
        # A node that is between two roles refuses what would be possible a moment later.
        with contextlib.suppress(redis.RedisError, LookupError):
            done = await strike()
            await asyncio.sleep(pause)
            return f"{done}, then {pause:g} s"
        return f"{strike.__name__} was refused"

    async def restore(self) -> None:
        """Undo it, under load as well."""
        await to_thread(self._cluster.restore)

    async def _primaries(self, count: int) -> list[CacheServer]:
        return self._random.sample(await to_thread(self._cluster.primaries), count)

    async def _strike_kill(self) -> str:
        (node,) = await self._primaries(1)
        await to_thread(node.kill)
        if self._random.random() < 0.7:
            await to_thread(self._cluster.wait_promoted, node, PROMOTION_SECONDS)
        return f"killed {node.port}"

    async def _strike_kill_a_replica(self) -> str:
        node = self._random.choice(self._cluster.nodes[len(self._cluster.nodes) // 2 :])
        await to_thread(node.kill)
        return f"killed replica {node.port}"

    async def _strike_freeze(self) -> str:
        (node,) = await self._primaries(1)
        await to_thread(node.pause)
        await to_thread(self._cluster.wait_promoted, node, PROMOTION_SECONDS)
        await asyncio.sleep(self._random.uniform(0, 1.5))
        await to_thread(node.resume)
        return f"froze {node.port} until it was replaced"

    async def _strike_freeze_for_a_moment(self) -> str:
        (node,) = await self._primaries(1)
        seconds = self._random.uniform(0.05, 0.4)
        await to_thread(node.pause)
        await asyncio.sleep(seconds)
        await to_thread(node.resume)
        return f"froze {node.port} for {seconds:.2f} s"

    async def _strike_move_slots(self) -> str:
        source, target = await self._primaries(2)
        slots = sorted(spread(await to_thread(self._cluster.slots_of, source)))
        chosen = self._random.sample(slots, self._random.choice((1, 30, 500)))
        await to_thread(self._cluster.move_slots, chosen, source, target)
        return f"moved {len(chosen)} slots from {source.port} to {target.port}"

    async def _strike_failover(self) -> str:
        (node,) = await self._primaries(1)
        replicas = await to_thread(self._cluster.replicas_of, node)
        await to_thread(self._cluster.failover, self._random.choice(replicas))
        return f"failover of {node.port}"

    async def _strike_cut_subscribers(self) -> str:
        for _ in range(self._random.randint(1, 3)):
            await to_thread(kill_clients, self._cluster.nodes)
        return "cut all subscribers"

    async def _strike_cut_everybody(self) -> str:
        (node,) = await self._primaries(1)
        for kind in ("PUBSUB", "NORMAL"):
            await to_thread(node.execute, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        return f"cut all clients of {node.port}"

    async def _strike_blackhole(self) -> str:
        direction = self._random.choice(DIRECTIONS)
        self._proxy.blackhole(direction)
        return f"blackhole for {direction}"

    async def _strike_reset(self) -> str:
        self._proxy.drop()
        return "reset all connections of the proxy"

    async def _strike_refuse(self) -> str:
        self._proxy.refuse()
        self._proxy.drop()
        await asyncio.sleep(self._random.uniform(0.1, 1))
        self._proxy.accept()
        return "refused connections for a while"
