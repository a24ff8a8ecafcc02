"""Tasks that only call `receive` of a channel layer, in equal numbers in each group.

Arguments: the numbers of tasks and groups, and of messages for each task before the measurement and
in it. It prints "ready", "warm", and at the end its figures as JSON.
"""

import asyncio
import json
import sys
import time

import channels_layer  # noqa: F401 (configures Django)
import uvloop
from channels.layers import get_channel_layer

TASKS, GROUPS, WARM_UP, MESSAGES = map(int, sys.argv[1:])


async def main():
    layer = get_channel_layer()
    left = TASKS * WARM_UP
    reached = asyncio.Event()

    async def receive(channel):
        nonlocal left
        while True:
            await layer.receive(channel)
            left -= 1
            if not left:
                reached.set()

    tasks = []
    for number in range(TASKS):
        channel = await layer.new_channel()
        await layer.group_add(f"room-{number % GROUPS}", channel)
        tasks.append(asyncio.create_task(receive(channel)))
    print("ready", flush=True)
    await reached.wait()
    reached.clear()
    left = total = TASKS * MESSAGES
    started, cpu = time.perf_counter(), time.process_time()
    print("warm", flush=True)
    await reached.wait()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    figures = {"deliveries_per_second": total / seconds, "cpu_us_per_delivery": cpu / total * 1e6}
    print(json.dumps(figures), flush=True)


uvloop.run(main())
