"""Frames of a client are limited on arrival, so they take no memory while a handler runs."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from django_sockets.conf import load_config
from django_sockets.runtime import hooks, shared_hub
from django_sockets.runtime.worker_threads import WorkerPool
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

URL = "memory://arrival"
MOST = 1000
WAIT_SECONDS = 20


class Server:
    """A socket class as a server runs it: frames wait here, however large, until they are read."""

    def __init__(self, socket_class: type[BaseSocketServer]) -> None:
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._heard.put_nowait({"type": "websocket.connect"})
        self.events: list[Any] = []
        self.closed = asyncio.Event()
        scope = {"type": "websocket", "path": "/", "headers": []}
        self.task = asyncio.ensure_future(socket_class.as_asgi(scope, self._heard.get, self._send))

    async def _send(self, event: Any) -> None:
        self.events.append(event)
        if event["type"] == "websocket.close":
            self.closed.set()

    def say(self, frame: str | bytes) -> None:
        kind = "text" if isinstance(frame, str) else "bytes"
        self._heard.put_nowait({"type": "websocket.receive", kind: frame})

    def leave(self) -> None:
        self._heard.put_nowait({"type": "websocket.disconnect", "code": 1000})

    @property
    def unread(self) -> int:
        return self._heard.qsize()


async def until(true: Callable[[], Any]) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


def busy(plain: bool) -> Any:
    """A class whose handler waits for `go_on`; `handled` is what it got."""

    class Busy(BaseSocketServer):
        config = URL
        max_message_bytes = MOST
        ws_decoder = staticmethod(len)
        go_on = threading.Event()
        handled: list[int] = []  # noqa: RUF012
        began = asyncio.Event()

        if plain:

            def receive(self, data: int) -> None:
                self.work_began(data)
                self.go_on.wait(WAIT_SECONDS)
        else:

            async def receive(self, data: int) -> None:
                self.work_began(data)
                await until(self.go_on.is_set)

        def work_began(self, data: int) -> None:
            self.handled.append(data)
            self._connection.home.call_soon_threadsafe(self.began.set)

    return Busy


TOO_LARGE = [
    "x" * (MOST + 1),
    b"x" * (MOST + 1),
    "ü" * (MOST // 2 + 1),
    "\N{GRINNING FACE}" * (MOST // 4 + 1),
]
"""In bytes, as they were sent; in characters all but the first two are small."""


@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
@pytest.mark.parametrize("frame", TOO_LARGE, ids=["text", "bytes", "two bytes", "four bytes"])
async def test_a_frame_that_is_too_large_closes_while_the_handler_is_at_work(
    frame: str | bytes, plain: bool
) -> None:
    busy_class = busy(plain)
    server = Server(busy_class)
    server.say("1")
    await asyncio.wait_for(busy_class.began.wait(), WAIT_SECONDS)
    server.say("12")
    server.say(frame)
    server.say("123")
    await asyncio.wait_for(server.closed.wait(), WAIT_SECONDS)
    assert not busy_class.go_on.is_set()
    assert server.events[-1] == {"type": "websocket.close", "code": 1009}
    assert shared_hub(load_config(URL)).stats()["closed_too_big"] == 1
    busy_class.go_on.set()
    await asyncio.wait_for(server.task, WAIT_SECONDS)
    assert busy_class.handled == [1]


@pytest.mark.parametrize("frame", TOO_LARGE, ids=["text", "bytes", "two bytes", "four bytes"])
async def test_it_closes_when_nothing_is_at_work_too(frame: str | bytes) -> None:
    busy_class = busy(plain=False)
    server = Server(busy_class)
    server.say(frame)
    server.say("1")
    await asyncio.wait_for(server.closed.wait(), WAIT_SECONDS)
    await asyncio.wait_for(server.task, WAIT_SECONDS)
    assert server.events[-1] == {"type": "websocket.close", "code": 1009}
    assert busy_class.handled == []


@pytest.mark.parametrize(
    ("size", "ahead"), [(MOST, 1), (MOST // 2, 2), (MOST // 4 + 1, 4), (1, 16)]
)
async def test_what_is_read_ahead_is_bounded_in_bytes(size: int, ahead: int) -> None:
    busy_class = busy(plain=False)
    server = Server(busy_class)
    for _ in range(40):
        server.say("x" * size)
    await until(lambda: server.unread == 40 - 1 - ahead)
    await asyncio.sleep(0.05)
    assert server.unread == 40 - 1 - ahead
    busy_class.go_on.set()
    server.leave()
    await asyncio.wait_for(server.task, WAIT_SECONDS)
    assert busy_class.handled == [size] * 40


async def test_memory_stays_bounded_however_much_a_client_sends() -> None:
    busy_class = busy(plain=False)
    busy_class.max_message_bytes = 1024 * 1024
    frames = asyncio.Semaphore(0)
    made = 0

    async def receive() -> dict[str, Any]:
        nonlocal made
        if made == 0:
            made = 1
            return {"type": "websocket.connect"}
        made += 1
        if made == 60:
            await frames.acquire()
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "websocket.receive", "bytes": bytes(1024 * 1024)}

    async def send(event: Any) -> None: ...

    scope = {"type": "websocket", "path": "/", "headers": []}
    tracemalloc.start()
    try:
        task = asyncio.ensure_future(busy_class.as_asgi(scope, receive, send))
        await until(lambda: made >= 3)
        await asyncio.sleep(0.1)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made <= 4
    assert most_bytes < 4 * 1024 * 1024
    busy_class.go_on.set()
    frames.release()
    await asyncio.wait_for(task, WAIT_SECONDS)


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Run `def` handlers on so many threads; the process has its pool already."""

    def use(threads: int) -> None:
        pool = WorkerPool(threads)
        monkeypatch.setattr(hooks, "worker_pool", lambda settings: pool)

    return use


async def test_slow_handshakes_leave_threads_to_open_sockets(
    pool_of: Callable[[int], None],
) -> None:
    pool_of(4)
    go_on, slow = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Echo(BaseSocketServer):
        config = URL

        def receive(self, data: Any) -> None:
            self.send(data)

    class Slow(BaseSocketServer):
        config = URL

        def authorize(self) -> None:
            loop.call_soon_threadsafe(slow.set)
            go_on.wait(WAIT_SECONDS)

    async with SocketClient(Echo.as_asgi) as client:
        waiting = [SocketClient(Slow.as_asgi) for _ in range(12)]
        connecting = [asyncio.create_task(one.connect()) for one in waiting]
        await asyncio.wait_for(slow.wait(), WAIT_SECONDS)
        for number in range(5):
            await client.send_json(number)
            assert await client.receive_json() == number
        assert not any(task.done() for task in connecting)
        go_on.set()
        await asyncio.gather(*connecting)
        for one in waiting:
            await one.close()


async def test_a_handshake_that_was_given_up_is_not_begun_later(
    pool_of: Callable[[int], None],
) -> None:
    pool_of(1)
    go_on, began = threading.Event(), []

    class Slow(BaseSocketServer):
        config = URL
        handshake_timeout_seconds = 0.2

        def authorize(self) -> None:
            began.append(self)
            go_on.wait(WAIT_SECONDS)

        async def connect(self) -> None:
            await self.async_send("connected")

    clients = [SocketClient(Slow.as_asgi) for _ in range(5)]
    refused = await asyncio.gather(
        *(client.connect() for client in clients), return_exceptions=True
    )
    assert all(isinstance(one, Exception) for one in refused)
    go_on.set()
    async with SocketClient(Slow.as_asgi) as client:
        assert await client.receive_json() == "connected"
    assert len(began) == 2
