"""CPU time to read messages from the broker: "ours" to the hub's subscriber, "redis_py" to its
PubSub.

It is the CPU time of the loop's thread; another thread publishes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from typing import Any

import redis.asyncio

from benchmarks import wire
from django_sockets import open_hub

TEXT = '"' + "x" * 198 + '"'
MESSAGES = 100_000
WARM_UP = 1000


class Counting:
    """A subscriber that sets an event after a number of messages."""

    def __init__(self) -> None:
        self.left = 0
        self.done = asyncio.Event()

    def expect(self, count: int) -> None:
        self.left = count
        self.done.clear()

    def on_delivery(self, delivery: Any) -> None:
        self.left -= 1
        if not self.left:
            self.done.set()

    def on_gap(self, channels: Any, reason: str) -> None:
        raise RuntimeError(f"gap: {reason}")


def publish(url: str, commands: bytes, count: int) -> None:
    """Send the commands, and read the replies."""
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(commands)
        while count:
            count -= connection.recv(1 << 16).count(b"\n")


def commands(message: wire.Message, count: int, room: str = "room") -> bytes:
    return b"".join(wire.command(b"PUBLISH", *message(room, TEXT)) for _ in range(count))


async def ours_us(url: str, messages: int = MESSAGES) -> float:
    """CPU microseconds for each message."""
    async with open_hub(url) as hub:
        counting = Counting()
        await hub.add(counting, ["room"])
        message = wire.ours()
        for count in (WARM_UP, messages):
            packed = commands(message, count)
            counting.expect(count)
            started = time.thread_time()
            publishing = asyncio.create_task(asyncio.to_thread(publish, url, packed, count))
            await counting.done.wait()
            spent = time.thread_time() - started
            await publishing
    return spent / messages * 1e6


async def redis_py_us(url: str, messages: int = MESSAGES) -> float:
    """CPU microseconds for each message."""
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("room")
        await pubsub.get_message(timeout=5)
        for count in (WARM_UP, messages):
            packed = commands(wire.limit(), count)
            started = time.thread_time()
            publishing = asyncio.create_task(asyncio.to_thread(publish, url, packed, count))
            left = count
            async for _ in pubsub.listen():
                left -= 1
                if not left:
                    break
            spent = time.thread_time() - started
            await publishing
    return spent / messages * 1e6


if __name__ == "__main__":
    measure = {"ours": ours_us, "redis_py": redis_py_us}[sys.argv[1]]
    print(json.dumps({"cpu_us_per_message": asyncio.run(measure(os.environ["BENCH_BROKER_URL"]))}))
