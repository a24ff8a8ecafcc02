"""Publishes per second from plain threads: "ours" is `Broadcaster().broadcast`, "redis_py" the
`publish` of redis-py's own client.

Each call returns when the broker has replied.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable

import redis

from django_sockets.broadcaster import Broadcaster

DATA = {"text": "x" * 188}
WARM_UP = 500
CALLS = 2000
ROUNDS = 5
THREADS = 16

Publish = Callable[[], object]


def ours(url: str) -> Publish:
    """A broadcast of `DATA`."""
    broadcaster = Broadcaster(config=url)
    return lambda: broadcaster.broadcast("room", DATA)


def redis_py(url: str) -> Publish:
    """A publish of the same JSON; the threads share a client, which has a connection for each."""
    client = redis.Redis.from_url(url)
    return lambda: client.publish("room", json.dumps(DATA))


def measure(publish: Publish, threads: int, calls: int = CALLS) -> dict[str, float]:
    """Calls per second of this number of threads together, and the CPU time of a call."""
    ready = threading.Barrier(threads + 1)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(WARM_UP // threads):
                publish()
            ready.wait()
            for _ in range(calls // threads):
                publish()
        except BaseException as exc:
            failures.append(exc)
            ready.abort()

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):  # A thread has failed.
        ready.wait()
    started, cpu = time.perf_counter(), time.process_time()
    for thread in running:
        thread.join()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if failures:
        raise failures[0]
    done = calls // threads * threads
    of = f"of_{threads}_thread{'s' * (threads > 1)}"
    return {
        f"publishes_per_second_{of}": done / seconds,
        f"cpu_us_per_publish_{of}": cpu / done * 1e6,
    }


if __name__ == "__main__":
    publish = {"ours": ours, "redis_py": redis_py}[sys.argv[1]](os.environ["BENCH_BROKER_URL"])
    rounds = [{**measure(publish, 1), **measure(publish, THREADS)} for _ in range(ROUNDS)]
    print(json.dumps({name: statistics.median(r[name] for r in rounds) for name in rounds[0]}))
