"""What users would notice as a slow server: ratios within one run, with wide margins.

The figures themselves are `make bench`'s business; see docs/performance.md.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import pytest

from benchmarks.inside.delivery import Client, delivery_us, reference_us
from benchmarks.inside.publishing import ours as at_once
from benchmarks.inside.publishing import redis_py as one_by_one
from benchmarks.inside.reading import Counting, ours_us, redis_py_us
from django_sockets import open_hub
from django_sockets.runtime import close_shared_hubs
from django_sockets.testing.servers import CacheServer

pytestmark = pytest.mark.load

MESSAGES = 20_000


def test_a_delivery_costs_a_few_times_a_bare_call_of_send() -> None:
    """Measured: 3 times on CPython 3.11. A task for each delivery was 20 times."""
    ratios = [asyncio.run(delivery_us()) / asyncio.run(reference_us()) for _ in range(5)]
    assert statistics.median(ratios) < 9


async def test_reading_costs_less_than_half_of_redis_py(valkey_server: CacheServer) -> None:
    url = valkey_server.url
    ratios = [await ours_us(url, MESSAGES) / await redis_py_us(url, MESSAGES) for _ in range(3)]
    assert statistics.median(ratios) < 0.5


async def test_a_thousand_sockets_and_broadcasts_share_a_few_connections(
    fresh_valkey_server: CacheServer,
) -> None:
    server = fresh_valkey_server
    async with open_hub(server.url) as hub:
        for number in range(1000):
            await hub.add(Counting(), [f"room-{number}"])
        await asyncio.gather(*(hub.publish(f"room-{number}", b"x") for number in range(1000)))
        clients = await asyncio.to_thread(server.execute, "CLIENT", "LIST")
        assert len(clients.splitlines()) <= 4 + 1


async def test_a_thousand_broadcasts_at_once_are_faster_than_one_by_one(
    valkey_server: CacheServer,
) -> None:
    """Measured: over 4 times as fast as redis-py, which waits for each reply."""
    ratios = [
        (await at_once(valkey_server.url, 2))["broadcasts_per_second"]
        / (await one_by_one(valkey_server.url, 1))["broadcasts_per_second"]
        for _ in range(5)
    ]
    assert statistics.median(ratios) > 2


def test_a_delivery_costs_no_more_in_a_crowd() -> None:
    """Measured: a few percent, which are the processor's caches."""
    ratios = [
        asyncio.run(delivery_us(4000, 20)) / asyncio.run(delivery_us(400, 200)) for _ in range(3)
    ]
    assert statistics.median(ratios) < 2.5


async def test_an_idle_socket_takes_a_few_kibibytes() -> None:
    """Measured: 8 KiB with the task and the queue that stand in for the server."""
    warm = Client()
    tasks = [await warm.connect()]
    clients = [Client() for _ in range(500)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tasks += [await client.connect() for client in clients]
        used = (tracemalloc.get_traced_memory()[0] - before) / len(clients)
    finally:
        tracemalloc.stop()
    for client in (warm, *clients):
        client.leave()
    await asyncio.gather(*tasks)
    await close_shared_hubs()
    assert used < 16 * 1024


def cpu_of(program: str) -> float:
    """CPU seconds of the best of several runs."""
    code = f"import time; start = time.process_time(); {program}; print(time.process_time()-start)"
    run: Callable[[], str] = lambda: subprocess.check_output([sys.executable, "-c", code])  # noqa: E731
    return min(float(run()) for _ in range(5))


def test_importing_it_costs_no_more_than_importing_redis_py_again() -> None:
    assert cpu_of("import django_sockets.sockets") < 2 * cpu_of("import redis.asyncio")
