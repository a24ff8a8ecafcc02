"""The layer on several event loops and threads: what each of them may do, and what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async

from django_sockets.errors import CallError, PublishError
from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.runtime import local_hubs
from django_sockets.testing.census import count_connections
from django_sockets.testing.ports import free_port
from support.channel_layers import MakeLayer, numbered, soon, take
from support.loop_thread import LoopThread, blocked_loop

URLS = ["memory", "valkey"]


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://loops"
    return str(request.getfixturevalue("valkey_server").url)


@contextlib.contextmanager
def bare_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop whose owner does not shut it down in an orderly way."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_a_short_call_leaves_nothing_behind(url: str) -> None:
    layer = ChannelLayer(url=url)

    async def send() -> None:
        await layer.send("TestChannel", {"type": "test.message", "text": "hello"})
        assert len(asyncio.all_tasks()) == 1

    async_to_sync(send)()
    asyncio.run(send())


def test_a_message_is_sent_by_another_loop_while_the_owner_does_not_run(url: str) -> None:
    layer = ChannelLayer(url=url)
    with bare_loop() as loop:
        run = loop.run_until_complete
        channel = run(layer.new_channel())
        for message in numbered(1, 2, 3):
            async_to_sync(layer.send, force_new_loop=True)(channel, message)
        assert run(take(layer, channel, 3)) == numbered(1, 2, 3)


def test_the_calls_of_sync_code_see_one_layer(url: str) -> None:
    layer = ChannelLayer(url=url)
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("group", channel)
    async_to_sync(layer.group_send)("group", {"type": "group"})
    assert async_to_sync(soon)(layer.receive(channel)) == {"type": "group"}
    async_to_sync(layer.send)(channel, {"type": "direct"})
    assert async_to_sync(soon)(layer.receive(channel)) == {"type": "direct"}
    async_to_sync(layer.send)("normal", {"type": "queued"})
    assert async_to_sync(soon)(layer.receive("normal")) == {"type": "queued"}
    async_to_sync(layer.group_discard)("group", channel)
    async_to_sync(layer.flush)()


async def test_a_channel_of_another_loop_is_used_from_this_one(url: str) -> None:
    layer = ChannelLayer(url=url)
    with LoopThread() as thread:
        channel = await asyncio.wrap_future(thread.start(layer.new_channel()))
        await layer.group_add("group", channel)
        await layer.group_send("group", {"type": "group"})
        assert await soon(layer.receive(channel)) == {"type": "group"}
        await layer.send(channel, {"type": "direct"})
        assert await asyncio.wrap_future(thread.start(soon(layer.receive(channel)))) == {
            "type": "direct"
        }
        await layer.group_discard("group", channel)
        await layer.group_send("group", {"type": "lost"})
        await layer.send(channel, {"type": "fence"})
        assert await soon(layer.receive(channel)) == {"type": "fence"}
    with pytest.raises(CallError, match="belongs to another process, or to an event loop"):
        await layer.receive(channel)


async def test_a_receive_across_loops_that_is_cancelled_loses_nothing() -> None:
    layer = ChannelLayer(url="memory://loops")
    with LoopThread() as thread:
        channel = await asyncio.wrap_future(thread.start(layer.new_channel()))
        got: list[int] = []

        async def send() -> None:
            for message in numbered(*range(60)):
                await layer.send(channel, message)
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        turns = 0
        while len(got) < 60:
            call = asyncio.create_task(layer.receive(channel))
            for _ in range(turns % 9):
                await asyncio.sleep(0)
            turns += 1
            if turns % 3:
                call.cancel()
            (result,) = await soon(asyncio.gather(call, return_exceptions=True))
            if isinstance(result, dict):
                got.append(result["n"])
        await sending
        assert sorted(got) == [*range(60)]


def test_async_to_sync_from_16_threads_shares_two_connections(valkey_server: Any) -> None:
    script = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django_sockets.integration.channel_layer import ChannelLayer

layer = ChannelLayer(hosts=[{valkey_server.url!r}])

def view(number):
    async_to_sync(layer.group_send)("group", {{"type": "test", "n": number}})

with ThreadPoolExecutor(16) as wsgi:
    for _ in wsgi.map(view, range(10_000)):
        pass
names = sorted(thread.name for thread in threading.enumerate() if "Pool" not in thread.name)
print(names, layer.stats()["group_sent"], flush=True)
input()
"""
    before = count_connections([valkey_server])
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "['MainThread', 'django_sockets loop'] 10000\n"
    assert 1 <= count_connections([valkey_server]) - before <= 2
    process.communicate("\n", timeout=10)
    assert process.returncode == 0


def test_200_short_loops_leave_no_task_thread_socket_or_subscription(valkey_server: Any) -> None:
    url = f"{valkey_server.url}?prefix=short_loops"
    layer = ChannelLayer(url=url)
    senders = ChannelLayer(url=url)

    async def receives(number: int) -> None:
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await layer.group_send("group", {"type": "test", "n": number})
        assert (await soon(layer.receive(channel)))["n"] == number

    async def sends(number: int) -> None:
        await senders.group_send("group", {"type": "test", "n": number})

    asyncio.run(receives(0))
    asyncio.run(sends(0))  # The background loop connects.
    threads = set(threading.enumerate())
    connections = count_connections([valkey_server])
    subscribed = len(valkey_server.execute("PUBSUB", "CHANNELS", "short_loops:*"))
    for number in range(100):
        asyncio.run(receives(number))
        asyncio.run(sends(number))
    assert set(threading.enumerate()) == threads
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = count_connections([valkey_server])
        names = len(valkey_server.execute("PUBSUB", "CHANNELS", "short_loops:*"))
        if left <= connections and names <= subscribed:
            break
    assert left <= connections
    assert names <= subscribed
    assert layer.stats()["loops"] == 0


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_a_loop_that_ends_closes_its_hub(url: str, runner: str) -> None:
    module = pytest.importorskip(runner)
    layer = ChannelLayer(url=url)

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        await layer.group_add("group", await layer.new_channel())
        waiting = asyncio.create_task(layer.receive("normal"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        return [hub for hub in local_hubs() if hub.loop is loop]

    (hub,) = module.run(main())
    assert hub.closed


def test_a_layer_that_ends_with_its_loop_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the last reference and the end of the loop come at the same moment."""

    async def main() -> None:
        layer = ChannelLayer(url="memory://loops")
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        tasks = [asyncio.create_task(layer.receive(channel)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    for module in (asyncio, pytest.importorskip("uvloop")):
        module.run(main())
        gc.collect()
    assert caplog.records == []


def test_a_layer_that_is_closed_and_opened_again_wraps_the_loop_once() -> None:
    layer = ChannelLayer(url="memory://loops")
    hubs = []

    async def use() -> None:
        await layer.new_channel()
        hubs.extend(hub for hub in local_hubs() if hub.loop is asyncio.get_running_loop())

    with bare_loop() as loop:
        loop.run_until_complete(use())
        wrapped = loop.close
        for _ in range(5):
            loop.run_until_complete(layer.close())
            loop.run_until_complete(use())
            assert loop.close == wrapped
    assert len(hubs) == 6
    assert all(hub.closed for hub in hubs)


def test_a_loop_that_is_closed_without_notice_is_forgotten() -> None:
    layer = ChannelLayer(url="memory://loops")
    loop = asyncio.new_event_loop()
    channel = loop.run_until_complete(layer.new_channel())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    async def other() -> None:
        with pytest.raises(CallError, match="an event loop that has ended"):
            await layer.receive(channel)
        await layer.send(channel, {"type": "nobody"})
        own = await layer.new_channel()
        await layer.send(own, {"type": "test"})
        assert await soon(layer.receive(own)) == {"type": "test"}

    asyncio.run(other())
    assert layer.stats()["loops"] == 0


async def test_a_layer_that_nobody_uses_any_more_ends() -> None:
    layer = ChannelLayer(url="memory://gone")
    await layer.group_add("group", await layer.new_channel())
    (hub,) = [hub for hub in local_hubs() if str(hub.config.url) == "memory://gone"]
    assert hub.stats()["channels"] == 3
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    give_up = time.monotonic() + 10
    while not hub.closed:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_close_ends_the_layer_on_this_loop_and_it_opens_again(url: str) -> None:
    layer = ChannelLayer(url=url)
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.close()
    with pytest.raises(CallError, match="was closed"):
        await soon(waiting)
    await layer.close_pools()
    again = await layer.new_channel()
    await layer.send(again, {"type": "test"})
    assert await soon(layer.receive(again)) == {"type": "test"}
    await layer.close()


async def test_methods_are_coroutine_functions() -> None:
    layer = ChannelLayer(url="memory://loops")
    for name in "send receive new_channel group_add group_discard flush".split():
        assert inspect.iscoroutinefunction(getattr(layer, name))
    assert iscoroutinefunction(layer.group_send)


def test_group_send_on_a_plain_thread_has_the_outcome_of_a_coroutine(url: str) -> None:
    layer = ChannelLayer(url=url)
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("group", channel)
    call = layer.group_send("group", {"type": "awaited later"})
    assert inspect.iscoroutine(call)
    asyncio.run(call)
    assert async_to_sync(soon)(layer.receive(channel)) == {"type": "awaited later"}
    for wrong in (("group!", {"type": "test"}), ("group", "text"), ("group", {1: 2})):
        call = layer.group_send(*wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            asyncio.run(call)
        with pytest.raises(TypeError):
            async_to_sync(layer.group_send)(*wrong)  # type: ignore[arg-type]
    with pytest.raises(layer.MessageTooLarge):
        async_to_sync(layer.group_send)("group", {"type": "x", "b": bytes(17 << 20)})
    dead = ChannelLayer(url=f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(PublishError, match="not published to"):
        async_to_sync(dead.group_send)("group", {"type": "test"})


async def test_group_send_on_a_plain_thread_does_not_wait_for_an_event_loop(
    valkey_server: Any,
) -> None:
    layer = ChannelLayer(url=valkey_server.url, prefix="direct")
    channel = await layer.new_channel()
    await layer.group_add("group", channel)

    def view() -> None:
        for message in numbered(1, 2, 3):  # It connects; asks for the connection; uses it.
            async_to_sync(layer.group_send)("group", message)
        with blocked_loop():
            async_to_sync(layer.group_send)("group", {"type": "test", "n": 4})
        async_to_sync(layer.group_send)("group", {"type": "test", "n": 5, "b": bytes(1 << 20)})

    with ThreadPoolExecutor(1) as wsgi:
        await soon(asyncio.get_running_loop().run_in_executor(wsgi, view))
    got = await take(layer, channel, 5)
    assert [message["n"] for message in got] == [1, 2, 3, 4, 5]
    assert layer.stats()["group_sent"] == 5
    await layer.close()


async def test_group_send_of_a_sync_view_uses_the_hub_of_the_server(url: str) -> None:
    layer = ChannelLayer(url=url)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    (hub,) = [hub for hub in local_hubs() if hub.loop is asyncio.get_running_loop()]
    before = hub.stats()["published"]

    def view() -> None:
        async_to_sync(layer.group_send)("group", {"type": "view"})

    await sync_to_async(view)()
    assert hub.stats()["published"] == before + 1
    assert await soon(layer.receive(channel)) == {"type": "view"}
    await layer.close()


async def test_receive_waits_for_ever_for_a_message(url: str) -> None:
    layer = ChannelLayer(url=url)
    channel = await layer.new_channel()
    for name in (channel, "nothing"):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(layer.receive(name), timeout=0.05)
    await layer.close()


def test_threads_and_loops_at_once_lose_nothing(url: str) -> None:
    layer = ChannelLayer(url=url, capacity=10_000)

    async def main() -> list[int]:
        channel = await layer.new_channel()
        await layer.group_add("group", channel)

        def view(number: int) -> None:
            async_to_sync(layer.group_send)("group", {"type": "test", "n": number})

        with ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, view, n) for n in range(400)))
        return [message["n"] for message in await take(layer, channel, 400)]

    assert sorted(asyncio.run(main())) == [*range(400)]


@pytest.mark.parametrize("broker_url", ["memory://ends"])
async def test_a_cancelled_receive_ends_the_channel_and_its_groups(
    monkeypatch: pytest.MonkeyPatch, make_layer: MakeLayer
) -> None:
    import django_sockets.integration.channel_layer.endpoint as endpoint

    monkeypatch.setattr(endpoint, "LINGER_SECONDS", 0.1)
    layer = make_layer(expiry=1)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    assert (layer.stats()["channels"], layer.stats()["groups"]) == (1, 1)
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    waiting.cancel()
    give_up = time.monotonic() + 10
    while layer.stats()["groups"] or layer.stats()["channels"]:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    assert layer.stats()["ended"] == 1
    # Its owner can go on using the name.
    await layer.send(channel, {"type": "test"})
    assert await soon(layer.receive(channel)) == {"type": "test"}


@pytest.mark.parametrize("broker_url", ["memory://ends"])
async def test_a_channel_that_nobody_receives_from_leaves_its_groups(
    make_layer: MakeLayer,
) -> None:
    layer = make_layer(expiry=0.5)
    abandoned, alive = [await layer.new_channel() for _ in range(2)]
    for channel in (abandoned, alive):
        await layer.group_add("group", channel)
    waiting = asyncio.create_task(layer.receive(alive))
    await layer.group_send("group", {"type": "first"})
    assert await soon(waiting) == {"type": "first"}
    waiting = asyncio.create_task(layer.receive(alive))
    give_up = time.monotonic() + 10
    while layer.stats()["channels"] > 1:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    await layer.group_send("group", {"type": "second"})
    assert await soon(waiting) == {"type": "second"}
    assert layer.stats()["ended"] == 1
    assert layer.stats()["groups"] == 1
