"""`local_hubs()` shows all hubs of the process on any thread, for a metrics page."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_sockets import Hub, PresenceFull, local_hubs, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.closing import close_sockets
from django_sockets.hub.process import counters_of_process
from django_sockets.integration import broadcast_on_commit
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, override_broker

_numbers = itertools.count()


def hubs_of(url: str) -> list[Hub]:
    return [hub for hub in local_hubs() if str(hub.config.url) == url]


def published(url: str) -> int:
    return sum(hub.stats()["published"] for hub in hubs_of(url))


@pytest.fixture
def url() -> str:
    return f"memory://stats-{next(_numbers)}"


def plain_view(url: str) -> None:
    Broadcaster(url).broadcast("room", 1)


def view_under_asgi(url: str) -> None:
    async_to_sync(sync_to_async(plain_view))(url)


def short_loop(url: str) -> None:
    asyncio.run(Broadcaster(url).async_broadcast("room", 1))


def on_another_thread(url: str) -> None:
    thread = threading.Thread(target=plain_view, args=[url])
    thread.start()
    thread.join()


def orders(url: str) -> None:
    close_sockets(config=url, user=7)


def default_broker(url: str) -> None:
    with override_broker(url):
        Broadcaster().broadcast("room", 1)


WAYS: list[Callable[[str], None]] = [
    plain_view, view_under_asgi, short_loop, on_another_thread, orders, default_broker,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_plain_code_publishes_is_counted(way: Callable[[str], None], url: str) -> None:
    for count in (1, 2):
        way(url)
        assert published(url) == count


def test_a_broadcast_after_a_commit_is_counted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.db.transaction.on_commit", lambda call, *_, **__: call())
    with override_broker(url):
        broadcast_on_commit("room", 1)
    assert published(url) == 1


class Room(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")


def inside(work: Coroutine[Any, Any, list[Hub]]) -> list[Hub]:
    return asyncio.run(work)


async def test_every_thread_sees_sockets_and_plain_publishers_alike(url: str) -> None:
    app = type("Here", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    async with SocketClient(app) as client:
        assert await client.receive_json() == "ready"
        await asyncio.to_thread(plain_view, url)
        assert await client.receive_json() == 1

        async def asked() -> list[Hub]:
            return hubs_of(url)

        here = hubs_of(url)
        assert here[0].loop is asyncio.get_running_loop()
        assert [hub.stats()["sockets"] for hub in here] == [1, 0]
        assert [hub.stats()["published"] for hub in here] == [0, 1]
        assert set(await asyncio.to_thread(hubs_of, url)) == set(here)
        assert set(await asyncio.to_thread(lambda: inside(asked()))) == set(here)


async def test_the_hubs_of_a_loop_that_has_ended_are_gone(url: str) -> None:
    async def serve() -> None:
        app = type("There", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]
        async with SocketClient(app) as client:
            assert await client.receive_json() == "ready"
            assert len(hubs_of(url)) == 1

    await asyncio.to_thread(lambda: asyncio.run(serve()))
    assert hubs_of(url) == []


async def test_a_hub_of_open_hub_is_listed_until_it_is_closed(url: str) -> None:
    async with open_hub(url) as hub:
        await hub.publish("room", b"1")
        assert await asyncio.to_thread(hubs_of, url) == [hub]
        assert await asyncio.to_thread(published, url) == 1
    assert hubs_of(url) == []


async def test_the_sums_of_the_process_do_not_fall_when_a_hub_ends(url: str) -> None:
    """A counter that falls looks like a restart to a monitoring system, which then counts twice."""

    def sum_now() -> int:
        return counters_of_process().get("memory", {}).get("published", 0)

    before = sum_now()
    for count in range(1, 4):
        async with open_hub(url) as hub:
            await hub.publish("room", b"1")
            assert sum_now() == before + count
        del hub
        gc.collect()
        assert sum_now() == before + count


def present(hub: Hub) -> tuple[int, int]:
    numbers = hub.stats()
    return numbers["presence_members"], numbers["presence_watched"]


async def test_a_hub_without_presence_has_no_members(url: str) -> None:
    async with open_hub(url) as hub, hub.subscribe("room"):
        assert present(hub) == (0, 0)


async def test_members_are_counted_from_their_track_to_their_end(url: str) -> None:
    """An operator compares the number of members with the number of sockets."""
    async with open_hub(url) as hub:
        await hub.track("room:1", "ann", entry="tab 1")
        await hub.track("room:1", "ann", entry="tab 2")
        await hub.track("room:2", "bob")
        assert await asyncio.to_thread(present, hub) == (3, 2)
        await hub.track("room:2", "bob", {"another": "info"})
        assert present(hub) == (3, 2)
        async with hub.subscribe("room:1", "room:3", presence=["room:1", "room:3"]):
            assert present(hub) == (3, 3)
            await hub.untrack("room:1", "tab 1")
            hub.release("tab 2")
            assert present(hub) == (2, 3)  # In its grace, an entry is still on the server.
            await hub.untrack("room:1", "tab 2")
            assert present(hub) == (1, 3)
        assert present(hub) == (1, 1)
        await hub.untrack("room:2", "bob")
        assert present(hub) == (0, 0)


async def test_members_of_other_processes_are_watched_and_not_held(url: str) -> None:
    async with (
        open_hub(url) as hub,
        open_hub(f"{url}?events_queue_size=7") as other,
        hub.subscribe("room", presence=True) as events,
    ):
        await other.track("room", "ann")
        async for event in events:
            assert getattr(event, "joined", None) == {"ann": [None]}
            break
        assert (present(hub), present(other)) == ((0, 1), (1, 1))


async def test_a_refused_member_is_not_counted(url: str) -> None:
    async with open_hub(f"{url}?presence_members=1") as hub:
        await hub.track("room", "ann")
        with pytest.raises(PresenceFull):
            await hub.track("room", "bob")
        assert present(hub) == (1, 1)


async def test_a_hub_that_is_closed_holds_no_members(url: str) -> None:
    async with open_hub(url) as hub:
        await hub.track("room", "ann")
    assert present(hub) == (0, 0)


async def test_members_can_be_read_on_a_thread_while_they_come_and_go(url: str) -> None:
    stop = threading.Event()
    seen: list[tuple[int, int]] = []

    async with open_hub(url) as hub:

        def read() -> None:
            while not stop.is_set():
                seen.append(present(hub))

        reading = asyncio.create_task(asyncio.to_thread(read))
        try:
            for number in range(300):
                await hub.track(f"room:{number}", "ann")
        finally:
            stop.set()
            await reading
        assert present(hub) == (300, 300)
    assert seen == sorted(seen)


async def test_stats_can_be_read_on_a_thread_while_sockets_come_and_go(url: str) -> None:
    """A scrape runs on a thread of its own, and must never see a dict change its size."""
    app = type("Busy", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.extend(hub.stats()["sockets"] for hub in hubs_of(url))

    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        for _ in range(30):
            async with SocketClient(app) as one, SocketClient(app) as other:
                for client in (one, other):
                    assert await client.receive_json() == "ready"
    finally:
        stop.set()
        await reading
    assert set(seen) <= {0, 1, 2}
    assert seen


IN_CHILD = """
import asyncio, os, warnings
from django_sockets import local_hubs, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.hub.process import counters_of_process
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork in a process with threads.

def numbers():
    counters = counters_of_process()
    return len(local_hubs()), sum(sums["published"] for sums in counters.values())

Broadcaster("memory://parent").broadcast("room", 1)

async def main():
    async with open_hub("memory://own") as hub:
        await hub.publish("room", b"1")
        child = os.fork()
        if not child:
            try:
                assert numbers() == (0, 0), numbers()
                # The child makes its own, on its own background loop.
                asyncio._set_running_loop(None)
                Broadcaster("memory://child").broadcast("room", 1)
                assert numbers() == (1, 1), numbers()
            except BaseException as exc:
                print(repr(exc), flush=True)
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert numbers() == (2, 2), numbers()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_shows_none_of_the_hubs_of_its_parent() -> None:
    """The processes of a pre-forking server would all report what their parent has counted."""
    ended = subprocess.run(
        [sys.executable, "-c", IN_CHILD],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
