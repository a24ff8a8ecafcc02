"""`python -m benchmarks.presence_cost` prints what a channel with many members costs.

It runs a real Valkey and three hubs in one process: one has the members, and two only watch. Counts
are those of the server (`INFO commandstats`) and do not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from asyncio import to_thread
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from django_sockets import Hub, open_hub
from django_sockets.delivery.events import Events, Presence
from django_sockets.testing.servers import CacheServer, ValkeyServer

__all__ = ["Costs", "Staying", "measure", "measure_staying"]

ROOM = "room:1"
LEASE_SECONDS = 3
AT_ONCE = 100
"""Members that join at the same time; each of them is followed by the next one."""
RENEWALS = 3


class Costs(NamedTuple):
    """The costs of a channel with many members.

    Attributes:
        joins_per_second: of wall time, until the member is on the server.
        joins_per_cpu_second: of the time of this process, which also runs the other hubs.
        join_commands: command -> calls, for all members.
        list_ms: until a newcomer, a process of its own, has the list.
        list_commands: command -> calls, for the list of the newcomer.
        another_ms: until one more subscriber of the same process has the list.
        another_commands: command -> calls, for the list of that one.
        change_commands: command -> calls, for one change.
        change_messages: messages that each watcher was told for it.
    """

    joins_per_second: float
    joins_per_cpu_second: float
    join_commands: Counter[str]
    list_ms: float
    list_commands: Counter[str]
    another_ms: float
    another_commands: Counter[str]
    change_commands: Counter[str]
    change_messages: list[int]


class Staying(NamedTuple):
    """The costs of members that stay.

    Attributes:
        renewals: of all hubs.
        commands: command -> calls, in the same time.
    """

    renewals: int
    commands: Counter[str]


async def calls(server: CacheServer) -> Counter[str]:
    """Command -> calls so far, for the commands that presence sends."""
    stats = await to_thread(server.execute, "INFO", "commandstats")
    found = Counter(
        {name: int(number) for name, number in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}
    )
    scripts = Counter({"script": found["eval"] + found["evalsha"]})
    return scripts + Counter({name: found[name] for name in ("hgetall", "publish", "subscribe")})


async def heard(events: Events, key: str) -> int:
    """Read events until a member has joined. Returns how many there were."""
    number = 0
    async for event in events:
        if isinstance(event, Presence):
            number += 1
            if key in event.joined:
                break
    return number


async def join(hub: Hub, members: int) -> None:
    keys = iter(range(members))

    async def one_after_the_other() -> None:
        for key in keys:
            await hub.track(ROOM, f"user {key}", {"name": f"User {key}", "page": 1})

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


@asynccontextmanager
async def opened(server: CacheServer, lease_seconds: float) -> AsyncIterator[list[Hub]]:
    """Three hubs, each with a lease to renew."""
    # The probes of the subscriptions would be counted as well.
    url = f"{server.url}?presence_lease_seconds={lease_seconds}&probe_interval_seconds=600"
    async with AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(open_hub(url)) for _ in range(3)]
        for number, hub in enumerate(hubs):
            await hub.track("another", str(number))
        yield hubs


async def measure(server: CacheServer, members: int) -> Costs:
    """Measure a channel with members of one process."""
    async with opened(server, lease_seconds=600) as hubs, AsyncExitStack() as stack:

        async def watch(hub: Hub) -> Events:
            return await stack.enter_async_context(hub.subscribe(ROOM, presence=True))

        owner, watcher, newcomer = hubs
        watching = [await watch(owner), await watch(watcher)]

        before = await calls(server)
        began, cpu = time.perf_counter(), time.process_time()
        reading = [asyncio.create_task(heard(events, f"user {members - 1}")) for events in watching]
        await join(owner, members)
        seconds = time.perf_counter() - began
        await asyncio.gather(*reading)
        cpu = time.process_time() - cpu
        join_commands = await calls(server) - before

        lists: list[tuple[float, Counter[str]]] = []
        for _ in ("a newcomer", "one more on the same process"):
            before = await calls(server)
            began = time.perf_counter()
            watching.append(await watch(newcomer))
            taken = time.perf_counter() - began
            assert len(watching[-1].recoveries[ROOM].presence or ()) == members
            lists.append((taken * 1000, await calls(server) - before))

        before = await calls(server)
        await owner.track(ROOM, "one more")
        messages = list(await asyncio.gather(*(heard(one, "one more") for one in watching)))
        change_commands = await calls(server) - before
    return Costs(
        members / seconds,
        members / cpu,
        join_commands,
        *lists[0],
        *lists[1],
        change_commands,
        messages,
    )


async def measure_staying(server: CacheServer, members: int) -> Staying:
    """Measure some intervals in which nobody comes or goes."""
    async with opened(server, lease_seconds=LEASE_SECONDS) as hubs:
        await join(hubs[0], members)

        def renewals() -> int:
            return sum(hub.stats()["presence_renewals"] for hub in hubs)

        before, renewed = await calls(server), renewals()
        await asyncio.sleep(RENEWALS * LEASE_SECONDS / 3)
        return Staying(renewals() - renewed, await calls(server) - before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presence_cost", description=__doc__)
    parser.add_argument("--members", type=int, default=10_000, metavar="N")
    options = parser.parse_args()
    with ValkeyServer() as server:
        costs = asyncio.run(measure(server, options.members))._asdict()
    with ValkeyServer() as server:
        costs |= asyncio.run(measure_staying(server, options.members))._asdict()
    for name, value in costs.items():
        shown = f"{value:,.0f}" if isinstance(value, float) else value
        print(
            f"{name.replace('_', ' '):<22} {dict(value) if isinstance(value, Counter) else shown}"
        )


if __name__ == "__main__":
    main()
