"""Breaks a cluster at random. The same seed repeats the same faults.

    nemesis = Nemesis(cluster, node, proxy, seed=7)
    while ...:
        print(await nemesis.strike())  # "freeze 127.0.0.1:7001 for 0.4 s"
        await nemesis.restore()

To add a kind of strike, add a method named `_strike_...`. It breaks something, waits for nothing
that the fault may prevent, and returns a description.
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
from support.faults.cluster_faults import announce, kill_clients

__all__ = ["Nemesis"]

PROMOTION_SECONDS = 5.0
Strike = Callable[[random.Random], Awaitable[str]]
DIRECTIONS: tuple[Direction, ...] = ("reads", "writes", "both")


class Nemesis:
    """Chooses the strikes of one seed.

    Args:
        node, proxy: one of the nodes, and the proxy in front of it.
    """

    def __init__(
        self, cluster: CacheCluster, node: CacheServer, proxy: FaultProxy, seed: int
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._proxy = proxy
        self._random = random.Random(seed)
        self._strikes: list[Strike] = [
            getattr(self, name) for name in sorted(dir(self)) if name.startswith("_strike_")
        ]

    async def strike(self) -> str:
        """Break something and return its description. A random pause varies the next state."""
        strikes = self._random.sample(self._strikes, self._random.choice((1, 1, 2)))
        pause = self._random.choice((0.0, 0.0, 0.3, 1.0, 2.0))
        # Each kind has its own random numbers: in parallel, the order of common ones would vary.
        dice = [random.Random(self._random.random()) for _ in strikes]
        done = await asyncio.gather(*map(self._try, strikes, dice))
        await asyncio.sleep(pause)
        return f"{' and '.join(done)}, then {pause:g} s"

    async def _try(self, strike: Strike, chance: random.Random) -> str:
        # A cluster with other problems may refuse, and accept a moment later.
        with contextlib.suppress(
            redis.RedisError, LookupError, TimeoutError, ValueError, RuntimeError
        ):
            return await strike(chance)
        return f"{strike.__name__} in vain"

    async def restore(self) -> None:
        """Undo all faults. It works under load, too."""
        await to_thread(self._cluster.restore)
        await to_thread(announce, self._cluster, self._node, self._proxy.port)

    async def _primaries(self, chance: random.Random, count: int) -> list[CacheServer]:
        return chance.sample(await to_thread(self._cluster.primaries), count)

    async def _strike_kill(self, chance: random.Random) -> str:
        (node,) = await self._primaries(chance, 1)
        await to_thread(node.kill)
        if chance.random() < 0.7:
            await to_thread(self._cluster.wait_promoted, node, PROMOTION_SECONDS)
        return f"killed {node.port}"

    async def _strike_kill_a_replica(self, chance: random.Random) -> str:
        node = chance.choice(self._cluster.nodes[len(self._cluster.nodes) // 2 :])
        await to_thread(node.kill)
        return f"killed replica {node.port}"

    async def _strike_freeze(self, chance: random.Random) -> str:
        (node,) = await self._primaries(chance, 1)
        await to_thread(node.pause)
        await to_thread(self._cluster.wait_promoted, node, PROMOTION_SECONDS)
        await asyncio.sleep(chance.uniform(0, 1.5))
        await to_thread(node.resume)
        return f"froze {node.port} until it was replaced"

    async def _strike_freeze_for_a_moment(self, chance: random.Random) -> str:
        (node,) = await self._primaries(chance, 1)
        seconds = chance.uniform(0.05, 0.4)
        await to_thread(node.pause)
        await asyncio.sleep(seconds)
        await to_thread(node.resume)
        return f"froze {node.port} for {seconds:.2f} s"

    async def _strike_move_slots(self, chance: random.Random) -> str:
        source, target = await self._primaries(chance, 2)
        slots = sorted(spread(await to_thread(self._cluster.slots_of, source)))
        chosen = chance.sample(slots, chance.choice((1, 30, 500)))
        await to_thread(self._cluster.move_slots, chosen, source, target)
        return f"moved {len(chosen)} slots from {source.port} to {target.port}"

    async def _strike_failover(self, chance: random.Random) -> str:
        (node,) = await self._primaries(chance, 1)
        replicas = await to_thread(self._cluster.replicas_of, node)
        await to_thread(self._cluster.failover, chance.choice(replicas))
        return f"failover of {node.port}"

    async def _strike_cut_subscribers(self, chance: random.Random) -> str:
        for _ in range(chance.randint(1, 3)):
            await to_thread(kill_clients, self._cluster.nodes)
        return "cut all subscribers"

    async def _strike_cut_publishers(self, chance: random.Random) -> str:
        times = chance.randint(1, 10)
        for _ in range(times):
            await to_thread(kill_clients, self._cluster.nodes, "NORMAL")
            await asyncio.sleep(chance.uniform(0, 0.03))
        return f"cut all publishers {times} times"

    async def _strike_cut_everybody(self, chance: random.Random) -> str:
        (node,) = await self._primaries(chance, 1)
        for kind in ("PUBSUB", "NORMAL"):
            await to_thread(kill_clients, [node], kind)
        return f"cut all clients of {node.port}"

    async def _strike_blackhole(self, chance: random.Random) -> str:
        direction = chance.choice(DIRECTIONS)
        self._proxy.blackhole(direction)
        return f"blackhole for {direction}"

    async def _strike_reset(self, chance: random.Random) -> str:
        self._proxy.drop()
        return "reset all connections of the proxy"

    async def _strike_refuse(self, chance: random.Random) -> str:
        self._proxy.refuse()
        self._proxy.drop()
        await asyncio.sleep(chance.uniform(0.1, 1))
        self._proxy.accept()
        return "refused connections for a while"
