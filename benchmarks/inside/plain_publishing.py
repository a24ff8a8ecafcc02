"""Plain publishes per second of a process with threads: "ours", and "redis_py" as a reference."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable

import redis

from django_sockets.broadcaster import Broadcaster

DATA = {"text": "x" * 188}
CALLS = 3000


def ours(url: str, threads: int, calls: int = CALLS) -> float:
    """Calls of `Broadcaster.broadcast` per second."""
    broadcaster = Broadcaster(url)
    return _rate(lambda: broadcaster.broadcast("room", DATA), threads, calls)


def redis_py(url: str, threads: int, calls: int = CALLS) -> float:
    """Calls of redis-py's `publish` per second."""
    text = json.dumps(DATA)
    with redis.Redis.from_url(url) as client:
        return _rate(lambda: client.publish("room", text), threads, calls)


def _rate(call: Callable[[], object], threads: int, calls: int) -> float:
    begin = threading.Barrier(threads + 1)

    def work() -> None:
        for _ in range(10):
            call()
        begin.wait()
        for _ in range(calls // threads):
            call()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return calls // threads * threads / (time.perf_counter() - started)


if __name__ == "__main__":
    measure = {"ours": ours, "redis_py": redis_py}[sys.argv[1]]
    print(json.dumps({"per_second": measure(os.environ["BENCH_BROKER_URL"], int(sys.argv[2]))}))
