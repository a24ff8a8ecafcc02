"""`capture_broadcasts` shows a developer the broadcasts of the code under test."""

from __future__ import annotations

import asyncio
import datetime
import threading
from typing import Any

import pytest

from django_sockets import ChannelError, PayloadTooLarge, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.closing import async_close_sockets
from django_sockets.hub.hub import CONTROL
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, capture_broadcasts, override_broker
from django_sockets.testing.capture import Broadcast


class Room(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("room")

    async def receive(self, data: Any) -> None:
        await self.async_broadcast("room", data)


async def test_what_a_socket_and_a_hub_broadcast_is_recorded_and_still_delivered() -> None:
    with override_broker() as broker:
        async with SocketClient(Room.as_asgi) as client, open_hub(broker) as hub:
            async with capture_broadcasts() as captured:
                await client.send_json({"text": "hello"})
                assert await client.receive_json() == {"text": "hello"}
                await hub.publish(["log", "audit"], b"raw")
            await client.send_json("after the block")
            assert await client.receive_json() == "after the block"
    assert captured == [("room", {"text": "hello"}), ("log", b"raw"), ("audit", b"raw")]
    assert captured[0].channel == "room"
    assert captured[0].data == {"text": "hello"}
    assert captured.on("log") == [b"raw"]


def test_a_plain_script_captures_from_every_thread() -> None:
    with override_broker(), capture_broadcasts() as captured:
        threads = [
            threading.Thread(target=Broadcaster().broadcast, args=("room", n)) for n in range(20)
        ]
        for thread in threads:
            thread.start()
        captured.wait_for(20)
        for thread in threads:
            thread.join()
    assert sorted(captured.on("room")) == list(range(20))


def test_without_delivery_nothing_needs_to_listen_at_the_broker() -> None:
    with override_broker("redis://127.0.0.1:1"), capture_broadcasts(deliver=False) as captured:
        Broadcaster().broadcast("room", "nobody is there")
    assert captured == [("room", "nobody is there")]


async def test_only_the_channel_that_was_asked_for_is_recorded_and_kept_back() -> None:
    with override_broker():
        async with SocketClient(Room.as_asgi) as client:
            await client.send_json("subscribed")
            await client.receive_json()
            with capture_broadcasts("audit", deliver=False) as captured:
                await Broadcaster().async_broadcast(["audit", "room"], 7)
                assert await client.receive_json() == 7
    assert captured == [("audit", 7)]


async def test_an_order_to_close_sockets_is_neither_recorded_nor_kept_back() -> None:
    with override_broker() as broker:
        async with open_hub(broker) as hub, hub.subscribe() as orders:
            await hub.add_control(orders)
            with capture_broadcasts(deliver=False) as captured, capture_broadcasts(CONTROL) as none:
                await async_close_sockets(user=7)
            order = await asyncio.wait_for(anext(aiter(orders)), 5)
    assert (captured, none) == ([], [])
    assert b'"7"' in order.payload  # type: ignore[union-attr]


def test_a_number_is_a_channel_as_everywhere() -> None:
    with override_broker(), capture_broadcasts(7) as captured:
        Broadcaster().broadcast(7, "seven")
    assert captured == [("7", "seven")]
    assert captured.on(7) == ["seven"]
    captured.assert_broadcast(7, "seven")


def test_captures_nest() -> None:
    with override_broker(), capture_broadcasts() as outer:
        Broadcaster().broadcast("a", 1)
        with capture_broadcasts() as inner:
            Broadcaster().broadcast("a", 2)
    assert (outer, inner) == ([("a", 1), ("a", 2)], [("a", 2)])


def test_what_was_refused_was_not_broadcast() -> None:
    with override_broker(), capture_broadcasts(deliver=False) as captured:
        with pytest.raises(ChannelError):
            Broadcaster().broadcast("", 1)
        with pytest.raises(PayloadTooLarge):
            Broadcaster().broadcast("room", b"x" * (17 << 20))
    assert captured == []


def test_a_failed_assertion_shows_the_difference_to_what_comes_closest() -> None:
    with override_broker(), capture_broadcasts() as captured:
        Broadcaster().broadcast("room", {"text": "hello", "when": datetime.date(2030, 1, 2)})
        Broadcaster().broadcast("room", [1, 2, 3])
    captured.assert_broadcast("room")
    captured.assert_broadcast("room", (1, 2, 3))
    captured.assert_broadcast("room", {"text": "hello", "when": datetime.date(2030, 1, 2)})
    with pytest.raises(AssertionError) as wrong_data:
        captured.assert_broadcast("room", {"text": "help", "when": "2030-01-02"})
    assert "-{'text': 'help', 'when': '2030-01-02'}" in str(wrong_data.value)
    assert "+{'text': 'hello', 'when': '2030-01-02'}" in str(wrong_data.value)
    with pytest.raises(
        AssertionError, match="nothing was broadcast on 'hall'; there was on: 'room'"
    ):
        captured.assert_broadcast("hall", 1)


async def test_waiting_ends_with_the_broadcast_or_says_what_came() -> None:
    with override_broker(), capture_broadcasts() as captured:
        Broadcaster().broadcast("room", 1)  # Scheduled: there is a running loop.
        await captured.async_wait_for()
        assert captured == [("room", 1)]
        with pytest.raises(AssertionError, match="1 of 2 broadcasts came"):
            await captured.async_wait_for(2, timeout_seconds=0.01)
        with pytest.raises(AssertionError, match="1 of 2 broadcasts came"):
            await asyncio.to_thread(captured.wait_for, 2, 0.01)


KEPT = {"kept:": {"messages": 3, "seconds": 60}}


async def test_a_kept_broadcast_shows_its_position() -> None:
    """A test renders a page, broadcasts, and subscribes with the position of the page."""
    with override_broker({"url": "memory://", "history": KEPT}), capture_broadcasts() as captured:
        broadcaster = Broadcaster()
        first = await broadcaster.async_position("kept:1")
        for data in ("same", "same", "other"):
            await broadcaster.async_broadcast(["kept:1", "room", "kept:2"], data)
        page = await broadcaster.async_history("kept:1")
    of_kept = [one for one in captured if one.channel == "kept:1"]
    assert [one.position for one in of_kept] == [message.position for message in page.messages]
    assert len({first, *(one.position for one in captured)} - {None}) == 7
    assert {one.position for one in captured if one.channel == "room"} == {None}
    assert captured[0] == ("kept:1", "same")
    assert captured[0] == Broadcast("kept:1", "same")
    assert repr(captured[1]) == "Broadcast(channel='room', data='same')"
    assert f"position={of_kept[0].position!r}" in repr(of_kept[0])


async def test_concurrent_broadcasts_show_their_own_positions() -> None:
    with override_broker({"url": "memory://", "history": KEPT}), capture_broadcasts() as captured:
        broadcaster = Broadcaster()
        await asyncio.gather(*(broadcaster.async_broadcast("kept:1", n) for n in range(3)))
        page = await broadcaster.async_history("kept:1")
    assert {one.data: one.position for one in captured} == {
        message.data: message.position for message in page.messages
    }


def test_without_delivery_there_is_no_position() -> None:
    with (
        override_broker({"url": "memory://", "history": KEPT}),
        capture_broadcasts(deliver=False) as captured,
    ):
        Broadcaster().broadcast("kept:1", 1)
        assert Broadcaster().history("kept:1").messages == ()
    assert captured[0].position is None


def test_a_test_does_not_read_the_history_of_another() -> None:
    for _ in range(2):
        with override_broker({"url": "memory://", "history": KEPT}):
            assert Broadcaster().history("kept:1").messages == ()
            Broadcaster().broadcast("kept:1", 1)
