"""Plain calls return with the documented result, on every kind of thread.

Without an event loop they wait and raise errors; on an event loop they are scheduled. A call that
never returned would block a worker, a server or a shutdown.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_sockets import ChannelError
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient

URL = "memory://no-deadlock"
BOUND_SECONDS = 5.0

CALLS: dict[str, Callable[[BaseSocketServer], Any]] = {
    "broadcast": lambda socket: socket.broadcast("room", "x"),
    "broadcast_many": lambda socket: socket.broadcast_many(["room", "hall"], "x"),
    "subscribe": lambda socket: socket.subscribe("hall"),
    "unsubscribe": lambda socket: socket.unsubscribe("room"),
    "send": lambda socket: socket.send("x"),
    "close": lambda socket: socket.close(4000),
}

Place = Callable[[Callable[[], Any]], Any]


async def on_the_loop(call: Callable[[], Any]) -> None:
    call()


async def on_a_thread(call: Callable[[], Any]) -> None:
    await asyncio.to_thread(call)


async def on_the_thread_sensitive_thread(call: Callable[[], Any]) -> None:
    await sync_to_async(call, thread_sensitive=True)()


async def inside_async_to_sync(call: Callable[[], Any]) -> None:
    """A plain function that wraps a coroutine: no loop runs on its thread."""

    async def coroutine() -> None:
        call()

    await asyncio.to_thread(async_to_sync(coroutine))


async def inside_async_to_sync_below_a_loop(call: Callable[[], Any]) -> None:
    """A view under ASGI: the loop waits for the thread that waits for the loop."""

    async def coroutine() -> None:
        await sync_to_async(call)()

    await sync_to_async(lambda: async_to_sync(coroutine)(), thread_sensitive=True)()


async def with_asyncios_own_threads_busy(call: Callable[[], Any]) -> None:
    free = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, free.wait, BOUND_SECONDS)
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        call()
        loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run).start()
    await done
    free.set()
    await busy


PLACES: list[Place] = [
    on_the_loop,
    on_a_thread,
    on_the_thread_sensitive_thread,
    inside_async_to_sync,
    inside_async_to_sync_below_a_loop,
    with_asyncios_own_threads_busy,
]


class Member(BaseSocketServer):
    config = URL

    async def connect(self) -> None:
        self.scope["made"].append(self)
        await self.async_subscribe("room")
        await self.async_send("ready")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_there_ends_and_has_its_effect(name: str, place: Place) -> None:
    made: list[Member] = []
    async with SocketClient(Member.as_asgi, scope={"made": made}) as client:
        assert await client.receive_json() == "ready"
        await asyncio.wait_for(place(lambda: CALLS[name](made[0])), BOUND_SECONDS)
        if name == "close":
            assert await client.receive_close() == 4000
            return
        if name in ("broadcast", "broadcast_many", "send"):
            assert await client.receive_json() == "x"
        await made[0].async_send("after what was scheduled")
        assert await client.receive_json() == "after what was scheduled"
        connection = made[0]._connection
        hub = connection.shared_hub()
        subscribed = {"subscribe": {"room", "hall"}, "unsubscribe": set()}.get(name, {"room"})
        assert hub.channels_of(connection.delivery) == subscribed


@pytest.mark.parametrize("name", CALLS)
async def test_handlers_call_it_with_every_thread_of_the_pool_busy(name: str) -> None:
    class Busy(BaseSocketServer):
        config = URL

        def receive(self, data: Any) -> None:
            CALLS[name](self)
            handled.append(self)

    handled: list[Any] = []
    clients = [SocketClient(Busy.as_asgi) for _ in range(70)]  # More than a pool has threads.
    for client in clients:
        await client.connect()
    for client in clients:
        await client.send_json(1)
    started = time.monotonic()
    await asyncio.gather(*(client.close() for client in clients))
    assert time.monotonic() - started < BOUND_SECONDS
    assert len(set(handled)) == 70


HOOKS = ["authorize", "connect", "receive", "disconnect", "error", "decode_error"]


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", CALLS)
async def test_a_hook_may_call_it(name: str, hook: str, kind: str) -> None:
    called = threading.Event()

    def plain(self: BaseSocketServer, *_: Any) -> None:
        CALLS[name](self)
        called.set()

    async def coroutine(self: BaseSocketServer, *_: Any) -> None:
        plain(self)

    def fail(self: BaseSocketServer, data: Any) -> None:
        raise ValueError

    body: dict[str, Any] = {"config": URL, "receive": fail}
    body[hook] = plain if kind == "def" else coroutine
    app = type("Calling", (BaseSocketServer,), body).as_asgi  # type: ignore[attr-defined]
    client = SocketClient(app, raise_errors=False)
    started = time.monotonic()
    try:
        await client.connect()
    except AssertionError:
        assert (hook, name) == ("authorize", "close")  # Closed before it was open: refused.
    else:
        if (hook, name) == ("authorize", "send"):
            assert await client.receive_json() == "x"  # After the accept.
        await client.send_text("no JSON" if hook == "decode_error" else "1")
        await client.close()
    assert time.monotonic() - started < BOUND_SECONDS
    assert called.is_set()


async def test_a_failure_is_raised_off_the_loop_and_logged_on_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broadcaster = Broadcaster(URL)
    with pytest.raises(ChannelError):
        await asyncio.wait_for(
            asyncio.to_thread(broadcaster.broadcast, "", 1), timeout=BOUND_SECONDS
        )
    broadcaster.broadcast("", 1)
    await broadcaster.async_broadcast("room", 1)
    assert "a scheduled call failed" in caplog.text


SCRIPT = """
import asyncio, logging, os, signal, sys, threading, time, warnings
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer

logging.getLogger("django_sockets").setLevel(logging.ERROR)  # Memory is separate after a fork.
warnings.simplefilter("ignore")  # 3.12 warns of any fork while a thread runs.

async def forever():
    await asyncio.Event().wait()

async def sent(event):
    print(event.get("text", event["type"]), flush=True)

def member():
    socket = BaseSocketServer({}, forever, sent)
    socket.start_listeners()
    return socket

def all_calls(socket):
    socket.subscribe("room")
    socket.send("sent")
    Broadcaster().broadcast("elsewhere", 1)
    socket.unsubscribe("room")
    socket.close()
"""

ALL_DONE = '"sent"\nwebsocket.close\n'

ENDINGS = {
    "in a forked child": """
        all_calls(member())  # The parent has a loop and a thread that the child has not.
        child = os.fork()
        if not child:
            all_calls(member())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    "in a signal handler of the main thread": """
        socket = member()
        signal.signal(signal.SIGALRM, lambda *_: all_calls(socket))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.3)
        all_calls(member())
        """,
    "in a signal handler that interrupts a call": """
        socket, other = member(), member()
        handled = threading.Event()
        signal.signal(signal.SIGALRM, lambda *_: (all_calls(socket), handled.set()))
        class Slow(BaseSocketServer):
            async def async_send(self, data, raw=False):
                # The main thread waits for this call, and the signal interrupts it.
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                while not handled.is_set():
                    await asyncio.sleep(0.01)
                await super().async_send(data, raw)
        slow = Slow({}, forever, sent)
        slow.send("sent")
        slow.close()
        """,
    "in a signal handler on the loop": """
        async def main():
            socket = member()
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGALRM, lambda: (all_calls(socket), done.set()))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            await done.wait()
            await socket.async_send("nothing: it is closed")
        asyncio.run(main())
        all_calls(member())
        """,
}


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("where", ENDINGS)
def test_every_call_ends_in_a_process_that(where: str) -> None:
    ended = run_script(ENDINGS[where])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ALL_DONE * 2


@pytest.mark.parametrize("hook", ["atexit.register", "threading._register_atexit"])
@pytest.mark.parametrize("name", CALLS)
def test_at_the_exit_of_the_interpreter_a_call_ends_or_says_that_it_cannot(
    name: str, hook: str
) -> None:
    arguments = {"broadcast": "'room', 1", "broadcast_many": "['room'], 1", "close": ""}
    ended = run_script(f"""
        import atexit
        from django_sockets import CallError
        socket = member()
        def late():
            try:
                socket.{name}({arguments.get(name, "'room'")})
                print("ended", flush=True)
            except CallError as exc:
                print("refused" if "not running any more" in str(exc) else exc, flush=True)
        {hook}(late)
        """)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] in ("ended", "refused")
