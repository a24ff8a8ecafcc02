"""CPU time of a delivery with metrics, as a ratio to one without, inside one process.

Both are measured in turns, so that other load falls on both. `send` only counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

from prometheus_client import CollectorRegistry

from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.observability import Observer, collect_metrics
from django_sockets.observer import add_observer, remove_observer
from django_sockets.runtime import close_shared_hubs, shared_hub

from .delivery import TEXT, Client, Socket


async def ratio(
    observed: str = "metrics", sockets: int = 500, messages: int = 100, turns: int = 40
) -> float:
    """The median ratio of the CPU times.

    Args:
        observed: "metrics", or "nothing" for an observer without methods.
        sockets: number of sockets on the channel.
        messages: number of messages of each batch.
        turns: number of pairs of measurements, each of about 20,000 deliveries.
    """
    clients = [Client() for _ in range(sockets)]
    tasks = [await client.connect() for client in clients]
    hub = shared_hub(load_config(Socket.config))
    publisher = Publisher()
    batches = max(1, 20_000 // (sockets * messages))

    async def spent_seconds() -> float:
        prepared = [
            [("room", publisher.headers(["room"], True)[0] + TEXT) for _ in range(messages)]
            for _ in range(batches)
        ]
        started = time.process_time()
        for batch in prepared:
            await hub.deliver(batch)
        return time.process_time() - started

    nothing = Observer()

    async def spent_while_observed() -> float:
        if observed == "nothing":
            add_observer(nothing)
            spent = await spent_seconds()
            remove_observer(nothing)
            return spent
        collector = collect_metrics(CollectorRegistry())
        spent = await spent_seconds()
        collector.close()
        return spent

    await spent_seconds()
    ratios = []
    for turn in range(turns):
        if turn % 2:
            plain = await spent_seconds()
            ratios.append(await spent_while_observed() / plain)
        else:
            with_observer = await spent_while_observed()
            ratios.append(with_observer / await spent_seconds())
    for client in clients:
        client.leave()
    await asyncio.gather(*tasks)
    await close_shared_hubs()
    return statistics.median(ratios)


if __name__ == "__main__":
    observed, sockets, messages = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"ratio": asyncio.run(ratio(observed, sockets, messages))}))
