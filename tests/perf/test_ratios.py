"""A server that users would call slow fails here: ratios within one run, with wide margins.

`make bench` measures the figures themselves; see docs/performance.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from benchmarks.inside.delivery import Client
from benchmarks.inside.reading import Counting
from django_sockets import open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.runtime import close_shared_hubs
from django_sockets.testing.servers import CacheServer

pytestmark = pytest.mark.load

ROOT = Path(__file__).resolve().parents[2]
RUNS = 3


def alone(call: str, figure: str) -> float:
    """The result of a coroutine of `benchmarks.inside`, or a figure of it, in a separate process.

    The suite's own process holds so much that the collector and the caches decide.
    """
    module = call.partition(".")[0]
    imports = f"import asyncio\nfrom benchmarks.inside import {module}\n"
    code = f"{imports}print(asyncio.run({call}){figure})"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    return float(output)


def ratio(one: str, other: str, figure: str = "") -> float:
    """The ratio of two figures: the median of several runs, each of which measures both."""
    return statistics.median(alone(one, figure) / alone(other, figure) for _ in range(RUNS))


def test_a_delivery_costs_a_few_times_a_bare_call_of_send() -> None:
    """Measured: twice on CPython 3.11. A task for each delivery was 20 times."""
    assert ratio("delivery.delivery_us(500, 1000)", "delivery.reference_us(500, 1000)") < 9


def test_a_delivery_costs_no_more_in_a_crowd() -> None:
    """Measured: a tenth more, because of the processor's caches."""
    assert ratio("delivery.delivery_us(5000, 100)", "delivery.delivery_us(500, 1000)") < 3


def test_reading_costs_less_than_half_of_redis_py(valkey_server: CacheServer) -> None:
    """Measured: a quarter."""
    arguments = f"({valkey_server.url!r}, 20_000)"
    assert ratio(f"reading.ours_us{arguments}", f"reading.redis_py_us{arguments}") < 0.5


def test_a_kept_message_costs_a_few_times_a_plain_one_to_publish_and_little_more_to_read(
    valkey_server: CacheServer,
) -> None:
    """Measured: 0.4 to 0.5 of the plain rate, and a tenth more CPU time for the reader."""
    url = valkey_server.url
    calls = f"history.publishing({url!r}, 5), history.reading({url!r}, 5000, 5)"
    code = f"""
import asyncio, json
from benchmarks.inside import history
async def main():
    print(json.dumps([await call for call in ({calls})]))
asyncio.run(main())
"""
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    publishing, reading = json.loads(output)
    kept, plain = (publishing[f"{name}_publishes_per_second"] for name in ("kept", "plain"))
    assert kept / plain > 0.25
    kept, plain = (reading[f"{name}_cpu_us_per_message"] for name in ("kept", "plain"))
    assert kept / plain < 1.6


def test_a_thousand_broadcasts_at_once_are_faster_than_one_by_one(
    valkey_server: CacheServer,
) -> None:
    """Measured: over 3 times as fast as redis-py, which waits for each reply."""
    url, figure = repr(valkey_server.url), '["broadcasts_per_second"]'
    assert ratio(f"publishing.ours({url}, 5)", f"publishing.redis_py({url}, 2)", figure) > 1.2


def calls_per_second(call: Callable[[], object], threads: int, calls: int) -> float:
    """Of several threads together; the first calls of each thread do not count."""
    begin = threading.Barrier(threads + 1)

    def work() -> None:
        for _ in range(10):
            call()
        begin.wait()
        for _ in range(calls // threads):
            call()

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        begin.wait()
        started = time.perf_counter()
        for worker in working:
            worker.result()
        return calls / (time.perf_counter() - started)


@pytest.mark.parametrize("threads", [1, 16])
def test_a_plain_broadcast_costs_about_as_much_as_a_publish_of_redis_py(
    valkey_server: CacheServer, threads: int
) -> None:
    """Measured: 1.0 to 1.2 with one thread and 1.6 with 16. Through the event loop: 0.2 to 0.4."""
    broadcaster, data = Broadcaster(valkey_server.url), {"text": "x" * 188}
    with redis.Redis.from_url(valkey_server.url) as client:
        ratios = [  # In turns and in one process: other load falls on both.
            calls_per_second(lambda: broadcaster.broadcast("room", data), threads, 1008)
            / calls_per_second(lambda: client.publish("room", json.dumps(data)), threads, 1008)
            for _ in range(2 * RUNS + 1)
        ]
    assert statistics.median(ratios) > 0.6


def test_metrics_cost_little_in_a_fan_out() -> None:
    """Measured: 0 to 3 % more CPU time per delivery to 500 sockets."""
    pytest.importorskip("prometheus_client")
    assert alone('observing.ratio("metrics", 500, 40, 10)', "") < 1.3


def test_traces_cost_little_in_a_fan_out() -> None:
    """Measured: 4 to 5 % more CPU time, with one message in 100 sampled, to 500 sockets each."""
    pytest.importorskip("opentelemetry.sdk")
    assert alone('observing.ratio("traces", 500, 40, 10)', "") < 1.3


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
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))


def test_importing_it_costs_no_more_than_importing_redis_py_again() -> None:
    assert cpu_of("import django_sockets.sockets") < 2 * cpu_of("import redis.asyncio")


def test_a_handshake_calls_few_of_our_functions(valkey_server: CacheServer) -> None:
    """Measured: 137 calls on CPython 3.11, with the greeting. Unlike times, counts hardly vary."""
    pytest.importorskip("uvloop")
    counting = [sys.executable, "-m", "benchmarks.inside.handshake", "ours", "--count"]
    environment = {**os.environ, "BENCH_BROKER_URL": valkey_server.url}
    output = subprocess.check_output(counting, cwd=ROOT, env=environment, text=True)
    *_, ours, _ = output.splitlines()
    assert ours.endswith("all of our functions")
    assert 20 < float(ours.split()[1]) < 160
