"""`python -m benchmarks.history_size` prints the memory that a real Valkey needs for a history.

It keeps messages by the rules of a URL and asks the server with MEMORY USAGE. The figures include
the key, the hash and the allocator's rounding, and do not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from django_sockets import open_hub
from django_sockets.testing.servers import CacheServer, ValkeyServer

MESSAGES = (1, 10, 100, 1000)
PAYLOAD_BYTES = (100, 250, 1000, 10_000)


async def size_of(server: CacheServer, messages: int, payload_bytes: int) -> int:
    """Bytes of one channel whose history is full.

    Args:
        messages: number of messages that are kept.
        payload_bytes: size of each.
    """
    channel = f"room:{messages}:{payload_bytes}"
    url = f"{server.url}?history_messages={messages}&history_seconds=600"
    async with open_hub(url) as hub:
        # More than are kept, as in use.
        for _ in range(messages + messages // 10 + 1):
            await hub.publish(channel, b"x" * payload_bytes)
    key = f"django_sockets:{{{channel}}}:h"
    return int(server.execute("MEMORY", "USAGE", key, "SAMPLES", "0"))


async def table(server: CacheServer, counts: Sequence[int], sizes: Sequence[int]) -> str:
    """The sizes as a table in Markdown."""
    lines = [
        f"| messages | {' | '.join(f'{size:,} bytes each' for size in sizes)} |",
        f"|---|{'---|' * len(sizes)}",
    ]
    for count in counts:
        found = [await size_of(server, count, size) for size in sizes]
        lines.append(f"| {count:,} | {' | '.join(f'{size / 1000:,.1f} kB' for size in found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history_size", description=__doc__)
    whole = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--messages", default=MESSAGES, help="kept messages", **whole)  # type: ignore[arg-type]
    parser.add_argument("--bytes", default=PAYLOAD_BYTES, help="size of each", **whole)  # type: ignore[arg-type]
    options = parser.parse_args()
    with ValkeyServer() as server:
        print(asyncio.run(table(server, options.messages, options.bytes)))


if __name__ == "__main__":
    main()
