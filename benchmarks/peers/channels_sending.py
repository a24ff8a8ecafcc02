"""Calls `group_send` of a channel layer without consumers, and prints its figures as JSON."""

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import channels_layer  # noqa: F401 (configures Django)
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

MESSAGE = {"type": "chat.message", "text": "x" * 188}
SECONDS = 3.0
TASKS = 1000
THREADS = 16


def measured(rounds):
    """Run rounds for some seconds, after one that connects; each returns its number of calls."""
    rounds()
    calls = 0
    started, cpu = time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - started) < SECONDS:
        calls += rounds()
    cpu = time.process_time() - cpu
    return {"sends_per_second": calls / seconds, "cpu_us_per_send": cpu / calls * 1e6}


async def at_once(layer):
    calls = (layer.group_send("room", MESSAGE) for _ in range(TASKS))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return sum(outcome is None for outcome in outcomes)


def tasks():
    layer = get_channel_layer()
    loop = asyncio.new_event_loop()
    # The loop of a server receives, too.
    loop.run_until_complete(layer.new_channel())
    found = measured(lambda: loop.run_until_complete(at_once(layer)))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return found


def threads():
    layer = get_channel_layer()

    def view(_):
        async_to_sync(layer.group_send)("room", MESSAGE)
        return 1

    with ThreadPoolExecutor(THREADS) as pool:
        return measured(lambda: sum(pool.map(view, range(2 * THREADS))))


print(json.dumps({"tasks": tasks, "threads": threads}[sys.argv[1]]()))
