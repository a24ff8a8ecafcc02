"""A socket reads in the task of its server: what ends the socket may not be taken for the server's
own will to end that task, nor the other way round."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from django_sockets.sockets import BaseSocketServer

WAIT_SECONDS = 10.0

needs_counting = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="only since 3.11 a task counts who cancels it"
)


class Served:
    """A socket class as a server would run it, in a task of the test's own."""

    def __init__(self, socket_class: type[BaseSocketServer]) -> None:
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._heard.put_nowait({"type": "websocket.connect"})
        self.sent: list[str] = []
        scope = {"type": "websocket", "path": "/", "headers": []}
        self.app = socket_class.as_asgi(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        return await self._heard.get()

    async def _send(self, event: Any) -> None:
        self.sent.append(event["type"])


class Leaves(BaseSocketServer):
    """Closes itself, from the task of a handler."""

    config = "memory://server-task"

    async def connect(self) -> None:
        await self.async_close()


@needs_counting
async def test_a_socket_that_closes_itself_leaves_the_servers_task_as_it_was() -> None:
    served = Served(Leaves)
    cancelled: list[int] = []

    async def server() -> None:
        # A middleware's time limit around the application: it would take a request left over.
        async with asyncio.timeout(WAIT_SECONDS):  # type: ignore[attr-defined, unused-ignore]
            await served.app
        task: Any = asyncio.current_task()
        cancelled.append(task.cancelling())

    await asyncio.wait_for(asyncio.create_task(server()), WAIT_SECONDS)
    assert cancelled == [0]
    assert served.sent == ["websocket.accept", "websocket.close"]


@needs_counting
@pytest.mark.parametrize("server_first", [True, False])
async def test_a_server_that_gives_up_while_the_socket_ends_is_heard(server_first: bool) -> None:
    connected: asyncio.Queue[BaseSocketServer] = asyncio.Queue()

    class Stays(BaseSocketServer):
        config = "memory://server-task"

        async def connect(self) -> None:
            connected.put_nowait(self)

    server = asyncio.ensure_future(Served(Stays).app)
    socket = await asyncio.wait_for(connected.get(), WAIT_SECONDS)
    # In one turn of the loop: the task sees a single CancelledError for both.
    if server_first:
        server.cancel()
    socket._end(1000)
    if not server_first:
        server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)


async def test_a_receive_that_keeps_a_cancellation_for_itself_does_not_keep_the_socket() -> None:
    gone: list[int] = []

    class Closes(Leaves):
        async def disconnect(self, code: int) -> None:
            gone.append(code)

    class Keeps(Served):
        kept = False

        async def _receive(self) -> dict[str, Any]:
            try:
                return await super()._receive()
            except asyncio.CancelledError:
                if self.kept:
                    raise
                self.kept = True
                return {"type": "websocket.receive", "text": "1"}

    await asyncio.wait_for(Keeps(Closes).app, WAIT_SECONDS)
    assert gone == [1000]


async def test_a_socket_that_hears_nothing_ends_when_its_client_is_gone_at_the_start() -> None:
    gone: list[int] = []

    class Speaks(BaseSocketServer):
        config = "memory://server-task"

        async def disconnect(self, code: int) -> None:
            gone.append(code)

    async def send(event: Any) -> None:
        raise OSError

    socket = Speaks({}, None, send)
    await socket.async_subscribe("news")
    for text in ("heard", "waits for the listeners"):
        await socket.async_broadcast("news", text)
    assert await socket.async_receive_broadcast() == ("news", "heard")
    await asyncio.wait_for(socket.async_start_listeners(), WAIT_SECONDS)
    assert gone == [1005]


async def test_a_drain_waits_for_a_disconnect_that_the_server_has_lost_patience_with() -> None:
    """A server cancels what does not end in time; the broker stays open for what runs on."""
    connected: asyncio.Queue[BaseSocketServer] = asyncio.Queue()
    begun, go_on = asyncio.Event(), asyncio.Event()
    gone: list[int] = []

    class Slow(BaseSocketServer):
        config = "memory://server-task-drain"

        async def connect(self) -> None:
            connected.put_nowait(self)

        async def disconnect(self, code: int) -> None:
            begun.set()
            await go_on.wait()
            gone.append(code)

    server = asyncio.ensure_future(Served(Slow).app)
    socket = await asyncio.wait_for(connected.get(), WAIT_SECONDS)
    socket._end(4000)
    await asyncio.wait_for(begun.wait(), WAIT_SECONDS)
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)
    draining = asyncio.create_task(socket._shared_hub().drain(WAIT_SECONDS))
    await asyncio.sleep(0.05)
    assert not draining.done()
    go_on.set()
    assert await asyncio.wait_for(draining, 2 * WAIT_SECONDS) == 0
    assert gone == [4000]
