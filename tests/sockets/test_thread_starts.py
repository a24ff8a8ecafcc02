"""If a thread cannot be started, as at a limit on processes, only the present call fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.middleware import watch
from django_sockets.middleware.base import AuthMiddleware, Identity
from django_sockets.runtime import background, worker_threads
from django_sockets.runtime.worker_threads import run_in_thread
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.capture import capture_broadcasts
from django_sockets.testing.client import HandshakeRefused, SocketClient
from django_sockets.testing.sync_client import SyncSocketClient

URL = "memory://thread-starts"
ONE_THREAD = {"url": URL, "handler_threads": 1}


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number of starts of the library's threads fail from now on."""
    left = [0]
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if left[0] and thread.name.startswith("django_sockets"):
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return left


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no thread was needed yet."""
    monkeypatch.setattr(background.per_process, "current", background.Background())
    monkeypatch.setattr(worker_threads.per_process, "current", worker_threads.SharedPool())
    monkeypatch.setattr(watch.per_process, "current", watch.Watch())
    monkeypatch.setattr(background, "call_before_exit", lambda _: None)
    yield
    background.end_background()


class Echo(BaseSocketServer):
    config = ONE_THREAD

    def receive(self, data: Any) -> None:
        self.send(data)


class AsyncEcho(BaseSocketServer):
    config = ONE_THREAD

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


class PlainAuthorize(AsyncEcho):
    def authorize(self) -> bool:
        return True


class Watched(AuthMiddleware):
    async def identify(self, scope: Any) -> Identity:
        watched = watch.Watched(("key", "1"), "1", lambda keys: keys, None, 60.0, 600.0)
        return Identity({}, {"key": "1"}, watched)


def middleware() -> Any:
    app = Watched.__new__(Watched)  # Its constructor connects signals of Django's models.
    app.app, app.require_user, app._has_apps = AsyncEcho.as_asgi, False, True
    return app


async def broadcast() -> None:
    with capture_broadcasts("room") as captured:
        await asyncio.to_thread(Broadcaster(URL).broadcast, "room", 1)
    assert captured == [("room", 1)]


async def async_broadcast_without_a_hub() -> None:
    with capture_broadcasts("room") as captured:
        await Broadcaster(URL).async_broadcast("room", 1)
    assert captured == [("room", 1)]


async def socket_of_a_script() -> None:
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    await asyncio.to_thread(lambda: AsyncEcho({}, None, send).send("hello"))
    assert len(sent) == 1


async def plain_receive() -> None:
    async with SocketClient(Echo.as_asgi) as client:
        await client.send_json("hello")
        try:
            assert await client.receive_json() == "hello"
        except Exception as exc:
            if client.close_code == 1011:
                raise RuntimeError("can't start new thread") from exc
            raise


async def plain_authorize() -> None:
    try:
        async with SocketClient(PlainAuthorize.as_asgi) as client:
            await client.send_json("hello")
            assert await client.receive_json() == "hello"
    except HandshakeRefused as exc:
        raise RuntimeError("can't start new thread") from exc


async def login_watch() -> None:
    try:
        async with SocketClient(middleware()) as client:
            await client.send_json("hello")
            assert await client.receive_json() == "hello"
            assert watch.per_process.current.thread is not None
            assert watch.per_process.current.thread.is_alive()
    except HandshakeRefused as exc:
        if exc.status == 503 and not watch.per_process.current.counts:
            raise RuntimeError("can't start new thread") from exc
        raise


async def work_on_a_thread() -> None:
    done = threading.Event()
    run_in_thread(done.set)
    assert await asyncio.to_thread(done.wait, 10)


async def sync_client() -> None:
    def run() -> None:
        with SyncSocketClient(AsyncEcho.as_asgi) as client:
            client.send_json("hello")
            assert client.receive_json() == "hello"

    await asyncio.to_thread(run)


PLACES: list[Callable[[], Awaitable[None]]] = [
    broadcast,
    async_broadcast_without_a_hub,
    socket_of_a_script,
    plain_receive,
    plain_authorize,
    login_watch,
    work_on_a_thread,
    sync_client,
]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("place", PLACES)
async def test_the_next_call_works(place: Callable[[], Awaitable[None]], full: list[int]) -> None:
    full[0] = 1
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await place()
    assert full[0] == 0
    for _ in range(2):
        await asyncio.wait_for(place(), 20)
