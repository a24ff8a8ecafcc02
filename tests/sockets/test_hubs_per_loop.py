"""Hubs belong to one event loop, in one thread and process. Nothing is mixed or left behind.

Each case runs in its own process, on asyncio's loop and on uvloop's, against its own server, and
counts only its own connections.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from asgiref.sync import async_to_sync

from django_sockets import CallError, Gap, Hub, Message, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.runtime import local_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.census import until
from django_sockets.testing.client import SocketClient
from django_sockets.testing.servers import CacheServer
from support.loop_thread import LoopThread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")

TIMES = 100
PATIENCE_SECONDS = 10.0


class Server:
    """Asks a server about its connections, without counting its own one."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._own = str(self._client.client_id())

    def connections(self) -> frozenset[str]:
        """The numbers of the connections that it has."""
        return frozenset(line["id"] for line in self._client.client_list()) - {self._own}

    def until_connections(self, count: int) -> frozenset[str]:
        """Wait for this number of connections: the server notices an end a moment later."""
        until(lambda: len(self.connections()) == count, PATIENCE_SECONDS, f"not {count} clients")
        return self.connections()


class Census(NamedTuple):
    """What this process holds."""

    descriptors: int
    threads: int
    loops: int
    hubs: int
    tasks: int

    def check(self, before: Census) -> None:
        """Nothing has been added; but a hub at work has a task more or less at any moment.

        Fewer is as good: a thread that `async_to_sync` made may still have been ending before.
        """
        for counted in ("descriptors", "threads", "loops", "hubs"):
            assert getattr(self, counted) <= getattr(before, counted), (self, before)
        assert self.tasks < before.tasks + 5, (self, before)


def census() -> Census:
    gc.collect()
    things = gc.get_objects()
    return Census(
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        sum(isinstance(thing, asyncio.AbstractEventLoop) for thing in things),
        sum(isinstance(thing, Hub) for thing in things),
        sum(isinstance(thing, asyncio.Task) and not thing.done() for thing in things),
    )


def member(url: str, *rooms: str) -> Any:
    """An application whose sockets are in these rooms."""

    class Member(BaseSocketServer):
        config = url

        async def connect(self) -> None:
            await self.async_subscribe(list(rooms))
            await self.async_send("joined")

    return Member.as_asgi


async def join(url: str, *rooms: str) -> SocketClient:
    client = SocketClient(member(url, *rooms))
    await client.connect()
    assert await client.receive_json() == "joined"
    return client


async def hears_itself(hub: Hub, room: str) -> None:
    async with hub.subscribe(room) as events:
        await hub.publish(room, b"heard")
        event = await asyncio.wait_for(anext(events), PATIENCE_SECONDS)
        assert event == Message(channel=room, payload=b"heard")


# The cases


def two_loops_in_two_threads(url: str) -> None:
    """The sockets of each loop get all their messages and no others, over their own connections."""
    server, broadcaster = Server(url), Broadcaster(url)

    async def talk(name: str) -> None:
        for number in range(TIMES):
            await broadcaster.async_broadcast(name, [name, "alone", number])
            await broadcaster.async_broadcast("both", [name, "both", number])

    async def hear(client: SocketClient, count: int) -> list[Any]:
        return [await client.receive_json() for _ in range(count)]

    async def hubs() -> list[Hub]:
        return [hub for hub in local_hubs() if hub.loop is asyncio.get_running_loop()]

    with LoopThread() as right:
        there = right.run(join(url, "right", "both"))
        with LoopThread() as left:
            here = left.run(join(url, "left", "both"))
            talks = [left.start(talk("left")), right.start(talk("right"))]
            for talking in talks:
                talking.result(PATIENCE_SECONDS)
            for name, loop, client in (("left", left, here), ("right", right, there)):
                heard = loop.run(hear(client, 3 * TIMES))
                for stream in ([name, "alone"], ["left", "both"], ["right", "both"]):
                    numbers = [said[2] for said in heard if said[:2] == stream]
                    assert numbers == list(range(TIMES)), f"{name} of {stream}: {numbers}"
            assert len({id(hub) for loop in (left, right) for hub in loop.run(hubs())}) == 2
            everybody = server.connections()
            assert len(everybody) == 4, "not one to publish and one to subscribe for each loop"
        rest = server.until_connections(2)
        assert rest < everybody, "the end of one loop cost the other one its connections"
        right.run(talk("right"))
        assert len(right.run(hear(there, 2 * TIMES))) == 2 * TIMES
        right.run(there.close())
    server.until_connections(0)
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]


def one_loop_after_another(url: str) -> None:
    """A loop that is closed with everything open leaves nothing, and the next one works."""
    server = Server(url)
    kept = Broadcaster(url)

    async def use(number: int) -> None:
        hub = open_hub(url)
        await hub.add(hub.new_queue(), ["room"])
        await hears_itself(hub, "room")
        client = await join(url, "room")
        await kept.async_broadcast("room", number)
        assert await client.receive_json() == number
        own = Broadcaster(url)
        await own.async_subscribe("room")
        await kept.async_broadcast("room", number)
        assert await own.async_receive_broadcast() == ("room", number)

    after = []
    for number in range(6):
        asyncio.run(use(number))
        server.until_connections(0)
        after.append(census())
    assert after[1:] == after[1:2] * 5, after


def a_broadcaster_on_one_loop_after_another(url: str) -> None:
    """One that a module keeps publishes on, and can subscribe again on the next loop."""
    server, kept = Server(url), Broadcaster(url)

    async def use(number: int) -> None:
        with pytest.raises(CallError, match="subscribe to a channel"):
            await kept.async_receive_broadcast()
        await kept.async_subscribe("room")
        await kept.async_broadcast("room", number)
        assert await kept.async_receive_broadcast() == ("room", number)

    for number in range(3):
        asyncio.run(use(number))
    server.until_connections(0)
    kept.broadcast("room", "from no loop")
    server.until_connections(1)
    asyncio.run(kept.aclose())


def a_hundred_calls_by_async_to_sync(url: str) -> None:
    """Sync code that calls coroutines shares one connection; what it opens itself it closes."""
    server, broadcaster = Server(url), Broadcaster(url)
    heard: list[Any] = []
    everything = threading.Event()

    async def note(event: Any) -> None:
        heard.append(event.get("text"))
        if len(heard) == TIMES:
            everything.set()

    listener = BaseSocketServer({}, asyncio.Queue().get, note, url)
    listener.start_listeners()
    listener.subscribe("room")

    async def with_a_hub_of_its_own(number: int) -> None:
        async with open_hub(url) as hub:
            await hears_itself(hub, f"own:{number}")

    def one(number: int) -> None:
        async_to_sync(broadcaster.async_broadcast)("room", number)
        if number % 4 == 0:
            async_to_sync(with_a_hub_of_its_own)(number)

    one(0)
    before, connections = census(), server.until_connections(2)
    for number in range(1, TIMES):
        one(number)
        if number % 20 == 0:
            census().check(before)
    assert everything.wait(PATIENCE_SECONDS)
    assert heard == [str(number) for number in range(TIMES)]
    assert server.until_connections(2) == connections
    census().check(before)


def forked_child(url: str, fork: Callable[[Callable[[], None]], int]) -> None:
    """A child has its own connections, and those of its parent work as before."""
    server, broadcaster = Server(url), Broadcaster(url)
    broadcaster.broadcast("nobody", "the background loop is there")

    async def open_up() -> tuple[Hub, Any]:
        hub = open_hub(url)
        events = hub.new_queue()
        await hub.add(events, ["room"])
        await hears_itself(hub, "parent")
        return hub, events

    async def hear(events: Any) -> Any:
        event = await asyncio.wait_for(events.next(), PATIENCE_SECONDS)
        assert not isinstance(event, Gap), event
        return event.data()

    def child() -> None:
        server = Server(url)
        inherited = server.connections()

        async def use() -> None:
            async with open_hub(url) as hub:
                await hears_itself(hub, "child")
                # The inherited connection of the parent's own questions is one of them.
                assert len(server.connections() - inherited) == 2
                await hub.publish("room", b'"of the child"', is_text=True)

        asyncio.run(use())
        gc.collect()
        broadcaster.broadcast("room", "without a loop")

    with LoopThread() as loop:
        hub, events = loop.run(open_up())
        before, connections = census(), server.connections()
        assert fork(child) == 0
        assert loop.run(hear(events)) == "of the child"
        assert loop.run(hear(events)) == "without a loop"
        broadcaster.broadcast("room", "of the parent")
        assert loop.run(hear(events)) == "of the parent"
        loop.run(hears_itself(hub, "parent"))
        assert server.until_connections(3) == connections
        census().check(before)
        loop.run(hub.aclose())


def os_fork(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def multiprocessing_fork(child: Callable[[], None]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    exitcode = process.exitcode
    process.close()
    return exitcode


CASES: dict[str, Callable[[str], None]] = {
    "two loops in two threads": two_loops_in_two_threads,
    "one loop after another": one_loop_after_another,
    "a broadcaster on one loop after another": a_broadcaster_on_one_loop_after_another,
    "a hundred calls by async_to_sync": a_hundred_calls_by_async_to_sync,
    "os.fork": lambda url: forked_child(url, os_fork),
    "multiprocessing": lambda url: forked_child(url, multiprocessing_fork),
}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("case", CASES)
def test_hubs_are_kept_apart_and_nothing_is_left(
    case: str, loop: str, fresh_valkey_server: CacheServer
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    ended = subprocess.run(
        [sys.executable, "-m", "sockets.test_hubs_per_loop", case, loop, fresh_valkey_server.url],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    # Nor is anything said of tasks that were pending, or of loops that are closed.
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr


if __name__ == "__main__":
    _case, _loop, _url = sys.argv[1:]
    # 3.12 warns of any fork in a process with threads.
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    if _loop == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    CASES[_case](_url)
