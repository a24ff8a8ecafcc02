"""CPU time of a delivery with metrics or traces, as a ratio to one without, inside one process.

Both are measured in turns, so that other load falls on both. `send` only counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.observability import Observer, collect_metrics, start_tracing, stop_tracing
from django_sockets.observer import add_observer, remove_observer
from django_sockets.runtime import close_shared_hubs, shared_hub

from .delivery import TEXT, Client, Socket

SAMPLED_OF = 100
TRACEPARENT = f"00-{1:032x}-{1:016x}-01"


async def ratio(
    observed: str = "metrics", sockets: int = 500, messages: int = 100, turns: int = 40
) -> float:
    """The median ratio of the CPU times.

    Args:
        observed: "metrics"; "traces", of which one message in a hundred is sampled; "unsampled" for
            traces of which none is; or "nothing" for an observer without methods.
        sockets: number of sockets on the channel.
        messages: number of messages of each batch.
        turns: number of pairs of measurements, each of about 20,000 deliveries.
    """
    clients = [Client() for _ in range(sockets)]
    tasks = [await client.connect() for client in clients]
    hub = shared_hub(load_config(Socket.config))
    publisher = Publisher()
    batches = max(1, 20_000 // (sockets * messages))

    def message(number: int, sampled_of: int) -> tuple[str, bytes]:
        traceparent = TRACEPARENT if sampled_of and number % sampled_of == 0 else None
        return "room", publisher.headers(["room"], True, traceparent=traceparent)[0] + TEXT

    async def spent_seconds(sampled_of: int = 0) -> float:
        prepared = [
            [message(batch * messages + number, sampled_of) for number in range(messages)]
            for batch in range(batches)
        ]
        started = time.process_time()
        for batch in prepared:
            await hub.deliver(batch)
        return time.process_time() - started

    nothing = Observer()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))

    async def spent_while_observed() -> float:
        if observed == "nothing":
            add_observer(nothing)
            spent = await spent_seconds()
            remove_observer(nothing)
            return spent
        if observed in ("traces", "unsampled"):
            start_tracing(tracer_provider=provider)
            spent = await spent_seconds(SAMPLED_OF if observed == "traces" else 0)
            stop_tracing()
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
    provider.shutdown()
    await asyncio.gather(*tasks)
    await close_shared_hubs()
    return statistics.median(ratios)


if __name__ == "__main__":
    observed, sockets, messages = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"ratio": asyncio.run(ratio(observed, sockets, messages))}))
