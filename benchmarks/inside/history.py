"""The cost of a rule for the history, next to the same without one, in one process.

Publishing: messages per second of one hub with 1,000 calls at once, on a channel without and on one
with a rule. Reading: CPU time of the loop's thread for each message of a channel, while another
thread publishes. Rounds without and with a rule take turns; the figures are medians of the rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time

from benchmarks import wire
from benchmarks.inside.reading import TEXT, Counting, commands, publish
from django_sockets import Hub, open_hub
from django_sockets.history import Position

PLAIN, KEPT = "plain", "kept"
RULES = {KEPT: {"messages": 100, "seconds": 60}}
CALLS = 1000
ROUNDS = 10
MESSAGES = 10_000
READ_ROUNDS = 15
WARM_UP = 1000


def opened(url: str) -> Hub:
    """A hub with a rule for one of the two channels."""
    return open_hub({"url": url, "history": RULES})


async def publishing(url: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Messages per second on each channel."""
    payload = TEXT.encode()
    seconds: dict[str, list[float]] = {PLAIN: [], KEPT: []}
    async with opened(url) as hub:

        async def once(channel: str) -> float:
            started = time.perf_counter()
            calls = (hub.publish(channel, payload, is_text=True) for _ in range(CALLS))
            await asyncio.gather(*calls)
            return time.perf_counter() - started

        for channel in seconds:
            await once(channel)
        for _ in range(rounds):
            for channel in seconds:
                seconds[channel].append(await once(channel))
    return {
        f"{channel}_publishes_per_second": CALLS / statistics.median(spent)
        for channel, spent in seconds.items()
    }


async def reading(
    url: str, messages: int = MESSAGES, rounds: int = READ_ROUNDS
) -> dict[str, float]:
    """CPU microseconds for each message of each channel."""
    spent: dict[str, list[float]] = {PLAIN: [], KEPT: []}
    async with opened(url) as hub:
        counting = {channel: Counting() for channel in spent}
        for channel, one in counting.items():
            await hub.add(one, [channel])
        # Commands like these publish without keeping: only the reader is measured.
        newest = Position.parse(await hub.position(KEPT))
        made = {PLAIN: wire.ours(), KEPT: wire.ours_kept(newest)}
        for number in range(1 + rounds):
            count = messages if number else WARM_UP
            for channel, one in counting.items():
                packed = commands(made[channel], count, channel)
                one.expect(count)
                started = time.thread_time()
                publishing = asyncio.create_task(asyncio.to_thread(publish, url, packed, count))
                await one.done.wait()
                if number:
                    spent[channel].append(time.thread_time() - started)
                await publishing
    return {
        f"{channel}_cpu_us_per_message": statistics.median(seconds) / messages * 1e6
        for channel, seconds in spent.items()
    }


async def both(url: str) -> dict[str, float]:
    """All figures."""
    return {**await publishing(url), **await reading(url)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(both(os.environ["BENCH_BROKER_URL"]))))
