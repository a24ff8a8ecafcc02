"""An observer is told what the library does, and can neither disturb it nor slow it down."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.inside.delivery import Client, Socket
from django_sockets import Message, Reject, RequestError, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.fanout import TURN_DELIVERIES
from django_sockets.delivery.flow_control import Backlog, Congestion
from django_sockets.errors import PublishError
from django_sockets.observability.measurements import Measurements
from django_sockets.observer import (
    BatchDelivered,
    ConnectFailed,
    ConnectionClosed,
    ConsumerSlow,
    GapSignalled,
    HandshakeEnded,
    HistoryHealed,
    HookCalled,
    LinkLost,
    LinkRestored,
    Observer,
    Published,
    RequestAnswered,
    add_observer,
    remove_observer,
    seam,
)
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import HandshakeRefused, SocketClient
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from django_sockets.typed import on
from support.recording import Recorder, recording

_numbers = itertools.count()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def url() -> str:
    return f"memory://observed-{next(_numbers)}"


class Room(BaseSocketServer):
    async def authorize(self) -> None:
        if self.scope["path"] == "/forbidden":
            raise Reject(status=418)
        if self.scope["path"] == "/broken":
            raise LookupError

    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")

    def receive(self, data: Any) -> None:
        if data == "fail":
            raise LookupError

    def error(self, exc: Exception) -> None:
        pass


def room(url: str) -> Any:
    return type("Room", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]


# What is told


async def test_a_connection_from_its_handshake_to_its_end(url: str, recorder: Recorder) -> None:
    async with SocketClient(room(url)) as client:
        assert await client.receive_json() == "ready"
        await client.send_json("fine")
        await client.send_json("fail")
        await recorder.until(lambda: len(recorder.of(HookCalled)) == 5)
    (handshake,) = recorder.of(HandshakeEnded)
    assert (handshake.socket.__name__, handshake.outcome, handshake.status) == (
        "Room",
        "accepted",
        101,
    )
    hooks = [(event.hook, event.outcome) for event in recorder.of(HookCalled)]
    assert hooks == [
        ("authorize", "ok"),
        ("connect", "ok"),
        ("receive", "ok"),
        ("receive", "error"),
        ("error", "ok"),
    ]
    (closed,) = recorder.of(ConnectionClosed)
    assert (closed.socket.__name__, closed.code) == ("Room", 1000)
    assert all(event.seconds >= 0 for event in [handshake, *recorder.of(HookCalled)])


@pytest.mark.parametrize(("path", "status"), [("/forbidden", 418), ("/broken", 403)])
async def test_a_refused_handshake_is_told_with_its_status(
    url: str, recorder: Recorder, path: str, status: int
) -> None:
    with pytest.raises(HandshakeRefused):
        async with SocketClient(room(url), path):
            pass
    (handshake,) = recorder.of(HandshakeEnded)
    assert (handshake.outcome, handshake.status) == ("refused", status)
    (hook,) = recorder.of(HookCalled)
    assert hook.outcome == ("refused" if path == "/forbidden" else "error")
    assert recorder.of(ConnectionClosed) == []


async def test_an_origin_that_is_refused_and_a_drain_are_told(url: str, recorder: Recorder) -> None:
    app = room(url)
    with pytest.raises(HandshakeRefused):
        async with SocketClient(app, headers={"origin": "https://evil.test"}):
            pass
    shared_hub(load_config(url)).connections.draining = True
    with pytest.raises(HandshakeRefused):
        async with SocketClient(app):
            pass
    assert [event.status for event in recorder.of(HandshakeEnded)] == [403, 503]


async def test_a_batch_is_told_once_with_its_deliveries_and_its_lag(
    url: str, recorder: Recorder
) -> None:
    app = room(url)
    async with SocketClient(app) as one, SocketClient(app) as other:
        for client in (one, other):
            assert await client.receive_json() == "ready"
        hub = shared_hub(load_config(url))
        await hub.publish("room", b'"text"', is_text=True)
        for client in (one, other):
            assert await client.receive_json() == "text"
        await recorder.until(lambda: recorder.of(BatchDelivered))
    (published,) = recorder.of(Published)
    assert (published.broker, published.channels, published.payload_bytes, published.outcome) == (
        "memory", 1, 6, "ok",
    )  # fmt: skip
    (batch,) = recorder.of(BatchDelivered)
    assert (batch.broker, batch.messages, batch.deliveries) == ("memory", 1, 2)
    assert batch.lag_seconds is not None
    assert 0 <= batch.lag_seconds < 30


async def test_what_another_process_published_has_no_lag(url: str, recorder: Recorder) -> None:
    """Messages carry no time, and the clocks of two processes may differ."""
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        (header,) = Publisher().headers(["room"], True)  # It is gone when the message arrives.
        await hub.deliver([("room", header + b"1")])
        await anext(events)
    (batch,) = recorder.of(BatchDelivered)
    assert (batch.messages, batch.deliveries, batch.lag_seconds) == (1, 1, None)


@pytest.mark.parametrize("traced", [False, True])
async def test_a_batch_is_told_with_all_messages_that_had_subscribers(
    url: str, recorder: Recorder, traced: bool
) -> None:
    """Not with a repeated one, one of another program, and one that nobody here subscribes to."""
    publisher = Publisher()

    def message(channel: str) -> tuple[str, bytes]:
        traceparent = f"00-{1:032x}-{1:016x}-01" if traced else None
        return channel, publisher.headers([channel], True, traceparent=traceparent)[0] + b"1"

    async with open_hub(url) as hub, hub.subscribe("a", "b") as events:
        first = message("a")
        others = [message(channel) for channel in ("a", "b", "a", "elsewhere")]
        await hub.deliver([first, *others, first, ("b", b"not ours")])
        await hub.deliver([message("b")])
        await hub.deliver([first])
        for _ in range(5):
            await anext(events)
        delivered = hub.stats()["delivered"]
    batches = recorder.of(BatchDelivered)
    assert [batch.messages for batch in batches] == [4, 1, 0]
    assert [batch.deliveries for batch in batches] == [4, 1, 0]
    assert delivered == 5


async def test_a_batch_that_waits_is_told_when_all_of_it_was_delivered(recorder: Recorder) -> None:
    client, publisher = Client(), Publisher()
    connection = await client.connect()
    hub = shared_hub(load_config(Socket.config))
    before = client.sent

    def batch(messages: int) -> list[tuple[str, bytes]]:
        return [("room", publisher.headers(["room"], True)[0] + b"1") for _ in range(messages)]

    long = 2 * TURN_DELIVERIES
    waiting = [hub.deliver_now(batch(long)), hub.deliver_now(batch(1))]
    assert recorder.of(BatchDelivered) == []  # The first one lets others run; the second one waits.
    for task in waiting:
        assert task is not None
        await task
    assert client.sent - before == long + 1
    batches = recorder.of(BatchDelivered)
    assert [(told.messages, told.deliveries) for told in batches] == [(long, long), (1, 1)]
    client.leave()
    await connection


def test_what_a_plain_thread_publishes_is_told(
    valkey_server: CacheServer, recorder: Recorder
) -> None:
    broadcaster = Broadcaster(valkey_server.url)
    for _ in range(5):  # The first ones are published on the event loop, later ones on this thread.
        broadcaster.broadcast("room", "text")
    outcomes = [(event.broker, event.channels, event.outcome) for event in recorder.of(Published)]
    assert outcomes == [("redis", 1, "ok")] * 5


async def test_a_publish_that_fails_is_told(recorder: Recorder) -> None:
    async with open_hub(f"redis://127.0.0.1:{free_port()}") as hub:
        with pytest.raises(PublishError):
            await hub.publish("room", b"1")
    (published,) = recorder.of(Published)
    assert published.outcome == "failed"
    assert {event.link for event in recorder.of(ConnectFailed)} == {"publishing"}


class Typed(BaseSocketServer):
    @on("fine")
    async def fine(self) -> str:
        return "fine"

    @on("sold-out")
    async def sold_out(self) -> None:
        raise RequestError("sold_out")

    @on("broken")
    async def broken(self) -> None:
        raise LookupError


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("fine", "ok"), ("sold-out", "refused"), ("broken", "error"), ("unknown", "invalid")],
)
async def test_a_request_is_told_with_its_outcome(
    url: str, recorder: Recorder, name: str, outcome: str
) -> None:
    app = type("Typed", (Typed,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    client = SocketClient(app, subprotocols=["django-sockets.v1"], raise_errors=False)
    async with client:
        await client.send_json({"id": 1, "message": {"type": name}})
        await recorder.until(lambda: recorder.of(RequestAnswered))
    assert [event.outcome for event in recorder.of(RequestAnswered)] == [outcome]


async def test_a_lost_connection_its_gap_and_the_next_connection_are_told(
    fresh_valkey_server: CacheServer, recorder: Recorder
) -> None:
    server = fresh_valkey_server
    async with open_hub(server.url) as hub, hub.subscribe("room") as events:
        await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "pubsub")
        await recorder.until(lambda: recorder.of(LinkRestored))
        await anext(events)
    (lost,) = recorder.of(LinkLost)
    assert (lost.broker, lost.link) == ("redis", "subscribing")
    (restored,) = recorder.of(LinkRestored)
    assert restored.link == "subscribing"
    assert restored.seconds > 0
    (gap,) = recorder.of(GapSignalled)
    assert gap.reason == lost.reason


async def test_the_healing_of_a_kept_channel_is_told(
    fresh_valkey_server: CacheServer, recorder: Recorder
) -> None:
    server = fresh_valkey_server
    kept = quick(server.url, history_messages=100, history_seconds=60)
    async with open_hub(kept) as hub, hub.subscribe("room") as events:
        await hub.publish("room", b"1")
        await anext(events)
        await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "pubsub")
        await recorder.until(lambda: recorder.of(HistoryHealed))
        assert recorder.of(GapSignalled) == []
        # With the history removed, the same loss is a gap.
        await asyncio.to_thread(server.execute, "FLUSHALL")
        await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "pubsub")
        await hub.publish("room", b"2")
        await recorder.until(lambda: len(recorder.of(HistoryHealed)) == 2)
    assert [event.outcome for event in recorder.of(HistoryHealed)] == ["healed", "gap"]
    assert all(event.seconds > 0 for event in recorder.of(HistoryHealed))


async def test_a_consumer_that_becomes_slow_is_told_once(recorder: Recorder) -> None:
    backlog = Backlog(2, 1000, Congestion())
    backlog.put("item", 10)
    backlog.put("item", 10)
    later = asyncio.get_running_loop().time() + 1000
    backlog.judge(later)
    backlog.judge(later + 1)
    (slow,) = recorder.of(ConsumerSlow)
    assert (slow.messages, slow.size_bytes) == (2, 20)


# Observers


async def test_an_observer_that_fails_is_logged_and_disturbs_nobody(
    url: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Observer):
        def published(self, event: Published) -> None:
            raise LookupError("broken observer")

        batch_delivered = handshake_ended = published  # type: ignore[assignment]

    failing = Failing()
    add_observer(failing)
    try:
        with caplog.at_level(logging.ERROR, "django_sockets"):
            async with SocketClient(room(url)) as client:
                assert await client.receive_json() == "ready"
                await shared_hub(load_config(url)).publish("room", b"1", is_text=True)
                assert await client.receive_json() == 1
    finally:
        remove_observer(failing)
    assert "an observer failed" in caplog.text
    assert recorder.of(Published)
    assert recorder.of(BatchDelivered)


class Batches(Observer):
    """Overrides only the method for batches."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[BatchDelivered] = []
        self._error = error

    def batch_delivered(self, event: BatchDelivered) -> None:
        self.told.append(event)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("others", [0, 1])
async def test_an_observer_that_fails_does_not_fail_a_batch(url: str, others: int) -> None:
    observers = [Batches(LookupError("broken observer")), *(Batches() for _ in range(others))]
    for observer in observers:
        add_observer(observer)
    try:
        async with open_hub(url) as hub, hub.subscribe("room") as events:
            for _ in range(2):
                await hub.publish("room", b"1")
                assert isinstance(await anext(events), Message)
            assert hub.stats()["gaps"] == 0
    finally:
        for observer in observers:
            remove_observer(observer)
    assert [len(observer.told) for observer in observers] == [2] * len(observers)


async def test_metrics_and_other_observers_count_the_same_batches(url: str) -> None:
    """The metrics take the numbers of a batch, and other observers an event."""
    one, metrics = Batches(), Measurements()
    add_observer(one)
    add_observer(metrics)
    try:
        async with open_hub(url) as hub, hub.subscribe("room") as events:
            for _ in range(3):
                await hub.publish("room", b"1")
                await anext(events)
    finally:
        remove_observer(one)
        remove_observer(metrics)
    assert metrics.counts("messages_received") == {("memory",): 3}
    durations = metrics.distributions("delivery_seconds")[("memory",)]
    assert sum(durations.counts) == len(one.told) == 3
    assert durations.total == pytest.approx(sum(event.seconds for event in one.told))
    again = Measurements()
    for event in one.told:
        again.batch_delivered(event)
    for name in ("delivery_seconds", "broker_lag_seconds"):
        assert again.distributions(name) == metrics.distributions(name)


async def test_an_observer_of_something_else_costs_a_batch_nothing(url: str) -> None:
    class Hooks(Observer):
        def hook_called(self, event: HookCalled) -> None: ...

    hooks, batches = Hooks(), Batches()
    add_observer(hooks)
    try:
        assert seam.observer is not None
        assert seam.count_batch is None
        add_observer(batches)
        assert seam.count_batch is not None
        remove_observer(batches)
        assert seam.count_batch is None
    finally:
        remove_observer(hooks)
        remove_observer(batches)


def test_observers_come_and_go_and_old_ones_may_lack_a_method() -> None:
    class Old:
        def published(self, event: Published) -> None: ...

    one, old = Recorder(), Old()
    add_observer(one)
    add_observer(one)
    add_observer(old)  # type: ignore[arg-type]
    assert seam.observer is not None
    lost = LinkLost(broker="redis", link="publishing", reason="closed")
    seam.observer.link_lost(lost)
    assert one.events == [lost]
    remove_observer(one)
    remove_observer(one)
    remove_observer(old)  # type: ignore[arg-type]
    assert seam.observer is None


async def test_the_metrics_call_three_functions_for_a_batch(url: str) -> None:
    """The promise that they cost little, as a count of calls, which does not depend on time."""
    called: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.endswith(("observer.py", "observed.py", "measurements.py")):
            called[frame.f_code.co_name] += 1

    publisher, metrics, batches = Publisher(), Measurements(), 20
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        add_observer(metrics)
        try:
            for number in range(1 + batches):
                if number == 1:  # The first batch makes the series.
                    sys.setprofile(count)
                await hub.deliver([("room", publisher.headers(["room"], True)[0] + b"1")])
        finally:
            sys.setprofile(None)
            remove_observer(metrics)
        for _ in range(1 + batches):
            await anext(events)
    for function in ("_lag_seconds", "observe"):  # For a batch every 0.01 s.
        called.pop(function, None)
    assert called == {"begin": batches, "end": batches, "count_batch": batches}
    assert metrics.counts("messages_received") == {("memory",): 1 + batches}


# Without observers


async def test_without_observers_nothing_of_this_runs(url: str) -> None:
    """The promise that it costs nothing, as a count of calls, which does not depend on time."""
    modules = ("observer.py", "observed.py", "durations.py")
    called: list[str] = []

    def count(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.endswith(modules) and "django_sockets" in name:
            called.append(f"{name} {frame.f_code.co_name}")

    async def whole_life() -> None:
        async with SocketClient(room(url)) as client:
            assert await client.receive_json() == "ready"
            await shared_hub(load_config(url)).publish("room", b"1", is_text=True)
            assert await client.receive_json() == 1
            await client.send_json("fine")
            shared_hub(load_config(url)).count_gap("missed")

    assert seam.observer is None
    shared_hub(load_config(url))  # A hub may make something for later when it is opened.
    sys.setprofile(count)
    try:
        await whole_life()
    finally:
        sys.setprofile(None)
    assert called == []
    with recording():  # The count itself works.
        sys.setprofile(count)
        try:
            await whole_life()
        finally:
            sys.setprofile(None)
    assert called


@pytest.fixture(autouse=True)
async def no_shared_hubs() -> Any:
    yield
    await close_shared_hubs()
