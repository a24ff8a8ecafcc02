"""Plain calls such as `socket.broadcast(...)`: their order and errors, other loops, and exits.

`test_no_deadlock` makes each call on every kind of thread.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from django_sockets import CallError, ChannelError, EncodeError, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.connection.connection import Connection
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

URL = "memory://plain-calls"


class Member(BaseSocketServer):
    config = URL

    def connect(self) -> None:
        self.subscribe("room")
        self.send("joined")


async def from_async_to_sync() -> None:
    await asyncio.to_thread(async_to_sync(Broadcaster(URL).async_broadcast), "room", "hello")


async def from_a_short_loop() -> None:
    await asyncio.to_thread(asyncio.run, Broadcaster(URL).async_broadcast("room", "hello"))


async def from_a_plain_call_on_a_short_loop() -> None:
    async def short() -> None:
        Broadcaster(URL).broadcast("room", "hello")

    await asyncio.to_thread(asyncio.run, short())


async def from_another_hub() -> None:
    async with open_hub(URL) as hub:
        await hub.publish("room", b'"hello"', is_text=True)


@pytest.mark.parametrize(
    "place",
    [
        from_async_to_sync,
        from_a_short_loop,
        from_a_plain_call_on_a_short_loop,
        from_another_hub,
    ],
)
async def test_a_broadcast_from_another_loop_or_hub_reaches_the_sockets(
    place: Callable[[], Awaitable[None]],
) -> None:
    async with SocketClient(Member.as_asgi) as client:
        assert await client.receive_json() == "joined"
        await place()
        assert await client.receive_json() == "hello"


async def test_plain_and_async_calls_of_one_socket_keep_their_order_on_the_loop() -> None:
    class Mixed(BaseSocketServer):
        config = URL

        async def connect(self) -> None:
            self.subscribe("order")
            self.send(0)
            await self.async_send(1)
            self.send(2)
            self.broadcast("order", 3)
            await self.async_broadcast("order", 4)
            self.broadcast("order", 5)

    async with SocketClient(Mixed.as_asgi) as client:
        assert [await client.receive_json() for _ in range(6)] == list(range(6))


async def test_a_hook_that_a_plain_call_triggers_may_call_back() -> None:
    class Nested(BaseSocketServer):
        config = URL

        async def connect(self) -> None:
            self.send({"n": 1})
            await self.async_send({"n": 3})

        async def async_send(self, data: Any, raw: bool = False) -> None:
            await super().async_send(data)
            if data["n"] == 1:
                await super().async_send({"n": 2})

    async with SocketClient(Nested.as_asgi) as client:
        numbers = [(await client.receive_json())["n"] for _ in range(3)]
    assert numbers == [1, 2, 3]


async def test_bad_arguments_raise_where_they_were_made() -> None:
    broadcaster = Broadcaster(URL)
    with pytest.raises(ChannelError, match="use str or int"):
        await broadcaster.async_broadcast(None, 1)  # type: ignore[arg-type]
    with pytest.raises(ChannelError, match="use str or int"):
        await asyncio.to_thread(broadcaster.broadcast, True, 1)
    with pytest.raises(EncodeError, match="has no JSON form"):
        await asyncio.to_thread(broadcaster.broadcast, "room", object())


async def test_integers_lists_and_sets_are_channels_too() -> None:
    broadcaster = Broadcaster(URL)
    await broadcaster.async_subscribe([7, "eight"])
    await broadcaster.async_broadcast_many(("7", "eight"), "many")
    got = {await broadcaster.async_receive_broadcast() for _ in range(2)}
    assert got == {("7", "many"), ("eight", "many")}
    await broadcaster.aclose()


async def test_a_cancelled_receive_loses_nothing() -> None:
    broadcaster = Broadcaster(URL)
    await broadcaster.async_subscribe("patience")
    for number in range(50):
        waiting = asyncio.ensure_future(broadcaster.async_receive_broadcast())
        await asyncio.sleep(0)
        await broadcaster.async_broadcast("patience", number)
        waiting.cancel()
        await asyncio.wait([waiting])
        if waiting.cancelled():
            assert await broadcaster.async_receive_broadcast() == ("patience", number)
        else:
            assert waiting.result() == ("patience", number)
    await broadcaster.aclose()


def test_a_plain_call_fails_at_once_when_its_loop_has_stopped() -> None:
    sockets = []

    async def make() -> None:
        sockets.append(BaseSocketServer({}, None, None, URL))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(make())
    with pytest.raises(CallError, match="not running any more"):
        sockets[0].broadcast("room", 1)  # The loop may continue to run: no code waits for it.
    loop.close()
    with pytest.raises(CallError, match="not running any more"):
        sockets[0].broadcast("room", 1)


def test_a_waiting_call_ends_when_its_loop_is_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caught: list[BaseException] = []

    async def main() -> None:
        socket = BaseSocketServer({}, None, None, URL)
        stuck = asyncio.Event()

        async def never(*_: object) -> None:
            stuck.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Connection, "send_item", never)

        def call() -> None:
            try:
                socket.send(1)
            except CallError as exc:
                caught.append(exc)

        thread = threading.Thread(target=call)
        thread.start()
        await stuck.wait()
        threads.append(thread)

    threads: list[threading.Thread] = []
    asyncio.run(main())
    threads[0].join(2)
    assert not threads[0].is_alive()
    assert "stopped" in str(caught[0])


def test_many_broadcasters_share_one_thread() -> None:
    for _ in range(100):
        Broadcaster(URL).broadcast("room", 1)
    ours = [thread for thread in threading.enumerate() if thread.name == "django_sockets loop"]
    assert len(ours) == 1


def run_script(script: str, timeout_seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


PREAMBLE = """
import asyncio, os, sys, threading, time
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer

async def send(event):
    print("sent", event)

async def forever():
    await asyncio.Event().wait()
"""


def test_a_script_ends_by_itself_and_disconnect_has_run() -> None:
    result = run_script(
        PREAMBLE
        + textwrap.dedent("""
        class Script(BaseSocketServer):
            def disconnect(self, code):
                print("disconnect", code, flush=True)
                self.send("nothing is sent at exit")

        Script({}, forever, send).start_listeners()
        time.sleep(0.1)
        """)
    )
    assert (result.stdout, result.stderr) == ("disconnect 1001\n", "")
    assert result.returncode == 0


def test_a_script_ends_even_when_a_handler_never_returns() -> None:
    result = run_script(
        PREAMBLE
        + textwrap.dedent("""
        class Stuck(BaseSocketServer):
            def receive(self, data):
                print("stuck", flush=True)
                stuck.set()
                threading.Event().wait()

            def disconnect(self):
                print("disconnect", flush=True)

        stuck = threading.Event()
        queue = asyncio.Queue()
        Stuck({}, queue.get, send).start_listeners()
        queue.put_nowait({"type": "websocket.receive", "text": "1"})
        stuck.wait(5)
        """)
    )
    assert (result.stdout, result.stderr) == ("stuck\ndisconnect\n", "")
    assert result.returncode == 0


def test_a_call_scheduled_on_a_short_loop_is_still_done() -> None:
    result = run_script(
        PREAMBLE
        + textwrap.dedent("""
        class Listener(BaseSocketServer):
            pass

        heard = threading.Event()
        async def note(event):
            print(event["text"], flush=True)
            heard.set()

        listener = Listener({}, forever, note)
        listener.start_listeners()
        listener.subscribe("room")

        async def short():
            Broadcaster().broadcast("room", "scheduled")

        asyncio.run(short())
        assert heard.wait(5)
        """)
    )
    assert (result.stdout, result.stderr) == ('"scheduled"\n', "")


def test_the_exit_waits_for_calls_that_are_scheduled() -> None:
    result = run_script(
        PREAMBLE
        + textwrap.dedent("""
        class Slow(Broadcaster):
            async def async_broadcast(self, channel, data):
                await asyncio.sleep(0.3)
                print("done", flush=True)

        async def short():
            Slow().broadcast("room", "scheduled")

        asyncio.run(short())
        """)
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_scripts_work_in_asyncio_debug_mode() -> None:
    script = PREAMBLE + textwrap.dedent("""
        queue = asyncio.Queue()
        class Echo(BaseSocketServer):
            async def receive(self, data):
                await self.async_send(data)

        Echo({}, queue.get, send).start_listeners()
        time.sleep(0.1)
        queue.put_nowait({"type": "websocket.receive", "text": "1"})
        time.sleep(0.2)
        """)
    result = run_script('import os\nos.environ["PYTHONASYNCIODEBUG"] = "1"\n' + script)
    assert result.stdout == "sent {'type': 'websocket.send', 'text': '1'}\n", result.stderr


def test_a_forked_child_starts_afresh_and_says_that_memory_is_separate() -> None:
    result = run_script(
        PREAMBLE
        + textwrap.dedent("""
        import logging
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        import warnings
        warnings.simplefilter("ignore")  # 3.12 warns of any fork in a process with threads.

        broadcaster = Broadcaster()
        broadcaster.broadcast("room", "parent")
        child = os.fork()
        if not child:
            broadcaster.broadcast("room", "child")
            os._exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        broadcaster.broadcast("room", "parent again")
        """)
    )
    assert "separate bus" in result.stdout
    assert "child 7" in result.stdout
    assert result.stderr == ""
