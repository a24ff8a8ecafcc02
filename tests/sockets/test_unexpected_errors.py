"""After an unexpected error, long-lived tasks, threads and timers continue."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from django_sockets import CallError, Gap, open_hub
from django_sockets.backends.memory import MemoryBroker
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.connection import receive_loop
from django_sockets.connection.outbox import Outbox
from django_sockets.hub import batches
from django_sockets.hub.connections import Connections
from django_sockets.hub.control import control_of, on_missed_orders
from django_sockets.hub.hub import Hub
from django_sockets.middleware import watch
from django_sockets.runtime import (
    BackgroundLoop,
    background,
    close_shared_hubs,
    shared_hub,
    shutdown,
)
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.capture import capture_broadcasts
from django_sockets.testing.client import SocketClient, SocketClosed
from django_sockets.url import BrokerURL

URL = "memory://surprises"
ONE_THREAD = {"url": URL, "handler_threads": 1}
SURPRISES = [RuntimeError("surprise"), KeyError("surprise"), RecursionError("surprise")]
ENDINGS = [SystemExit(1), KeyboardInterrupt(), GeneratorExit()]


def failing_once(call: Callable[..., Any], exc: BaseException) -> Callable[..., Any]:
    """`call`, which raises the first time."""
    left = [exc]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return call(*args, **kwargs)

    return wrapped


async def until(true: Callable[[], Any]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


@pytest.fixture
def own_background(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(background.per_process, "current", background.Background())
    monkeypatch.setattr(background, "call_before_exit", lambda _: None)
    yield
    background.end_background()


def stop_by(loop: BackgroundLoop, exc: BaseException | None) -> None:
    stopped = threading.Event()

    def act() -> None:
        stopped.set()
        if exc is not None:
            raise exc
        loop.stop()

    loop.call_soon_threadsafe(act)
    assert stopped.wait(20)


@pytest.mark.usefixtures("own_background")
@pytest.mark.parametrize("exc", [*ENDINGS[:2], None], ids=str)
def test_the_background_loop_goes_on(
    exc: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    loop = background.background_loop()
    stop_by(loop, exc)
    with capture_broadcasts("room") as captured:
        # Scheduled meanwhile, it is done when the loop goes on.
        future = asyncio.run_coroutine_threadsafe(Broadcaster(URL).async_broadcast("room", 1), loop)
        future.result(20)
        Broadcaster(URL).broadcast("room", 2)
    assert captured == [("room", 1), ("room", 2)]
    assert caplog.text.count("it goes on") == 1


@pytest.mark.usefixtures("own_background")
def test_a_background_loop_that_was_closed_is_replaced() -> None:
    loop = background.background_loop()
    stop_by(loop, SystemExit(1))
    loop.ends = True
    loop.call_soon_threadsafe(loop.stop)
    assert background.per_process.current.thread is not None
    background.per_process.current.thread.join(20)
    loop.close()
    loop.ends = False
    with capture_broadcasts("room") as captured:
        Broadcaster(URL).broadcast("room", 1)
    assert captured == [("room", 1)]


@pytest.mark.parametrize("exc", [*ENDINGS, asyncio.CancelledError()], ids=repr)
async def test_what_a_plain_handler_raises_ends_its_own_socket_only(exc: BaseException) -> None:
    class Plain(BaseSocketServer):
        config = ONE_THREAD

        def receive(self, data: Any) -> None:
            if data == "raise":
                raise exc
            self.send(data)

    async with SocketClient(Plain.as_asgi) as one, SocketClient(Plain.as_asgi) as other:
        await one.send_json("raise")
        assert await one.receive_close() == 1011
        await other.send_json("still here")
        assert await other.receive_json() == "still here"


class Member:
    def __init__(self, exc: Exception | None = None) -> None:
        self.codes: list[int] = []
        self._exc = exc

    def on_close_order(self, code: int) -> None:
        if self._exc is not None:
            raise self._exc
        self.codes.append(code)


@pytest.mark.parametrize("exc", SURPRISES, ids=repr)
async def test_orders_arrive_after_the_control_channel_has_failed(
    exc: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed: list[int] = []
    monkeypatch.setattr("django_sockets.hub.control.RETRY_SECONDS", 0.05)
    monkeypatch.setattr(
        "django_sockets.hub.control.on_missed_orders", [*on_missed_orders, lambda: missed.append(1)]
    )
    async with open_hub(URL) as own:
        monkeypatch.setattr(own, "add_control", failing_once(own.add_control, exc))
        control, member = control_of(own), Member()
        await control.add(member, {"user": 7})
        await until(lambda: missed)  # Orders may have been missed: a sweep finds out.
        await own.publish_control(b'{"close": {"tags": {"user": "7"}, "code": 4401}}')
        await until(lambda: member.codes)
        assert member.codes == [4401]
        # Off it, and back.
        monkeypatch.setattr(own, "remove", failing_once(own.remove, exc))
        control.discard(member)
        await until(lambda: control._keeper is None)
        await control.add(member, {"user": 7})
        await own.publish_control(b'{"close": {"tags": {"user": "7"}, "code": 4402}}')
        await until(lambda: 4402 in member.codes)
        control.discard(member)


async def test_a_member_that_fails_keeps_no_other_from_being_closed() -> None:
    async with open_hub(URL) as own:
        control = control_of(own)
        members = [Member(), Member(RuntimeError("surprise")), Member()]
        for member in members:
            await control.add(member, {"user": 7})
        assert control.close({"user": "7"}, 4401) == 3
        assert [member.codes for member in members] == [[4401], [], [4401]]
        for member in members:
            control.discard(member)


DEEP = b'{"close": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ORDERS = [
    DEEP,
    b'{"close": {"tags": {"user": "7"}, "code": 1005}}',
    b'{"close": {"tags": {"user": "7"}, "code": 2999}}',
    b'{"close": {"tags": {"user": "7"}, "code": "4401"}}',
    b'{"close": {"tags": {"user": "7"}, "code": null}}',
]


async def test_an_order_that_makes_no_sense_is_refused_and_the_next_one_is_carried_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_hub(URL) as own:
        control, member = control_of(own), Member()
        await control.add(member, {"user": 7})
        for order in ORDERS:
            await own.publish_control(order)
        await own.publish_control(b'{"close": {"tags": {"user": "7"}, "code": 4401}}')
        await until(lambda: member.codes)
        assert member.codes == [4401]
        assert own.stats()["poison"] == len(ORDERS)
        control.discard(member)
    assert "refused an order of another process to close sockets: close code 1005" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("exc", SURPRISES, ids=repr)
@pytest.mark.parametrize("place", ["read_batch", "FanOut"])
async def test_after_a_failed_delivery_there_is_a_gap_and_the_next_message(
    place: str, exc: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub(URL) as own, own.subscribe("room") as events:
        await own.publish("room", b"before")
        assert await anext(events) is not None
        monkeypatch.setattr(batches, place, failing_once(getattr(batches, place), exc))
        await own.publish("room", b"lost")
        assert isinstance(await asyncio.wait_for(anext(events), 20), Gap)
        await own.publish("room", b"after")
        event = await asyncio.wait_for(anext(events), 20)
        assert getattr(event, "payload", None) == b"after"


class Listener:
    def __init__(self, exc: Exception | None = None) -> None:
        self.gaps: list[str] = []
        self._exc = exc

    def on_delivery(self, delivery: Any) -> None: ...

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        if self._exc is not None:
            raise self._exc
        self.gaps.append(reason)


async def test_a_subscriber_that_fails_to_take_a_gap_keeps_it_from_no_other() -> None:
    async with open_hub(URL) as own:
        listeners = [Listener(), Listener(RuntimeError("surprise")), Listener()]
        for listener in listeners:
            await own.add(listener, "room")
        own.lost(["room"], "link lost")
        assert [listener.gaps for listener in listeners] == [["link lost"], [], ["link lost"]]


class FailingSink:
    """Fails once in each of its methods."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.gaps: list[str] = []
        self._deliver: list[Exception] = [RuntimeError("surprise")]
        self._lost: list[Exception] = [RuntimeError("surprise")]

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        if self._deliver:
            raise self._deliver.pop()
        self.heard += [message for _, message in batch]

    def lost(self, channels: Sequence[str], reason: str) -> None:
        if self._lost:
            raise self._lost.pop()
        self.gaps += channels


async def test_the_memory_brokers_reader_goes_on() -> None:
    sink = FailingSink()
    broker = MemoryBroker(BrokerURL.parse(URL), sink)
    await broker.subscribe(["room"])
    for payload in (b"1", b"2"):
        await broker.publish(["room"], payload)
        await until(lambda: not broker._inbox._items)
        await asyncio.sleep(0)
    await until(lambda: sink.heard == [b"2"])
    sink._deliver.append(RuntimeError("surprise"))
    await broker.publish(["room"], b"3")
    await until(lambda: sink.gaps)
    assert sink.gaps == ["room"]
    await broker.aclose()


class Visitor:
    def __init__(self, connections: Connections, exc: Exception | None) -> None:
        self._connections, self._exc = connections, exc
        self.told = False

    def on_drain(self, patience_seconds: float) -> None:
        self.told = True
        self._connections.discard(self)
        if self._exc is not None:
            raise self._exc


async def test_a_guest_that_fails_keeps_no_other_from_being_sent_away() -> None:
    connections = Connections(on_change=lambda: None)
    visitors = [Visitor(connections, exc) for exc in (None, RuntimeError("surprise"), None)]
    for visitor in visitors:
        connections.add(visitor)
    assert await connections.drain(0.2) == 0
    assert all(visitor.told for visitor in visitors)


async def test_a_hub_that_fails_to_drain_or_close_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    hubs = [shared_hub(load_config(f"{URL}-{number}")) for number in range(3)]

    async def fail(*_: Any) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(hubs[1], "drain", fail)
    chained = shutdown._Chained(
        asyncio.get_running_loop(), lambda number, frame: called.append(number)
    )
    chained(signal.SIGTERM, None)
    await until(lambda: called)
    assert called == [signal.SIGTERM]
    assert [own.closed for own in hubs] == [True, False, True]
    again = [shared_hub(load_config(f"{URL}-{number}")) for number in range(3)]
    for own in again[:2]:
        monkeypatch.setattr(own, "aclose", fail)
    await close_shared_hubs()
    assert again[2].closed


def watched(key: str, survivors: Any, tag: str = "key") -> watch.Watched:
    return watch.Watched((tag, key), key, survivors, None, 0.25, 600.0)


@pytest.mark.parametrize("exc", [*SURPRISES, *ENDINGS], ids=repr)
@pytest.mark.parametrize("place", ["survivors", "_next", "check"])
def test_the_login_watch_goes_on(
    place: str, exc: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.per_process, "current", watch.Watch())
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(watch, "usable", lambda logins: logins)
    # Other tests may have configured Django in this process.
    monkeypatch.setattr(watch, "database_hygiene", contextlib.nullcontext)
    monkeypatch.setitem(sys.modules, "django.db", _NoDatabase)  # type: ignore[arg-type]
    closed = threading.Event()
    monkeypatch.setattr(watch, "_close", lambda entry, code: closed.set())
    survivors = failing_once(lambda keys: [], exc) if place == "survivors" else lambda keys: []
    if place != "survivors":
        own = watch.per_process.current
        monkeypatch.setattr(own, place, failing_once(getattr(own, place), exc))
    with watch.watching(watched("1", survivors)):
        assert closed.wait(20), "the task that watches open sockets has ended"


class _NoDatabase:
    class connections:  # noqa: N801
        close_all = staticmethod(lambda: None)


@pytest.mark.parametrize("exc", [SystemExit(1), RuntimeError("surprise")], ids=repr)
def test_one_survey_that_fails_keeps_no_other_socket_from_being_closed(
    exc: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "usable", lambda logins: logins)

    def fail(keys: Sequence[str]) -> Sequence[str]:
        raise exc

    dead, unchecked = watch.invalid_and_unchecked(
        [watched("1", fail), watched("2", lambda keys: [])]
    )
    assert {entry.key for entry in dead} == {"2"}
    assert {entry.key for entry in unchecked} == {"1"}


async def test_an_error_of_reading_ahead_affects_one_socket_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receive_loop, "READ_AHEAD_AFTER_SECONDS", 0.02)
    left = [RuntimeError("surprise")]
    read_ahead = receive_loop.ReceiveLoop.read_ahead

    def fails_once(self: receive_loop.ReceiveLoop) -> None:
        if left:
            raise left.pop()
        read_ahead(self)

    monkeypatch.setattr(receive_loop.ReceiveLoop, "read_ahead", fails_once)
    sockets: list[BaseSocketServer] = []

    class Busy(BaseSocketServer):
        config = URL

        async def receive(self, data: Any) -> None:
            sockets.append(self)
            await go_on.wait()

    go_on = asyncio.Event()
    clients = [SocketClient(Busy.as_asgi) for _ in range(3)]
    for client in clients:
        await client.connect()
        await client.send_json("go")
    leaving = [asyncio.create_task(client.close()) for client in clients]
    # Two of them read on, and notice that their clients leave.
    await until(lambda: sum(not socket.is_alive for socket in sockets) == 2)
    go_on.set()
    await asyncio.gather(*leaving)


async def test_an_idle_client_is_closed_even_if_it_cannot_be_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Idle(BaseSocketServer):
        config = URL
        idle_timeout_seconds = 0.05

    def fail(self: Hub, counter: str, count: int = 1) -> None:
        if counter == "closed_idle":
            raise RuntimeError("surprise")

    monkeypatch.setattr(Hub, "count", fail)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    async with SocketClient(Idle.as_asgi) as client:
        assert await client.receive_close() == 4408


async def test_a_scheduled_call_that_is_cancelled_before_it_begins_holds_up_no_other() -> None:
    with capture_broadcasts("room") as captured:
        broadcaster = Broadcaster(URL)
        async with open_hub(URL):
            before = asyncio.all_tasks()
            broadcaster.broadcast("room", 1)
            for task in asyncio.all_tasks() - before:
                task.cancel()
            await asyncio.wait_for(broadcaster.async_broadcast("room", 2), 20)
    assert captured == [("room", 2)]


async def test_a_scheduled_call_without_a_task_holds_up_no_other() -> None:
    loop = asyncio.get_running_loop()

    def refuse(loop: Any, work: Any, **_: Any) -> Any:
        work.close()
        raise RuntimeError("surprise")

    with capture_broadcasts("room") as captured:
        broadcaster = Broadcaster(URL)
        async with open_hub(URL):
            loop.set_task_factory(refuse)
            with contextlib.suppress(RuntimeError):
                broadcaster.broadcast("room", 1)
            loop.set_task_factory(None)
            await broadcaster.async_broadcast("room", 2)
    assert captured == [("room", 2)]


async def test_a_broadcaster_whose_subscription_failed_is_subscribed_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broadcaster = Broadcaster(URL)
    own = shared_hub(load_config(URL))
    subscribe = own._broker.subscribe
    monkeypatch.setattr(own._broker, "subscribe", failing_once(subscribe, RuntimeError("surprise")))
    with pytest.raises(RuntimeError, match="surprise"):
        await broadcaster.async_subscribe("room")
    with pytest.raises(CallError, match="subscribe to a channel"):
        await asyncio.wait_for(broadcaster.async_receive_broadcast(), 5)
    await broadcaster.async_subscribe("room")
    await broadcaster.async_broadcast("room", 1)
    assert await asyncio.wait_for(broadcaster.async_receive_broadcast(), 20) == ("room", 1)
    await broadcaster.aclose()


async def test_a_socket_ends_even_if_its_close_frame_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Leaves(BaseSocketServer):
        config = URL

        async def connect(self) -> None:
            monkeypatch.setattr(Outbox, "close", failing_once(Outbox.close, RuntimeError("no")))
            await self.async_close(4000)

    client = SocketClient(Leaves.as_asgi)
    with contextlib.suppress(SocketClosed):
        await client.connect()
        await client.receive_close(5)
    await asyncio.wait_for(client.close(), 20)
