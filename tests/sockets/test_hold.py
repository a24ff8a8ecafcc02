"""A page gets the state that `connect` or `gap` sends first, and every change after it.

If one of these fails, a page shows an old value until the next change, which may never come.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from django_sockets import CallError, ConfigurationError
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import Settings, load_config
from django_sockets.delivery.hold import HOLD_MESSAGES, Hold
from django_sockets.hub.hub import Hub
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient, SocketClosed
from django_sockets.testing.servers import CacheServer
from support.slow_client import Reluctant

WAIT_SECONDS = 10.0
FEW = 3
MANY = 400
"""More than an outbox takes."""


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest) -> str:
    """A broker of each kind: a bus in the process, and a server with its own delays."""
    name = f"first-{random.getrandbits(48):x}"
    if request.param == "memory":
        return f"memory://{name}"
    server: CacheServer = request.getfixturevalue("valkey_server")
    return f"{server.url}?prefix={name}"


@pytest.fixture
def memory() -> str:
    return f"memory://first-{random.getrandbits(48):x}"


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that has no event."""
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.002)


class Gate:
    """Where a handler on any thread waits for the test, and the test for the handler."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._thread_open = threading.Event()

    def open(self) -> None:
        self._open.set()
        self._thread_open.set()

    def pass_plain(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._thread_open.wait(WAIT_SECONDS)

    async def pass_async(self) -> None:
        self.reached.set()
        await asyncio.wait_for(self._open.wait(), WAIT_SECONDS)

    async def wait_reached(self) -> None:
        await asyncio.wait_for(self.reached.wait(), WAIT_SECONDS)


class Page(BaseSocketServer):
    """Shows one number. Subclasses say when it is read and sent."""

    gate: Gate
    gap_gate: Gate | None = None
    value = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.codes: list[int] = []
        cls.errors: list[Exception] = []

    def disconnect(self, code: int) -> None:
        self.codes.append(code)


class PlainPage(Page):
    def connect(self) -> None:
        self.subscribe("page")
        value = self.value
        self.gate.pass_plain()
        self.send({"state": value})


class AsyncPage(Page):
    async def connect(self) -> None:
        await self.async_subscribe("page")
        value = self.value
        await self.gate.pass_async()
        await self.async_send({"state": value})


class Bare:
    """Broadcasts go to the client without a hook of the class."""


class Telling:
    """A plain `gap` hook."""

    def gap(self: Any, channels: Sequence[str], reason: str) -> None:
        if self.gap_gate is not None:
            self.gap_gate.pass_plain()
        self.send({"gap": reason})


class AsyncTelling:
    async def gap(self: Any, channels: Sequence[str], reason: str) -> None:
        if self.gap_gate is not None:
            await self.gap_gate.pass_async()
        await self.async_send({"gap": reason})


class Handling:
    """Handles each broadcast itself."""

    async def async_handle_received_broadcast(self: Any, channel: str, data: Any) -> None:
        await self.async_send(data)


class Encoding:
    ws_encoder = staticmethod(lambda data: json.dumps(data) + " ")


class TellingAndHandling(AsyncTelling, Handling):
    pass


STYLES = [PlainPage, AsyncPage]
SHAPES = [Bare, Telling, AsyncTelling, Handling, TellingAndHandling, Encoding]


def page(style: type[Page], shape: type, url: str, **attributes: Any) -> type[Any]:
    """A class of its own, whose `connect` waits at a gate of its own between read and send."""
    return type("Page", (shape, style), {"config": url, "gate": Gate(), **attributes})


def hub_of(kind: type[Page]) -> Hub:
    return shared_hub(load_config(kind.config))


async def publish(hub: Hub, values: Sequence[Any], channel: str = "page") -> None:
    """Publish, and wait until the sockets of this process have the message."""
    before = hub.stats()["delivered"]
    for value in values:
        await hub.publish(channel, json.dumps(value).encode(), is_text=True)
    await until(lambda: hub.stats()["delivered"] >= before + len(values))


async def received(client: SocketClient, count: int) -> list[Any]:
    return [await client.receive_json() for _ in range(count)]


def books(hub: Hub) -> dict[str, int]:
    stats = hub.stats()
    names = ("dropped_overflow", "discarded", "gaps", "closed_overflow")
    return {name: stats[name] for name in names if stats[name]}


# The rule


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
async def test_changes_follow_the_state_that_connect_sends(
    style: type[Page], shape: type, url: str
) -> None:
    kind = page(style, shape, url)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, range(1, FEW + 1))
        assert client._from_app.empty()
        kind.gate.open()
        assert await received(client, FEW + 1) == [{"state": 0}, *range(1, FEW + 1)]
        await publish(hub, ["later"])
        assert await client.receive_json() == "later"
        assert books(hub) == {}
    await hub.aclose()


PAGES = 200


@pytest.mark.parametrize("style", ["def", "async def"])
async def test_none_of_200_pages_stays_stale(style: str, url: str) -> None:
    """10 ms pass between read and send, and each value changes once at a random moment of it."""
    values = dict.fromkeys(map(str, range(PAGES)), 0)
    reads: dict[str, asyncio.Event] = {number: asyncio.Event() for number in values}
    loop = asyncio.get_running_loop()

    class Plain(BaseSocketServer):
        config: Any = url

        def connect(self) -> None:
            number = self.scope["path"].strip("/")
            self.subscribe(number)
            value = values[number]
            loop.call_soon_threadsafe(reads[number].set)
            time.sleep(0.01)
            self.send(value)

    class Async(BaseSocketServer):
        config: Any = url

        async def connect(self) -> None:
            number = self.scope["path"].strip("/")
            await self.async_subscribe(number)
            value = values[number]
            reads[number].set()
            await asyncio.sleep(0.01)
            await self.async_send(value)

    kind = Plain if style == "def" else Async
    chance = random.Random(7)
    broadcaster = Broadcaster(kind.config)

    at_once = asyncio.Semaphore(8)

    async def shown_at_the_end(number: str) -> list[Any]:
        async with at_once, SocketClient(kind.as_asgi, f"/{number}") as client:
            await asyncio.wait_for(reads[number].wait(), WAIT_SECONDS)
            await asyncio.sleep(chance.uniform(0, 0.008))
            values[number] = 1
            await broadcaster.async_broadcast([number], 1)
            return [await client.receive_json(), await client.receive_json()]

    shown = await asyncio.gather(*map(shown_at_the_end, values))
    assert [pair for pair in shown if pair != [0, 1]] == []
    await hub_of(kind).aclose()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [Telling, AsyncTelling, TellingAndHandling])
@pytest.mark.parametrize("style", STYLES)
async def test_a_gap_keeps_its_place_among_what_waits(
    style: type[Page], shape: type, memory: str
) -> None:
    kind = page(style, shape, memory)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        hub.lost(["page"], "cut")
        await publish(hub, [3])
        kind.gate.open()
        assert await received(client, 5) == [{"state": 0}, 1, 2, {"gap": "cut"}, 3]
    await hub.aclose()


@pytest.mark.parametrize("shape", [Telling, AsyncTelling, TellingAndHandling])
async def test_what_comes_while_gap_runs_follows_it_however_long_it_takes(
    shape: type, url: str
) -> None:
    """More than an outbox takes, and longer than a slow client may take: it is no slow client."""
    kind = page(AsyncPage, shape, url, gap_gate=Gate(), hold_seconds=0.1)
    kind.gate.open()
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        assert await client.receive_json() == {"state": 0}
        await publish(hub, ["before"])
        assert await client.receive_json() == "before"
        hub.lost(["page"], "cut")
        await kind.gap_gate.wait_reached()
        await publish(hub, range(MANY))
        await asyncio.sleep(0.3)
        await publish(hub, range(MANY, MANY + 10))
        assert client._from_app.empty()
        kind.gap_gate.open()
        assert await received(client, MANY + 11) == [{"gap": "cut"}, *range(MANY + 10)]
        assert books(hub) == {"gaps": 1}
    await hub.aclose()


@pytest.mark.parametrize("shape", [Bare, Telling, Handling])
async def test_all_that_waited_arrives_in_order_also_while_more_comes(
    shape: type, memory: str
) -> None:
    kind = page(AsyncPage, shape, memory)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, range(HOLD_MESSAGES))
        kind.gate.open()
        assert await client.receive_json() == {"state": 0}
        more = range(HOLD_MESSAGES, HOLD_MESSAGES + 3000)
        await asyncio.gather(
            *(hub.publish("page", b"%d" % number, is_text=True) for number in more)
        )
        assert await received(client, more.stop) == list(range(more.stop))
        assert books(hub) == {}
    await hub.aclose()


# Who holds


@pytest.mark.parametrize("where", ["authorize", "task", "thread", "scheduled", "twice"])
async def test_from_wherever_it_is_subscribed_before_connect_returns(
    where: str, memory: str
) -> None:
    gate = Gate()

    class Elsewhere(BaseSocketServer):
        config = memory

        async def authorize(self) -> None:
            if where == "authorize":
                await self.async_subscribe("page")

        async def connect(self) -> None:
            if where == "task":
                await asyncio.create_task(self.async_subscribe("page"))
            elif where == "thread":
                await asyncio.to_thread(self.subscribe, "page")
            elif where == "scheduled":
                self.subscribe("page")
                self.send("first")  # Scheduled behind the other, and after `connect` has returned.
                self._connection.calls.plain(gate.pass_async)
                self.send("state")
                return
            elif where == "twice":
                await self.async_subscribe("other")
                await self.async_subscribe("page")
            await self.async_send("first")
            await gate.pass_async()
            await self.async_send("state")

    hub = hub_of(Elsewhere)  # type: ignore[arg-type]
    async with SocketClient(Elsewhere.as_asgi) as client:
        assert await client.receive_json() == "first"
        await gate.wait_reached()
        await publish(hub, [1, 2])
        assert client._from_app.empty()
        gate.open()
        assert await received(client, 3) == ["state", 1, 2]
    await hub.aclose()


async def test_a_later_subscription_holds_nothing(memory: str) -> None:
    gate = Gate()

    class Later(BaseSocketServer):
        config = memory

        async def receive(self, data: Any) -> None:
            await self.async_subscribe("page")
            await gate.pass_async()
            await self.async_send("handled")

    hub = hub_of(Later)  # type: ignore[arg-type]
    async with SocketClient(Later.as_asgi) as client:
        await client.send_json("subscribe")
        await gate.wait_reached()
        await publish(hub, [1])
        assert await client.receive_json() == 1
        gate.open()
        assert await client.receive_json() == "handled"
    await hub.aclose()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
async def test_a_class_may_opt_out(style: type[Page], shape: type, memory: str) -> None:
    kind = page(style, shape, memory, hold_broadcasts=False)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        assert await received(client, 2) == [1, 2]
        kind.gate.open()
        assert await client.receive_json() == {"state": 0}
    await hub.aclose()


@pytest.mark.parametrize("shape", [Bare, Handling, Telling])
async def test_a_hand_made_socket_delivers_at_once(shape: type, memory: str) -> None:
    kind = page(AsyncPage, shape, memory)
    hub = hub_of(kind)
    sent: asyncio.Queue[Any] = asyncio.Queue()
    frames: asyncio.Queue[Any] = asyncio.Queue()
    socket = kind({}, frames.get, sent.put)
    socket.start_listeners()
    frames.put_nowait({"type": "websocket.connect"})
    await kind.gate.wait_reached()
    await publish(hub, [1])
    kind.gate.open()
    frames.put_nowait({"type": "websocket.disconnect"})
    await until(lambda: kind.codes)
    events = [sent.get_nowait() for _ in range(sent.qsize())]
    assert [json.loads(event["text"]) for event in events[1:]] == [1, {"state": 0}]
    await hub.aclose()


async def test_only_the_socket_reads_its_waiting_broadcasts(memory: str) -> None:
    kind = page(AsyncPage, Bare, memory)

    async def connect(self: Any) -> None:
        await self.async_subscribe("page")
        with pytest.raises(CallError, match="subscribe first"):
            await self.async_receive_broadcast()
        await self.async_send("refused")

    kind.connect = connect
    async with SocketClient(kind.as_asgi) as client:
        assert await client.receive_json() == "refused"
    await hub_of(kind).aclose()


async def test_a_socket_leaves_itself_out_of_what_waits(memory: str) -> None:
    kind = page(AsyncPage, Bare, memory)

    async def connect(self: Any) -> None:
        await self.async_subscribe("page")
        await self.async_broadcast("page", "own", exclude_self=True)
        await self.async_broadcast("page", "all")
        await self.async_send("state")

    kind.connect = connect
    async with SocketClient(kind.as_asgi) as client:
        assert await received(client, 2) == ["state", "all"]
    await hub_of(kind).aclose()


async def test_nothing_of_a_channel_comes_once_it_was_left(memory: str) -> None:
    kind = page(AsyncPage, AsyncTelling, memory)
    hub = hub_of(kind)

    async def connect(self: Any) -> None:
        await self.async_subscribe(["page", "other"])
        await self.gate.pass_async()
        await self.async_unsubscribe("other")
        await self.async_send("state")

    kind.connect = connect
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, ["gone"], "other")
        hub.lost(["other"], "of what is left")
        hub.lost(["other", "page"], "of both")
        await publish(hub, ["stays"])
        kind.gate.open()
        assert await received(client, 3) == ["state", {"gap": "of both"}, "stays"]
        assert books(hub)["discarded"] == 1
    await hub.aclose()


# How it ends


def plain_release(self: Any) -> None:
    self.subscribe("page")
    self.send("state")
    self.release()
    self.gate.pass_plain()
    self.send("end")


async def async_release(self: Any) -> None:
    await self.async_subscribe("page")
    await self.async_send("state")
    await self.async_release()
    await self.gate.pass_async()
    await self.async_send("end")


async def scheduled_release(self: Any) -> None:
    self.subscribe("page")
    self.send("state")
    self.release()
    await self.gate.pass_async()
    await self.async_send("end")


async def release_before(self: Any) -> None:
    await self.async_release()
    await async_release(self)


RELEASES = [plain_release, async_release, scheduled_release, release_before]


@pytest.mark.parametrize("shape", [Bare, Telling, Handling])
@pytest.mark.parametrize("connect", RELEASES)
async def test_a_connect_that_goes_on_releases_the_broadcasts(
    connect: Any, shape: type, memory: str
) -> None:
    kind = page(AsyncPage, shape, memory, connect=connect)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        assert await client.receive_json() == "state"
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        assert await received(client, 2) == [1, 2]
        kind.gate.open()
        assert await client.receive_json() == "end"
    await hub.aclose()


async def test_release_delivers_waiting_broadcasts_and_is_safe_at_any_time(memory: str) -> None:
    kind = page(AsyncPage, AsyncTelling, memory)
    hub = hub_of(kind)

    async def connect(self: Any) -> None:
        await self.async_subscribe("page")
        await self.gate.pass_async()
        await self.async_send("state")
        await asyncio.gather(self.async_release(), self.async_release())
        await self.async_send("behind")
        await self.async_release()

    async def receive(self: Any, data: Any) -> None:
        await self.async_release()
        await asyncio.to_thread(self.release)
        await self.async_send(data)

    async def disconnect(self: Any) -> None:
        await self.async_release()

    kind.connect, kind.receive, kind.disconnect = connect, receive, disconnect
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        kind.gate.open()
        assert await received(client, 4) == ["state", 1, 2, "behind"]
        await client.send_json("any time")
        assert await client.receive_json() == "any time"
    await hub.aclose()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_release_that_is_given_up_goes_on(cancelled: bool, memory: str) -> None:
    """It had more messages to send than one turn of the loop may."""
    kind = page(AsyncPage, Bare, memory)
    hub = hub_of(kind)

    async def connect(self: Any) -> None:
        await self.async_subscribe("page")
        await self.gate.pass_async()
        releasing = asyncio.create_task(self.async_release())
        await asyncio.sleep(0)
        if cancelled:
            releasing.cancel()
        await asyncio.wait([releasing])
        assert releasing.cancelled() is cancelled

    kind.connect = connect
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, range(HOLD_MESSAGES))
        kind.gate.open()
        assert await received(client, HOLD_MESSAGES) == list(range(HOLD_MESSAGES))
        await publish(hub, ["later"])
        assert await client.receive_json() == "later"
    await hub.aclose()


@pytest.mark.parametrize("by", ["class", "setting"])
@pytest.mark.parametrize("style", STYLES)
async def test_a_connect_that_waits_for_its_own_broadcast_is_helped_out(
    style: type[Page], by: str, memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Gate()
    source: Any = {"url": memory, "hold_seconds": 0.1} if by == "setting" else memory
    more = {} if by == "setting" else {"hold_seconds": 0.1}
    kind = page(style, Handling, source, **more)

    def plain(self: Any) -> None:
        self.subscribe("page")
        self.broadcast("page", "own")
        heard.pass_plain()
        self.send("connected")

    async def coroutine(self: Any) -> None:
        await self.async_subscribe("page")
        await self.async_broadcast("page", "own")
        await heard.pass_async()
        await self.async_send("connected")

    async def hear(self: Any, channel: str, data: Any) -> None:
        await self.async_send(data)
        heard.open()

    kind.connect = plain if style is PlainPage else coroutine
    kind.async_handle_received_broadcast = hear
    with caplog.at_level(logging.WARNING, "django_sockets"):
        async with SocketClient(kind.as_asgi) as client:
            assert await received(client, 2) == ["own", "connected"]
    (line,) = [record.getMessage() for record in caplog.records if "hold" in record.getMessage()]
    assert "Page: connect" in line
    assert "0.1 s" in line
    assert "self.release()" in line
    await hub_of(kind).aclose()


def test_how_long_is_a_number_over_0_and_5_without_more() -> None:
    assert Settings().hold_seconds == 5.0
    for wrong in (0, -1, "5", float("nan")):
        with pytest.raises(ConfigurationError, match="hold_seconds"):
            type("Wrong", (BaseSocketServer,), {"hold_seconds": wrong})
    with pytest.raises(ConfigurationError, match="hold_seconds"):
        load_config({"url": "memory://", "hold_seconds": 0})


@pytest.mark.parametrize("seconds", [[0.3, 0.05], [0.05, 0.3], [float("inf"), 0.05]])
async def test_each_class_has_its_own_time(seconds: list[float], memory: str) -> None:
    """One timer serves all classes, so a shorter time may begin later."""
    kinds = [page(AsyncPage, Bare, memory, hold_seconds=each) for each in seconds]
    hub = hub_of(kinds[0])
    async with SocketClient(kinds[0].as_asgi) as one, SocketClient(kinds[1].as_asgi) as two:
        for kind in kinds:
            await kind.gate.wait_reached()
        await publish(hub, [1])
        clients = [one, two] if seconds[0] < seconds[1] else [two, one]
        assert await clients[0].receive_json() == 1
        assert clients[1]._from_app.empty()
        if max(seconds) < 1:
            assert await clients[1].receive_json() == 1
        for kind in kinds:
            kind.gate.open()
    await hub.aclose()


# Too much


@pytest.mark.parametrize("shape", [Telling, AsyncTelling, TellingAndHandling])
@pytest.mark.parametrize("by", ["messages", "bytes"])
async def test_the_oldest_of_too_much_goes_and_one_gap_takes_its_place(
    by: str, shape: type, memory: str
) -> None:
    kind = page(AsyncPage, shape, memory, outbox_bytes=1024 * 1024 if by == "messages" else 999)
    hub = hub_of(kind)
    count, kept = (HOLD_MESSAGES + 50, HOLD_MESSAGES) if by == "messages" else (300, 333)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        values = range(100, 100 + count)  # Three bytes each, of those that are counted in bytes.
        if by == "bytes":
            values = range(100, 1000)
        await publish(hub, values)
        kind.gate.open()
        assert await received(client, 2) == [{"state": 0}, {"gap": "overflow"}]
        assert await received(client, kept) == list(values[-kept:])
        assert books(hub) == {"dropped_overflow": len(values) - kept, "gaps": 1}
    await hub.aclose()


@pytest.mark.parametrize("shape", [Telling, TellingAndHandling])
async def test_too_much_behind_a_gap_is_one_gap_more(shape: type, memory: str) -> None:
    kind = page(AsyncPage, shape, memory, gap_gate=Gate(), outbox_bytes=999)
    kind.gate.open()
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        assert await client.receive_json() == {"state": 0}
        hub.lost(["page"], "cut")
        await kind.gap_gate.wait_reached()
        await publish(hub, range(100, 1000))
        kind.gap_gate.open()
        assert await received(client, 2) == [{"gap": "cut"}, {"gap": "overflow"}]
        assert await received(client, 333) == list(range(667, 1000))
        assert books(hub) == {"dropped_overflow": 900 - 333, "gaps": 2}
    await hub.aclose()


async def test_one_message_of_any_size_waits(memory: str) -> None:
    kind = page(AsyncPage, AsyncTelling, memory, outbox_bytes=100)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, ["x" * 1000])
        kind.gate.open()
        assert await received(client, 2) == [{"state": 0}, "x" * 1000]
        assert books(hub) == {}
    await hub.aclose()


@pytest.mark.parametrize("shape", [Bare, Handling, Encoding])
@pytest.mark.parametrize("style", STYLES)
async def test_a_client_that_cannot_be_told_of_a_gap_is_closed(
    style: type[Page], shape: type, memory: str
) -> None:
    kind = page(style, shape, memory, outbox_bytes=100)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, range(50, 250))
        assert await client.receive_close() == 1013
        kind.gate.open()
    await until(lambda: kind.codes)
    assert kind.codes == [1013]
    assert books(hub) == {"discarded": hub.stats()["delivered"], "closed_overflow": 1}
    await hub.aclose()


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_one_whose_class_is_content_with_less_goes_on(policy: str, memory: str) -> None:
    kind = page(AsyncPage, Bare, memory, outbox_bytes=9, overflow=policy)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, range(100, 110))
        kind.gate.open()
        assert await received(client, 4) == [{"state": 0}, 107, 108, 109]
        assert books(hub) == {"dropped_overflow": 7, "gaps": 1}
    await hub.aclose()


@pytest.mark.parametrize("hook", ["connect", "gap"])
async def test_a_client_that_does_not_read_is_closed_while_a_hook_waits_for_it(
    hook: str, memory: str
) -> None:
    kind = page(AsyncPage, AsyncTelling, memory, outbox_messages=4)
    hub = hub_of(kind)
    async with Reluctant(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        if hook == "gap":
            kind.gate.open()
            await client.until(lambda: client.got)
        (delivery,) = hub.subscriptions.subscribers
        client.stop_reading()
        hub.lost(["page"], "cut")
        kind.gate.open()
        await until(lambda: not delivery._connection.outbox.idle)  # type: ignore[attr-defined]
        await publish(hub, range(5))
        await asyncio.wait_for(client.task, WAIT_SECONDS)
    assert kind.codes == [1013]
    assert books(hub)["closed_overflow"] == 1
    assert books(hub)["discarded"] == 5 + 1  # What the hook has sent is lost, too.
    await hub.aclose()


# The end comes first


async def closes(self: Any) -> None:
    await self.async_close(4000)


async def fails(self: Any) -> None:
    raise LookupError


@pytest.mark.parametrize("how", ["closes", "fails", "closed by others", "leaves", "cancelled"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_what_waits_when_the_socket_ends_is_discarded(
    shape: type, how: str, memory: str
) -> None:
    last: Any = {"closes": closes, "fails": fails}.get(how)
    kind = page(AsyncPage, shape, memory)
    hub = hub_of(kind)
    sockets: list[Any] = []

    async def connect(self: Any) -> None:
        sockets.append(self)
        await self.async_subscribe("page")
        await self.gate.pass_async()
        if last is not None:
            await last(self)
        await self.async_send("never taken" if how != "leaves" else "gone")

    kind.connect = connect
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)
        if event["type"] == "websocket.close":
            await publish(hub, ["while it closes"])

    scope = {"type": "websocket", "path": "/", "headers": []}
    served = asyncio.ensure_future(kind.as_asgi(scope, incoming.get, send))
    await kind.gate.wait_reached()
    await publish(hub, range(FEW))
    code = {"fails": 1011, "leaves": 4001, "cancelled": 1001}.get(how, 4000)
    if how == "cancelled":
        served.cancel()
    elif how == "leaves":
        incoming.put_nowait({"type": "websocket.disconnect", "code": code})
        await until(lambda: not sockets[0].is_alive)
    elif how == "closed by others":
        sockets[0]._connection.on_close_order(code)
        await until(lambda: sockets[0]._connection.closing)
    kind.gate.open()
    await asyncio.wait([served], timeout=WAIT_SECONDS)
    assert served.done()
    assert kind.codes == [code]
    assert [event["type"] for event in sent] == [
        "websocket.accept",
        *(["websocket.close"] if how in ("closes", "fails", "closed by others") else []),
    ]
    assert books(hub) == {"discarded": hub.stats()["delivered"]}
    assert hub.stats()["delivered"] == FEW + sum("close" in event["type"] for event in sent)
    assert not hub.holds._ends
    await hub.aclose()


async def test_a_handler_that_goes_on_after_an_error_keeps_what_waits(memory: str) -> None:
    kind = page(AsyncPage, Bare, memory)
    hub = hub_of(kind)

    async def connect(self: Any) -> None:
        await self.async_subscribe("page")
        await self.gate.pass_async()
        raise LookupError

    async def error(self: Any, exc: Exception) -> None:
        await self.async_send({"error": type(exc).__name__})

    kind.connect, kind.error = connect, error
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        kind.gate.open()
        assert await received(client, 3) == [{"error": "LookupError"}, 1, 2]
    await hub.aclose()


@pytest.mark.parametrize("returns", [True, False])
async def test_a_drain_lets_what_waits_out_if_connect_returns_in_time(
    returns: bool, memory: str
) -> None:
    kind = page(AsyncPage, Bare, memory)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, 2])
        draining = asyncio.create_task(hub.drain(0.5))
        await asyncio.sleep(0)
        if returns:
            kind.gate.open()
            assert await received(client, 3) == [{"state": 0}, 1, 2]
        assert await client.receive_close() == 1012
        kind.gate.open()
        await draining
    assert books(hub) == ({} if returns else {"discarded": 2})
    await hub.aclose()


async def test_one_message_that_cannot_be_encoded_stops_no_other(
    memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    def encode(data: Any) -> str:
        if data == "bad":
            raise LookupError
        return json.dumps(data)

    kind = page(AsyncPage, Bare, memory, ws_encoder=staticmethod(encode))
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1, "bad", 2])
        kind.gate.open()
        assert await received(client, 3) == [{"state": 0}, 1, 2]
    assert "LookupError" in caplog.text
    await hub.aclose()


# What it costs


def holds() -> Iterator[Hold]:
    gc.collect()
    return (each for each in gc.get_objects() if type(each) is Hold)


async def test_a_socket_keeps_nothing_of_it(memory: str) -> None:
    kind = page(AsyncPage, Bare, memory)
    kind.gate.open()
    hub = hub_of(kind)
    before = len(list(holds()))
    async with SocketClient(kind.as_asgi) as client:
        assert await client.receive_json() == {"state": 0}
        await publish(hub, [1])
        assert await client.receive_json() == 1
        (delivery,) = hub.subscriptions.subscribers
        assert delivery.queue is None  # type: ignore[attr-defined]
        assert delivery._connection.outbox.direct  # type: ignore[attr-defined]
        assert not hub.holds._ends
        del delivery
        assert len(list(holds())) == before
    await hub.aclose()


async def test_what_is_closed_is_not_read_any_more(memory: str) -> None:
    kind = page(AsyncPage, Bare, memory)
    hub = hub_of(kind)
    async with SocketClient(kind.as_asgi) as client:
        await kind.gate.wait_reached()
        await publish(hub, [1])
        (delivery,) = hub.subscriptions.subscribers
        await delivery._connection.close(4000)  # type: ignore[attr-defined]
        kind.gate.open()
        with pytest.raises(SocketClosed, match="4000"):
            await client.receive_json()
    await hub.aclose()
