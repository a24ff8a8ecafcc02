"""Broadcasts per second of one process: "ours" with 1,000 tasks at once, "redis_py" one by one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

import redis.asyncio

from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.runtime import close_shared_hubs, shared_hub

DATA = {"text": "x" * 188}
TASKS = 1000
ROUNDS = 20


async def ours(url: str, rounds: int = ROUNDS) -> dict[str, float]:
    """All tasks of a round run at once; the rounds follow each other."""
    broadcaster = Broadcaster(config=url)
    shared_hub(load_config(url))  # The loop has a hub of its own, as in a server.

    async def once() -> int:
        calls = (broadcaster.async_broadcast("room", DATA) for _ in range(TASKS))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return sum(outcome is not None for outcome in outcomes)

    try:
        return await _rate(url, rounds, once)
    finally:
        await close_shared_hubs()


async def redis_py(url: str, rounds: int = ROUNDS) -> dict[str, float]:
    """The same number of publishes, awaited one by one."""
    text = json.dumps(DATA)
    async with redis.asyncio.Redis.from_url(url) as client:

        async def once() -> int:
            for _ in range(TASKS):
                await client.publish("room", text)
            return 0

        return await _rate(url, rounds, once)


async def _rate(url: str, rounds: int, once: Callable[[], Awaitable[int]]) -> dict[str, float]:
    before = _connections_ever(url)
    await once()
    started = time.perf_counter()
    errors = sum([await once() for _ in range(rounds)])
    seconds = time.perf_counter() - started
    return {
        "broadcasts_per_second": TASKS * rounds / seconds,
        "errors": errors,
        # `_connections_ever` itself opens one connection.
        "broker_connections_opened": _connections_ever(url) - before - 1,
    }


def _connections_ever(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("stats")["total_connections_received"])


if __name__ == "__main__":
    measure = {"ours": ours, "redis_py": redis_py}[sys.argv[1]]
    print(json.dumps(asyncio.run(measure(os.environ["BENCH_BROKER_URL"]))))
