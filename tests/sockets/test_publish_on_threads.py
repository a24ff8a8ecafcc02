"""A plain broadcast on a thread without an event loop writes to the server on that thread.

Each test first makes sure that the connection is lent to threads; `lend` fails if it never is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_sockets import CallError, Gap, Message, PublishError, open_hub
from django_sockets.backends.client.thread_socket import ThreadSocket
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.delivery.events import Events
from django_sockets.hub import Hub
from django_sockets.runtime.background import background_loop
from django_sockets.runtime.shared_hubs import existing_hub
from django_sockets.testing.capture import capture_broadcasts
from django_sockets.testing.census import until
from django_sockets.testing.servers import CacheServer, ValkeyServer
from support.loop_thread import blocked_loop

WAIT_SECONDS = 20.0


def hub_of(url: str) -> Hub:
    hub = existing_hub(background_loop(), load_config(url))
    assert hub is not None
    return hub


def lend(url: str, channel: str = "warm-up") -> Hub:
    """Broadcast until the connection is lent to threads; returns the hub of the background loop."""
    broadcaster = Broadcaster(url)
    for _ in range(3):  # Connect; ask for the loan; use it.
        with contextlib.suppress(PublishError):
            broadcaster.broadcast(channel, 0)
    hub = hub_of(url)
    assert hub.threads is not None
    assert hub.threads.lent
    return hub


def connections_ever(server: CacheServer) -> int:
    """Each call of this adds one."""
    match = re.search(r"total_connections_received:(\d+)", server.execute("INFO", "stats"))
    assert match is not None
    return int(match[1])


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.wait_for(asyncio.to_thread(call, *arguments), WAIT_SECONDS)


@contextlib.asynccontextmanager
async def hearing(url: str, channel: str) -> AsyncIterator[Callable[[int], Any]]:
    """Yields a function that waits for so many messages; a gap fails the test."""
    async with open_hub(url) as hub, hub.subscribe(channel) as events:

        async def hear(count: int) -> list[Any]:
            heard = []
            while len(heard) < count:
                event = await asyncio.wait_for(anext(events), WAIT_SECONDS)
                assert isinstance(event, Message), event
                heard.append(json.loads(event.payload))
            return heard

        yield hear


async def test_a_broadcast_does_not_wait_for_the_event_loop(valkey_server: CacheServer) -> None:
    url = valkey_server.url

    def work() -> None:
        lend(url)
        with blocked_loop():
            Broadcaster(url).broadcast("direct", 1)
            Broadcaster(url).broadcast_many(["direct", "elsewhere"], 2)

    async with hearing(url, "direct") as hear:
        await in_thread(work)
        assert await hear(2) == [1, 2]


async def test_threads_and_loops_publish_in_order_on_one_connection(
    fresh_valkey_server: CacheServer,
) -> None:
    """Every message arrives once, those of one caller in order, and no gap is signalled."""
    server = fresh_valkey_server
    url, count, threads = server.url, 250, 12
    broadcaster = Broadcaster(url)

    def plain(name: int) -> None:
        for number in range(count):
            broadcaster.broadcast("room", [name, number])

    async def one_loop() -> None:
        for number in range(count):
            await broadcaster.async_broadcast("room", ["loop", number])

    def many_loops() -> None:
        for number in range(count):
            asyncio.run(broadcaster.async_broadcast("room", ["short", number]))

    async with hearing(url, "room") as hear:
        await in_thread(lend, url)
        before = connections_ever(server)
        calls = [in_thread(plain, name) for name in range(threads)]
        calls += [in_thread(asyncio.run, one_loop()), in_thread(many_loops)]
        working = asyncio.gather(*calls)
        heard = await hear(count * (threads + 2))
        await working
    for name in [*range(threads), "loop", "short"]:
        assert [number for author, number in heard if author == name] == list(range(count))
    # The second connection is the one of this question.
    assert connections_ever(server) - before <= 2


async def test_faults_fail_calls_but_change_no_order(fresh_valkey_server: CacheServer) -> None:
    """Connections end at any moment; each call ends soon, and nothing is repeated or reordered."""
    server = fresh_valkey_server
    broadcaster = Broadcaster(server.url)
    heard: dict[int, list[int]] = {name: [] for name in range(4)}
    slowest = []
    stopping = threading.Event()

    def publish(name: int) -> None:
        number = 0
        while not stopping.is_set():
            started = time.monotonic()
            with contextlib.suppress(PublishError):
                if name:
                    broadcaster.broadcast("room", [name, number])
                else:
                    asyncio.run(broadcaster.async_broadcast("room", [name, number]))
            slowest.append(time.monotonic() - started)
            number += 1

    def break_it() -> None:
        for _ in range(30):
            server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(random.uniform(0, 0.1))  # At any moment, not at a chosen one.
        stopping.set()

    async def read(events: Events) -> None:
        async for event in events:
            if isinstance(event, Message):
                name, number = json.loads(event.payload)
                if name == "end":
                    return
                heard[name].append(number)

    async with open_hub(server.url) as hub, hub.subscribe("room") as events:
        reading = asyncio.ensure_future(read(events))
        working = [asyncio.ensure_future(in_thread(publish, name)) for name in heard]
        await in_thread(break_it)
        await asyncio.gather(*working)
        await in_thread(lend, server.url, "other")
        await hub.publish("room", b'["end", 0]')
        await asyncio.wait_for(reading, WAIT_SECONDS)
    for name, numbers in heard.items():
        assert len(numbers) > 10, name
        assert numbers == sorted(set(numbers)), name
    assert max(slowest) < WAIT_SECONDS / 4


async def test_a_call_scheduled_on_a_loop_comes_before_later_calls(
    valkey_server: CacheServer,
) -> None:
    url = valkey_server.url

    async def scheduled(number: int) -> None:
        Broadcaster(url).broadcast("later", number)

    def work() -> None:
        for number in range(0, 200, 2):
            asyncio.run(scheduled(number))
            Broadcaster(url).broadcast("later", number + 1)

    async with hearing(url, "later") as hear:
        await in_thread(lend, url)
        working = asyncio.ensure_future(in_thread(work))
        assert await hear(200) == list(range(200))
        await working


@pytest.mark.parametrize(
    ("server", "lent"), [("redis_unix_server", True), ("redis_tls_server", False), (None, False)]
)
async def test_each_broker_takes_broadcasts_of_threads(
    server: str | None, lent: bool, request: pytest.FixtureRequest
) -> None:
    """Where a thread cannot use the connection, the event loop publishes for it."""
    config: Any = "fakeredis://threads"
    if server is not None:
        started: CacheServer = request.getfixturevalue(server)
        config = started.url

    def work() -> bool:
        for number in range(5):
            Broadcaster(config).broadcast("room", number)
        hub = existing_hub(background_loop(), load_config(config))
        return hub is not None and hub.threads is not None and hub.threads.lent

    async with hearing(config, "room") as hear:
        assert await in_thread(work) == lent
        assert await hear(5) == list(range(5))


def test_the_error_of_the_server_reaches_the_caller_and_is_counted() -> None:
    with ValkeyServer(without=["PUBLISH"]) as server:
        hub = lend(server.url)
        before = hub.stats()["publish_errors"]
        with pytest.raises(PublishError, match="refused") as caught:
            Broadcaster(server.url).broadcast(["one", "two"], 1)
        assert caught.value.failed == ("one", "two")
        assert caught.value.unknown == ()
        assert hub.stats()["publish_errors"] == before + 1
        assert hub.threads is not None
        assert hub.threads.lent


def test_a_connection_that_ended_meanwhile_is_replaced_without_an_error(
    fresh_valkey_server: CacheServer,
) -> None:
    server = fresh_valkey_server
    hub = lend(server.url)
    for _ in range(3):
        server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        Broadcaster(server.url).broadcast("room", 1)
        lend(server.url)
    server.restart()
    Broadcaster(server.url).broadcast("room", 1)
    assert hub.stats()["publish_errors"] == 0


def test_no_answer_in_time_is_an_unknown_outcome_for_each_thread(
    fresh_valkey_server: CacheServer,
) -> None:
    server = fresh_valkey_server
    url = f"{server.url}?publish_timeout_seconds=0.5"
    lend(url)
    server.pause()
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(Broadcaster(url).broadcast, f"room-{n}", 1) for n in range(6)]
        errors = [call.exception(WAIT_SECONDS) for call in calls]
        server.resume()
    unknown, failed = [], []
    for error in errors:
        assert isinstance(error, PublishError), error
        unknown += error.unknown
        failed += error.failed
    assert unknown
    assert sorted(unknown + failed) == [f"room-{n}" for n in range(6)]
    Broadcaster(url).broadcast("room", 1)


async def test_a_call_that_gave_up_leaves_the_connection_usable(
    fresh_valkey_server: CacheServer,
) -> None:
    """Its reply comes later; no other call gets it, and other callers lose nothing."""
    server = fresh_valkey_server
    settings = {"url": server.url, "sync_call_timeout_seconds": 0.3}
    patient, hasty, config = Broadcaster(server.url), Broadcaster(settings), load_config(settings)

    def give_up() -> None:
        for _ in range(3):
            hasty.broadcast("room", "warm-up")
        hub = existing_hub(background_loop(), config)
        assert hub is not None
        assert hub.threads is not None
        assert hub.threads.lent
        publishers.append(_publisher_ids(server))
        server.pause()
        started = time.monotonic()
        with pytest.raises(CallError, match=r"0\.3 s"):
            hasty.broadcast("room", "late")
        assert time.monotonic() - started < WAIT_SECONDS / 4
        server.resume()
        with pytest.raises(PublishError, match="refused"):
            _publish_refused(server, hasty)
        hasty.broadcast("room", "next")
        publishers.append(_publisher_ids(server))

    publishers: list[set[str]] = []
    async with hearing(server.url, "room") as hear:
        await in_thread(give_up)
        await in_thread(patient.broadcast, "room", "last")
        heard = await hear(6)
    assert heard == ["warm-up"] * 3 + ["late", "next", "last"]
    assert publishers[0] <= publishers[1]


def _publisher_ids(server: CacheServer) -> set[str]:
    lines = server.execute("CLIENT", "LIST").splitlines()
    fields = [dict(field.split("=", 1) for field in line.split()) for line in lines]
    return {client["id"] for client in fields if client["cmd"] == "publish"}


def _publish_refused(server: CacheServer, broadcaster: Broadcaster) -> None:
    server.execute("ACL", "SETUSER", "default", "resetchannels", "&*:{room}", "&*probe*")
    try:
        broadcaster.broadcast("forbidden", 1)
    finally:
        server.execute("ACL", "SETUSER", "default", "allchannels")


async def test_an_async_broadcast_comes_after_the_call_that_waits(
    fresh_valkey_server: CacheServer,
) -> None:
    server = fresh_valkey_server
    url = server.url
    broadcaster = Broadcaster(url)

    async with hearing(url, "room") as hear:
        hub = await in_thread(lend, url)
        before = hub.stats()["published"]
        server.pause()
        waiting = asyncio.ensure_future(in_thread(broadcaster.broadcast, "room", "plain"))
        await in_thread(
            until, lambda: hub.stats()["published"] > before, WAIT_SECONDS, "nothing was written"
        )
        later = asyncio.ensure_future(
            in_thread(asyncio.run, broadcaster.async_broadcast("room", "async"))
        )
        await in_thread(
            until, lambda: hub.stats()["published"] > before + 1, WAIT_SECONDS, "nothing queued"
        )
        server.resume()
        await asyncio.gather(waiting, later)
        assert await hear(2) == ["plain", "async"]
        await in_thread(lend, url)


def test_an_interrupted_call_harms_no_other_call(
    fresh_valkey_server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_valkey_server.url
    lend(url)
    receive = ThreadSocket.receive

    def interrupted(self: ThreadSocket, deadline: float) -> list[Any]:
        monkeypatch.setattr(ThreadSocket, "receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadSocket, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Broadcaster(url).broadcast("room", 1)
    for number in range(10):
        Broadcaster(url).broadcast("room", number)
    lend(url)


def test_a_capture_takes_broadcasts_of_threads_too(valkey_server: CacheServer) -> None:
    hub = lend(valkey_server.url)
    before = hub.stats()["published"]
    with capture_broadcasts(deliver=False) as captured:
        Broadcaster(valkey_server.url).broadcast("room", 1)
    assert captured == [("room", 1)]
    assert hub.stats()["published"] == before


def test_a_method_of_a_subclass_is_called(valkey_server: CacheServer) -> None:
    seen = []

    class Own(Broadcaster):
        async def async_broadcast(self, channel: Any, data: Any) -> None:
            seen.append(channel)
            await super().async_broadcast(channel, data)

    lend(valkey_server.url)
    Own(valkey_server.url).broadcast("one", 1)
    Own(valkey_server.url).broadcast_many(["two"], 1)
    assert seen == ["one", ["two"]]


def run_script(script: str, url: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), url],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


async def test_a_signal_handler_may_broadcast_inside_a_broadcast(
    valkey_server: CacheServer,
) -> None:
    """The handler cannot wait: the call that it interrupts would have to end first."""
    script = """
    import random, signal, sys, time
    from django_sockets.broadcaster import Broadcaster

    broadcaster = Broadcaster(sys.argv[1])
    handled = 0
    busy = False

    def handler(*_):
        global busy, handled
        if busy:  # On a slow machine, a second signal may interrupt the handler of the first.
            return
        busy = True
        broadcaster.broadcast("signals", handled)
        handled += 1
        busy = False

    signal.signal(signal.SIGALRM, handler)
    broadcaster.broadcast("others", 0)  # The event loop starts before the first signal.
    slowest = 0
    while handled < 200:
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.0003))
        broadcaster.broadcast("others", 0)
        slowest = max(slowest, time.monotonic() - began)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert slowest < 5, slowest
    print(handled)
    """
    async with hearing(valkey_server.url, "signals") as hear:
        handled = int(await in_thread(run_script, script, valkey_server.url))
        assert await hear(handled) == list(range(handled))


def test_a_forked_child_and_its_parent_use_their_own_connections(
    fresh_valkey_server: CacheServer,
) -> None:
    script = """
    import os, sys, warnings
    from django_sockets.broadcaster import Broadcaster

    warnings.simplefilter("ignore")  # 3.12 warns of any fork while a thread runs.
    broadcaster = Broadcaster(sys.argv[1])
    for number in range(5):
        broadcaster.broadcast("room", number)
    child = os.fork()
    for number in range(50):
        broadcaster.broadcast("room", number)
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for number in range(50):
        broadcaster.broadcast("room", number)
    """
    server = fresh_valkey_server
    before = connections_ever(server)
    run_script(script, server.url)
    after = connections_ever(server)
    assert after - before <= 3


async def test_a_gap_is_signalled_for_a_broadcast_without_an_answer(
    fresh_valkey_server: CacheServer,
) -> None:
    """Its counter is used, so that subscribers detect whether it is missing."""
    server = fresh_valkey_server
    url = f"{server.url}?publish_timeout_seconds=0.3"
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        await in_thread(lend, url, "room")

        def lose() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ThreadSocket, "send", lambda self, data: len(data))
                with pytest.raises(PublishError) as caught:
                    Broadcaster(url).broadcast("room", "lost")
            assert caught.value.unknown == ("room",)
            Broadcaster(url).broadcast("room", "kept")

        await in_thread(lose)
        heard: list[Any] = []
        while not heard or heard[-1] != "kept":
            event = await asyncio.wait_for(anext(events), WAIT_SECONDS)
            heard.append("gap" if isinstance(event, Gap) else json.loads(event.payload))
        assert heard[-2:] == ["gap", "kept"]
