"""Broadcasts of a thousand concurrent tasks, and redis-py awaited one by one, in one process."""

from __future__ import annotations

import asyncio
import sys
import time

import redis.asyncio

from django_sockets.broadcaster import Broadcaster
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.testing.servers import ValkeyServer

DATA = {"text": "x" * 188}


async def ours(url: str, count: int) -> float:
    """Broadcasts a second, and all of them at once."""
    broadcaster = Broadcaster(config=url)
    shared_hub(broadcaster._config)  # This loop's own, as in a server.
    await broadcaster.async_broadcast("room", DATA)
    started = time.perf_counter()
    await asyncio.gather(*(broadcaster.async_broadcast("room", DATA) for _ in range(count)))
    seconds = time.perf_counter() - started
    await close_shared_hubs()
    return count / seconds


async def one_by_one(url: str, count: int) -> float:
    """Publishes a second."""
    payload = b"x" * 200
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.publish("room", payload)
        started = time.perf_counter()
        for _ in range(count):
            await client.publish("room", payload)
        return count / (time.perf_counter() - started)


if __name__ == "__main__":
    with ValkeyServer() as server:
        for _ in range(int(sys.argv[1]) if sys.argv[1:] else 5):
            fast = asyncio.run(ours(server.url, 1000))
            slow = asyncio.run(one_by_one(server.url, 1000))
            print(f"{fast:,.0f}/s, one by one {slow:,.0f}/s: {fast / slow:.1f} times")
