"""A socket reads frames and handles them in the task of its server.

The end of the socket must not be confused with a cancellation by the server. While a handler takes
long, the end of the connection is still noticed, and other sockets are served.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import Any

import pytest

from django_sockets import drain
from django_sockets.connection.receive_loop import READ_AHEAD
from django_sockets.sockets import BaseSocketServer

WAIT_SECONDS = 10.0

cancelling: Any = getattr(asyncio.Task, "cancelling", lambda _: 0)

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

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self._heard.put_nowait({"type": "websocket.receive", "text": str(number)})

    def leave(self) -> None:
        self._heard.put_nowait({"type": "websocket.disconnect", "code": 4001})

    @property
    def unread(self) -> int:
        return self._heard.qsize()

    async def _receive(self) -> dict[str, Any]:
        return await self._heard.get()

    async def _send(self, event: Any) -> None:
        self.sent.append(event["type"])


class Leaves(BaseSocketServer):
    """Closes itself in a handler."""

    config = "memory://server-task"

    async def connect(self) -> None:
        await self.async_close()


class IsSentAway(Leaves):
    """Is closed while it reads."""

    async def connect(self) -> None:
        asyncio.get_running_loop().call_later(0.01, self.close)


@needs_counting
@pytest.mark.parametrize("socket_class", [Leaves, IsSentAway])
async def test_a_socket_that_is_closed_leaves_the_servers_task_as_it_was(
    socket_class: type[BaseSocketServer],
) -> None:
    served = Served(socket_class)
    cancelled: list[int] = []

    async def server() -> None:
        # A middleware's time limit around the application: it would take a request left over.
        async with asyncio.timeout(WAIT_SECONDS):  # type: ignore[attr-defined, unused-ignore]
            await served.app
        cancelled.append(cancelling(asyncio.current_task()))

    await asyncio.wait_for(asyncio.create_task(server()), WAIT_SECONDS)
    assert cancelled == [0]
    assert served.sent == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("is_eager", [True, False], ids=["send fails at once", "send fails later"])
async def test_a_client_that_is_gone_when_its_ping_is_answered_ends_without_an_error(
    is_eager: bool,
) -> None:
    # A browser that drops a page sends its last frames and the close in one packet.
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    events.put_nowait({"type": "websocket.connect"})

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send" and event["text"].startswith('{"pong"'):
            if not is_eager:
                await asyncio.sleep(0)
            raise OSError("the client is gone")
        if event["type"] == "websocket.send" and event["text"].startswith('{"ready"'):
            events.put_nowait({"type": "websocket.receive", "text": '{"ping":1}'})
            events.put_nowait({"type": "websocket.disconnect", "code": 1001})

    class Quiet(BaseSocketServer):
        config = "memory://gone"

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": [],
        "subprotocols": ["django-sockets.v1"],
    }
    await asyncio.wait_for(Quiet.as_asgi(scope, events.get, send), WAIT_SECONDS)


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
    socket._connection.end(1000)
    if not server_first:
        server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)


async def test_a_receive_that_keeps_a_cancellation_for_itself_does_not_keep_the_socket() -> None:
    gone: list[int] = []

    class Closes(IsSentAway):
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

    async def server() -> int:
        await Keeps(Closes).app
        return cancelling(asyncio.current_task())

    assert await asyncio.wait_for(asyncio.create_task(server()), WAIT_SECONDS) == 0
    assert gone == [1000]


async def test_a_socket_without_frames_ends_if_its_client_leaves_at_the_start() -> None:
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


async def test_a_drain_waits_for_a_disconnect_that_the_server_has_cancelled() -> None:
    """A server cancels tasks that do not end in time. The broker stays open for their handlers."""
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
    socket._connection.end(4000)
    await asyncio.wait_for(begun.wait(), WAIT_SECONDS)
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)
    draining = asyncio.create_task(socket._connection.shared_hub().drain(WAIT_SECONDS))
    await asyncio.sleep(0.05)
    assert not draining.done()
    go_on.set()
    assert await asyncio.wait_for(draining, 2 * WAIT_SECONDS) == 0
    assert gone == [4000]


class Slow(BaseSocketServer):
    """Handles a frame when the test allows it, and records what happens."""

    config = "memory://server-task"
    log: list[Any]
    at_work: asyncio.Event
    go_on: asyncio.Event

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.log, cls.at_work, cls.go_on = [], asyncio.Event(), asyncio.Event()

    async def receive(self, data: Any) -> None:
        self.at_work.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        self.log.append(data)

    async def disconnect(self, code: int) -> None:
        self.log.append(("disconnect", code))


async def until(condition: Any) -> None:
    """Wait for a condition without a new task, because tasks are counted here."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(WAIT_SECONDS / 1000)
    raise AssertionError("it never became so")


async def taking_long(member: type[Slow], *numbers: int) -> tuple[Served, asyncio.Future[None]]:
    """A connection whose handler takes so long that a second task reads ahead."""
    served = Served(member)
    server = asyncio.ensure_future(served.app)
    tasks = len(asyncio.all_tasks())
    served.say(*(numbers or (1,)))
    await until(lambda: len(asyncio.all_tasks()) > tasks)
    return served, server


async def test_a_cancellation_by_the_server_ends_the_running_handler() -> None:
    class Member(Slow):
        pass

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    served.say(1, 2)
    await asyncio.wait_for(Member.at_work.wait(), WAIT_SECONDS)
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)
    await until(lambda: Member.log[-1:] == [("disconnect", 1001)])
    assert Member.log == ["cancelled", ("disconnect", 1001)]


@pytest.mark.parametrize("fails", [False, True])
async def test_disconnect_waits_for_a_thread_that_the_server_could_not_end(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers of one socket never run at the same time."""
    at_work, go_on = threading.Event(), threading.Event()
    log: list[str] = []

    class Plain(BaseSocketServer):
        config = "memory://server-task"

        def receive(self, data: Any) -> None:
            at_work.set()
            go_on.wait(WAIT_SECONDS)
            log.append("receive")
            if fails:
                raise ValueError("in the thread")

        def disconnect(self, code: int) -> None:
            log.append("disconnect")

    served = Served(Plain)
    server = asyncio.ensure_future(served.app)
    served.say(1)
    await until(at_work.is_set)
    server.cancel()
    await asyncio.sleep(0.05)
    server.cancel()  # daphne does it again and again.
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)
    assert log == []
    go_on.set()
    await until(lambda: len(log) == 2)
    assert log == ["receive", "disconnect"]
    assert ("Plain: a handler failed" in caplog.text) == fails


class Patient(Slow):
    """Handles a frame until the client has left."""

    async def receive(self, data: Any) -> None:
        self.at_work.set()
        while self.is_alive:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
        self.log.append(data)


async def test_a_client_that_leaves_while_a_handler_takes_long_is_noticed() -> None:
    class Member(Patient):
        pass

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    served.say(1)
    await asyncio.wait_for(Member.at_work.wait(), WAIT_SECONDS)
    served.say(2)
    served.leave()
    await asyncio.wait_for(server, WAIT_SECONDS)
    assert Member.log == [1, 2, ("disconnect", 4001)]


async def test_a_little_is_read_ahead_of_a_handler_that_takes_long() -> None:
    """Otherwise a client could fill the memory of a server."""

    class Member(Slow):
        pass

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    numbers = list(range(100))
    served.say(*numbers)
    await until(lambda: served.unread < len(numbers) - 1)
    await asyncio.sleep(0.05)
    assert served.unread == len(numbers) - 1 - READ_AHEAD
    Member.go_on.set()
    served.leave()
    await asyncio.wait_for(server, WAIT_SECONDS)
    assert Member.log == [*numbers, ("disconnect", 4001)]


async def test_what_was_read_ahead_is_not_handled_once_the_socket_is_sent_away() -> None:
    class Member(Slow):
        pass

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    served.say(1, 2)
    await until(lambda: served.unread == 0)
    draining = asyncio.create_task(drain(WAIT_SECONDS * 10))
    await asyncio.sleep(0.05)
    Member.go_on.set()
    await asyncio.wait_for(server, WAIT_SECONDS)
    await draining
    assert Member.log == [1, ("disconnect", 1012)]


async def test_a_client_that_leaves_before_it_is_sent_away_is_noticed() -> None:
    """Its handler may be waiting only for this, whatever the number of frames before it."""

    class Member(Patient):
        pass

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    served.say(*range(100))
    await until(lambda: served.unread == 100 - 1 - READ_AHEAD)
    served.leave()
    draining = asyncio.create_task(drain(WAIT_SECONDS * 10))
    await asyncio.wait_for(server, WAIT_SECONDS)
    assert Member.log == [0, ("disconnect", 4001)]
    await draining


async def test_what_comes_while_the_socket_is_closed_is_not_handled() -> None:
    class Member(Slow):
        async def connect(self) -> None:
            self.go_on.set()
            asyncio.get_running_loop().call_soon(self.close)

    class Stuck(Served):
        async def _send(self, event: Any) -> None:
            if event["type"] == "websocket.close":
                self.say(1)
                await asyncio.sleep(0.05)

    await asyncio.wait_for(Stuck(Member).app, WAIT_SECONDS)
    assert Member.log == [("disconnect", 1000)]


async def test_a_socket_that_ended_before_it_was_served_is_not_begun_after_its_end() -> None:
    class Member(Slow):
        idle_timeout_seconds = 0.01

    socket = Member({}, asyncio.Queue().get)
    serving = socket._connection.serve()
    socket._connection.end(4000)
    await asyncio.sleep(0.01)
    await asyncio.wait_for(serving, WAIT_SECONDS)
    assert Member.log == [("disconnect", 4000)]
    await asyncio.sleep(0.05)
    assert socket._connection.shared_hub().stats()["closed_idle"] == 0


async def test_a_handler_that_took_long_once_costs_no_task_for_ever() -> None:
    class Member(Slow):
        pass

    served, server = await taking_long(Member, 1, 2)
    tasks = len(asyncio.all_tasks()) - 1  # Without the task that reads ahead.
    Member.go_on.set()
    await until(lambda: Member.log == [1, 2])
    served.say(3, 4)
    await until(lambda: Member.log == [1, 2, 3, 4])
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    served.leave()
    await asyncio.wait_for(server, WAIT_SECONDS)


async def test_an_end_while_frames_are_read_ahead_ends_both_tasks() -> None:
    class Member(Slow):
        pass

    _, server = await taking_long(Member)
    Member.go_on.set()
    await until(lambda: Member.log == [1])
    await drain(WAIT_SECONDS)
    await asyncio.wait_for(server, WAIT_SECONDS)
    assert Member.log == [1, ("disconnect", 1012)]
    assert len(asyncio.all_tasks()) == 1


async def test_a_handler_finds_what_the_one_before_has_set_in_the_context() -> None:
    """Such as the user for whom log lines are written."""
    user = contextvars.ContextVar("user", default="nobody")
    found = asyncio.Queue[str]()

    class Member(BaseSocketServer):
        config = "memory://server-task"

        async def connect(self) -> None:
            user.set("ann")

        async def receive(self, data: Any) -> None:
            found.put_nowait(user.get())

    served = Served(Member)
    server = asyncio.ensure_future(served.app)
    served.say(1)
    assert await asyncio.wait_for(found.get(), WAIT_SECONDS) == "ann"
    served.leave()
    await asyncio.wait_for(server, WAIT_SECONDS)


@pytest.mark.parametrize("at_work", [True, False])
async def test_a_cancellation_by_the_server_also_ends_the_reading_ahead(at_work: bool) -> None:
    class Member(Slow):
        pass

    _, server = await taking_long(Member)
    if not at_work:
        Member.go_on.set()
        await until(lambda: Member.log == [1])
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(server, WAIT_SECONDS)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert Member.log == ["cancelled" if at_work else 1, ("disconnect", 1001)]


async def test_a_client_that_says_much_at_once_leaves_others_their_turn() -> None:
    """Neither `receive` nor the handler waits here, so other tasks would not run by themselves."""
    frames = 1000
    turns = 0
    handled = asyncio.Event()

    class Quick(BaseSocketServer):
        config = "memory://server-task"

        async def receive(self, data: Any) -> None:
            if data == frames - 1:
                handled.set()

    served = Served(Quick)
    served.say(*range(frames))

    def count() -> None:
        nonlocal turns
        turns += 1
        if not handled.is_set():
            asyncio.get_running_loop().call_soon(count)

    server = asyncio.ensure_future(served.app)
    count()
    await asyncio.wait_for(handled.wait(), WAIT_SECONDS)
    assert turns > frames / 50
    served.leave()
    await asyncio.wait_for(server, WAIT_SECONDS)


@needs_counting
@pytest.mark.parametrize("server_too", [False, True])
async def test_a_timed_out_accept_does_not_cancel_the_servers_task(
    server_too: bool,
) -> None:
    class Impatient(BaseSocketServer):
        config = "memory://server-task"
        handshake_timeout_seconds = 0.05

    class Stuck(Served):
        async def _send(self, event: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                if server_too:
                    server.cancel()
                    await asyncio.sleep(0)

    left: list[int] = []

    async def serve() -> None:
        try:
            await Stuck(Impatient).app
        finally:
            left.append(cancelling(asyncio.current_task()))

    server = asyncio.create_task(serve())
    await asyncio.wait([server], timeout=WAIT_SECONDS)
    assert server.done()
    assert server.cancelled() == server_too
    assert left == [1 if server_too else 0]
