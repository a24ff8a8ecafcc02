"""The life of one websocket, over memory:// and in process."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, ClassVar

import pytest

from django_sockets import Reject
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient, SocketClosed


class Recorder(BaseSocketServer):
    """Notes what happens to it, in order, on the class."""

    config = "memory://lifecycle"
    log: ClassVar[list[Any]] = []

    def __init_subclass__(cls) -> None:
        cls.log = []

    def disconnect(self, code: int) -> None:
        self.log.append(("disconnect", code))


async def test_a_handler_of_either_kind_gets_connect_frames_and_disconnect_in_order() -> None:
    class Sync(Recorder):
        def connect(self) -> None:
            self.log.append("connect")

        def receive(self, data: Any) -> None:
            self.log.append(data)

    class Async(Recorder):
        async def connect(self) -> None:
            self.log.append("connect")

        async def receive(self, data: Any) -> None:
            self.log.append(data)

    for kind in (Sync, Async):
        async with SocketClient(kind.as_asgi) as client:
            for number in range(50):
                await client.send_json({"n": number})
            await client.close(4001)
        frames = [{"n": number} for number in range(50)]
        assert kind.log == ["connect", *frames, ("disconnect", 4001)], kind.__name__


async def test_frames_of_one_socket_are_never_handled_side_by_side_nor_hold_up_another() -> None:
    busy = threading.Event()
    go_on = threading.Event()
    inside = 0

    class Slow(Recorder):
        def receive(self, data: Any) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            busy.set()
            assert go_on.wait(5)
            inside -= 1

    class Quick(Recorder):
        def receive(self, data: Any) -> None:
            self.send(data)

    async with SocketClient(Slow.as_asgi) as slow, SocketClient(Quick.as_asgi) as quick:
        await slow.send_json(1)
        await slow.send_json(2)
        assert await asyncio.to_thread(busy.wait, 5)
        await quick.send_json("still served")
        assert await quick.receive_json() == "still served"
        go_on.set()


async def test_a_plain_handler_may_block_because_it_is_not_on_the_loop() -> None:
    class Where(Recorder):
        def connect(self) -> None:
            self.log.append(threading.current_thread())
            self.send("ran")

        async def receive(self, data: Any) -> None:
            self.log.append(threading.current_thread())
            await self.async_send("ran")

    async with SocketClient(Where.as_asgi) as client:
        await client.receive()
        await client.send_json(1)
        await client.receive()
    plain, coroutine, _ = Where.log
    assert plain is not threading.current_thread()
    assert coroutine is threading.current_thread()


async def test_a_client_that_leaves_in_the_middle_of_a_send_leaves_nothing_behind() -> None:
    subscribed, sending = asyncio.Event(), asyncio.Event()
    frames: asyncio.Queue[Any] = asyncio.Queue()

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            sending.set()
            await asyncio.Event().wait()  # The client does not read any more.

    class Member(Recorder):
        async def connect(self) -> None:
            await self.async_subscribe("room")
            self.log.append(self)
            subscribed.set()

    scope = {"type": "websocket", "path": "/", "headers": []}
    served = asyncio.ensure_future(Member.as_asgi(scope, frames.get, send))
    frames.put_nowait({"type": "websocket.connect"})
    await asyncio.wait_for(subscribed.wait(), 5)
    await Broadcaster("memory://lifecycle").async_broadcast("room", "never taken")
    await asyncio.wait_for(sending.wait(), 5)
    frames.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await asyncio.wait_for(served, 5)
    member, ended = Member.log
    assert ended == ("disconnect", 1001)
    assert member._connection.hub is not None
    assert member._connection.hub.channels_of(member._connection.delivery) == frozenset()


async def test_what_looks_like_a_marker_is_delivered_as_it_is() -> None:
    class Member(Recorder):
        async def connect(self) -> None:
            await self.async_subscribe("room")
            for data in MARKERS:
                await self.async_broadcast("room", data)

    async with SocketClient(Member.as_asgi) as client:
        assert [await client.receive_json() for _ in MARKERS] == MARKERS


MARKERS = ["msg:pubsub.0001", "\u00d7DS\x01", {"type": "websocket.close"}, "", None, [], 0, "{"]


async def test_what_a_handler_sends_reaches_the_client_as_json_raw_or_binary() -> None:
    class Sender(Recorder):
        async def connect(self) -> None:
            await self.async_send({"a": [1, "ü"]})
            await self.async_send("plain", raw=True)
            await self.async_send(b"\x00\x01")

        def receive(self, data: Any) -> None:
            self.send(data)
            self.send(b"raw", raw=True)

    async with SocketClient(Sender.as_asgi) as client:
        assert await client.receive() == '{"a": [1, "ü"]}'
        assert await client.receive() == "plain"
        assert await client.receive() == b"\x00\x01"
        await client.send_bytes(b'{"json": "in a binary frame"}')
        assert await client.receive_json() == {"json": "in a binary frame"}
        assert await client.receive() == b"raw"


async def test_events_carry_exactly_the_keys_that_asgi_asks_for() -> None:
    events: list[Any] = []
    frames: asyncio.Queue[Any] = asyncio.Queue()

    async def send(event: Any) -> None:
        events.append(event)

    class Echo(Recorder):
        async def receive(self, data: Any) -> None:
            await self.async_send(data)

    scope = {"type": "websocket", "path": "/", "headers": []}
    served = asyncio.ensure_future(Echo.as_asgi(scope, frames.get, send))
    frames.put_nowait({"type": "websocket.connect"})
    frames.put_nowait({"type": "websocket.receive", "text": None, "bytes": b'"both keys"'})
    frames.put_nowait({"type": "websocket.disconnect"})
    await asyncio.wait_for(served, 5)
    assert events == [
        {"type": "websocket.accept"},
        {"type": "websocket.send", "text": '"both keys"'},
    ]


@pytest.mark.parametrize("how", ["close", "async_close", "error", "client", "cancelled"])
async def test_disconnect_runs_once_and_no_subscription_stays_however_it_ends(how: str) -> None:
    class Member(Recorder):
        async def connect(self) -> None:
            await self.async_subscribe("room")

        async def receive(self, data: Any) -> None:
            if data == "async_close":
                await self.async_close(4002)
            elif data == "close":
                self.close(4002)
            else:
                raise LookupError(data)

    members: list[Member] = []
    original = Member.configure
    Member.configure = lambda self: members.append(self) or original(self)  # type: ignore[func-returns-value, method-assign]
    client = SocketClient(Member.as_asgi)
    await client.connect()
    await client.send_json(how) if how not in ("client", "cancelled") else None
    if how == "client":
        await client.close(4009)
    elif how == "cancelled":
        await asyncio.sleep(0.05)
        assert client._task is not None
        client._task.cancel()
        await asyncio.wait([client._task])
        assert client._task.cancelled(), "the server's cancellation was swallowed"
    else:
        await client.receive_close()
        await client.close()
    codes = {"client": 4009, "cancelled": 1001, "error": 1011}
    assert Member.log == [("disconnect", codes.get(how, 4002))]
    (member,) = members
    assert member._connection.hub is not None
    assert "room" not in member._connection.hub.subscriptions.channels


async def test_an_exception_is_logged_and_closes_only_that_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Recorder):
        def receive(self, data: Any) -> None:
            raise ZeroDivisionError("on purpose")

    async with SocketClient(Fails.as_asgi) as other, SocketClient(Fails.as_asgi) as client:
        await client.send_json(1)
        assert await client.receive_close() == 1011
        assert await other.receive_nothing()
    assert any(
        record.exc_info and "on purpose" in str(record.exc_info[1]) for record in caplog.records
    )


async def test_an_exception_in_connect_does_not_leave_the_client_hanging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Recorder):
        def connect(self) -> None:
            raise LookupError("on purpose")

    async with SocketClient(Fails.as_asgi) as client:
        assert await client.receive_close() == 1011
    assert Fails.log == [("disconnect", 1011)]


async def test_a_class_may_answer_errors_and_go_on(caplog: pytest.LogCaptureFixture) -> None:
    class Forgiving(Recorder):
        def receive(self, data: Any) -> None:
            self.send(1 / data)

        def error(self, exc: Exception) -> None:  # type: ignore[override]
            self.send({"error": type(exc).__name__})

        async def decode_error(self, exc: Exception) -> None:
            await self.async_send({"error": "not JSON"})

    async with SocketClient(Forgiving.as_asgi) as client:
        await client.send_json(0)
        assert await client.receive_json() == {"error": "ZeroDivisionError"}
        await client.send_text("{")
        assert await client.receive_json() == {"error": "not JSON"}
        await client.send_json(2)
        assert await client.receive_json() == 0.5


@pytest.mark.parametrize(
    "frame", ["{", "NaN", "[1,", "", "[" * 100_000, b"\xff\xfe\xfd", "Infinity", "[1e999]"]
)
async def test_a_frame_that_is_not_json_closes_with_1007(frame: str | bytes) -> None:
    async with SocketClient(Recorder.as_asgi) as client:
        if isinstance(frame, bytes):
            await client.send_bytes(frame)
        else:
            await client.send_text(frame)
        assert await client.receive_close() == 1007


async def test_a_frame_over_the_limit_closes_with_1009() -> None:
    class Small(Recorder):
        max_message_bytes = 10

        async def receive(self, data: Any) -> None:
            await self.async_send(len(data))

    async with SocketClient(Small.as_asgi) as client:
        await client.send_text('"12345678"')
        assert await client.receive_json() == 8
        await client.send_text('"ääää9"')
        assert await client.receive_close() == 1009


async def test_authorize_refuses_before_the_handshake_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Guarded(Recorder):
        def authorize(self) -> bool | None:
            path = self.scope["path"]
            if path == "/reject":
                raise Reject(status=401)
            if path == "/raise":
                raise RuntimeError("on purpose")
            return None if path == "/ok" else False

        def connect(self) -> None:
            self.log.append("connect")

    for path, status in [("/false", 403), ("/reject", 401), ("/raise", 403)]:
        with pytest.raises(HandshakeRefused) as refused:
            await SocketClient(Guarded.as_asgi, path).connect()
        assert refused.value.status == status, path
    assert Guarded.log == []
    async with SocketClient(Guarded.as_asgi, "/ok"):
        pass
    assert Guarded.log == ["connect", ("disconnect", 1000)]


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"origin": "http://testserver"}, True),
        ({"origin": "http://TESTSERVER:80"}, True),
        ({"origin": "https://friend.example"}, True),
        ({"origin": "https://sub.friends.example"}, True),
        ({"origin": "https://friends.example"}, False),
        ({"origin": "http://sub.friends.example"}, False),
        ({"origin": "https://sub.friends.example:8443"}, False),
        ({"origin": "https://evilfriends.example"}, False),
        ({"origin": "https://testserver"}, False),
        ({"origin": "http://testserver:8000"}, False),
        ({"origin": "http://testserver.evil.example"}, False),
        ({"origin": "http://evil.example/http://testserver"}, False),
        ({"origin": "http://user@testserver"}, False),
        ({"origin": "null"}, False),
        ({"origin": "file://"}, False),
        ({"origin": ""}, False),
    ],
)
async def test_a_page_from_elsewhere_is_refused_unless_named(
    headers: dict[str, str], accepted: bool
) -> None:
    class Guarded(Recorder):
        allowed_origins = ("https://friend.example", "https://*.friends.example")

    client = SocketClient(Guarded.as_asgi, headers=headers)
    if accepted:
        await client.connect()
    else:
        with pytest.raises(HandshakeRefused):
            await client.connect()
    await client.close()


async def test_without_an_origin_only_a_request_without_cookies_is_accepted() -> None:
    def client(*names: bytes) -> SocketClient:
        client = SocketClient(Recorder.as_asgi)
        client.scope["headers"] = [(b"host", b"testserver"), *((name, b"x") for name in names)]
        return client

    async with client():
        pass
    with pytest.raises(HandshakeRefused):
        await client(b"cookie").connect()
    with pytest.raises(HandshakeRefused):
        await client(b"origin", b"origin").connect()


async def test_a_close_is_sent_once_and_nothing_after_it() -> None:
    class Closes(Recorder):
        async def connect(self) -> None:
            await self.async_close(4003)
            await self.async_send("too late")
            await self.async_close(4004)

    client = SocketClient(Closes.as_asgi)
    await client.connect()
    with pytest.raises(SocketClosed) as closed:
        await client.receive()
    assert closed.value.code == 4003
    await client.close()
    assert client._from_app.empty()


async def test_disconnect_may_be_written_without_a_code() -> None:
    ended = []

    class Short(BaseSocketServer):
        def disconnect(self) -> None:  # type: ignore[override]
            ended.append(True)

    async with SocketClient(Short.as_asgi):
        pass
    assert ended == [True]


async def test_a_class_brings_its_own_encoder_decoder_and_subprotocol() -> None:
    class Backwards(Recorder):
        def configure(self) -> None:
            self.ws_encoder = lambda data: f"<{data}>"
            self.ws_decoder = lambda frame: frame[::-1]
            self.subprotocol = "backwards"

        async def connect(self) -> None:
            await self.async_subscribe("backwards")

        async def receive(self, data: Any) -> None:
            await self.async_broadcast("backwards", data)

    async with SocketClient(Backwards.as_asgi, subprotocols=["backwards"]) as client:
        assert client.subprotocol == "backwards"
        await client.send_text("abc")
        assert await client.receive() == "<cba>"


async def test_an_encoder_may_make_binary_frames() -> None:
    class Binary(Recorder):
        ws_encoder_is_bytes = True
        ws_encoder = staticmethod(lambda data: repr(data))

        async def connect(self) -> None:
            await self.async_send([1])

    async with SocketClient(Binary.as_asgi) as client:
        assert await client.receive() == b"[1]"


async def test_a_class_may_handle_broadcasts_itself_and_in_order() -> None:
    class Counts(Recorder):
        async def connect(self) -> None:
            await self.async_subscribe(["a", "b"])

        async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
            await self.async_send([channel, data])

    async with SocketClient(Counts.as_asgi) as client:
        broadcaster = Broadcaster("memory://lifecycle")
        for number in range(20):
            await broadcaster.async_broadcast("ab"[number % 2], number)
        got = [await client.receive_json() for _ in range(20)]
    assert got == [["ab"[number % 2], number] for number in range(20)]


async def test_unsubscribe_stops_one_channel_and_keeps_the_others() -> None:
    class Member(Recorder):
        async def connect(self) -> None:
            await self.async_subscribe(["a", "b"])

        async def receive(self, data: Any) -> None:
            await self.async_unsubscribe("a")
            await self.async_broadcast("a", "unheard")
            await self.async_broadcast("b", "heard")

    async with SocketClient(Member.as_asgi) as client:
        await client.send_json(0)
        assert await client.receive_json() == "heard"
        assert await client.receive_nothing()


async def test_a_socket_with_too_many_subscriptions_is_told_so() -> None:
    class Greedy(Recorder):
        max_subscriptions = 3

        async def connect(self) -> None:
            await self.async_subscribe(["a", "b", "c"])
            try:
                await self.async_subscribe("d")
            except Exception as exc:
                await self.async_send(str(exc))

    async with SocketClient(Greedy.as_asgi) as client:
        assert "max_subscriptions" in await client.receive_json()


async def test_a_subscribe_after_the_client_has_left_subscribes_nothing() -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    class Late(Recorder):
        async def connect(self) -> None:
            entered.set()
            await left.wait()
            await self.async_subscribe("late")
            connection = self._connection
            self.log.append(connection.shared_hub().channels_of(connection.delivery))

    client = SocketClient(Late.as_asgi)
    await client.connect()
    await entered.wait()
    await client._to_app.put({"type": "websocket.disconnect", "code": 1001})
    await asyncio.sleep(0.05)
    left.set()
    await client.close()
    assert Late.log == [frozenset(), ("disconnect", 1001)]


async def test_a_socket_without_a_side_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    socket = BaseSocketServer({}, None, None, "memory://")
    with caplog.at_level(logging.WARNING):
        await socket.async_send("nobody hears it")
        await socket.async_send("nor this")
    assert len([record for record in caplog.records if "send callable" in str(record.msg)]) == 1


async def test_broadcasts_wait_for_a_socket_whose_listeners_were_not_started() -> None:
    socket = BaseSocketServer({}, None, None, "memory://by-hand")
    await socket.async_subscribe("room")
    await socket.async_broadcast("room", {"n": 1})
    assert await socket.async_receive_broadcast() == ("room", {"n": 1})


async def test_plain_http_is_answered_and_lifespan_is_served() -> None:
    events: list[Any] = []
    incoming: asyncio.Queue[Any] = asyncio.Queue()

    async def send(event: Any) -> None:
        events.append(event)

    await Recorder.as_asgi({"type": "http"}, incoming.get, send)
    assert events[0]["status"] == 426
    events.clear()
    hub = shared_hub(load_config("memory://lifecycle"))
    incoming.put_nowait({"type": "lifespan.startup"})
    incoming.put_nowait({"type": "lifespan.shutdown"})
    await Recorder.as_asgi({"type": "lifespan"}, incoming.get, send)
    assert [event["type"] for event in events] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert hub.closed


async def test_a_client_that_does_not_read_is_closed_and_delays_no_other() -> None:
    joined = asyncio.Event()

    class Small(Recorder):
        outbox_messages = 4

        async def connect(self) -> None:
            await self.async_subscribe("busy")
            await self.async_send("joined")

    async def stuck(event: Any) -> None:
        if event["type"] == "websocket.send":
            joined.set()
            await asyncio.Event().wait()

    frames: asyncio.Queue[Any] = asyncio.Queue()
    frames.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/", "headers": []}
    served = asyncio.ensure_future(Small.as_asgi(scope, frames.get, stuck))
    await asyncio.wait_for(joined.wait(), 5)
    async with SocketClient(Small.as_asgi) as healthy:
        assert await healthy.receive_json() == "joined"
        for number in range(30):
            await Broadcaster("memory://lifecycle").async_broadcast("busy", number)
        assert [await healthy.receive_json() for _ in range(30)] == list(range(30))
        await asyncio.wait_for(served, 5)
        assert Small.log == [("disconnect", 1013)]


async def test_a_hook_of_the_class_gets_what_is_subscribed_right_after_the_listeners_started() -> (
    None
):
    heard: asyncio.Queue[Any] = asyncio.Queue()
    sent: list[Any] = []

    class Own(BaseSocketServer):
        config = "memory://right-after"

        async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
            heard.put_nowait((channel, data))

    async def send(event: Any) -> None:
        sent.append(event)

    incoming: asyncio.Queue[Any] = asyncio.Queue()
    socket = Own({}, incoming.get, send)
    socket.start_listeners()
    await socket.async_subscribe("room")
    await socket.async_broadcast("room", 1)
    assert await asyncio.wait_for(heard.get(), 5) == ("room", 1)
    assert sent == []
    incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
