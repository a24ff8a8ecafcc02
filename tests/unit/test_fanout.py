"""A socket gets the same messages in the same order, with and without its queue."""

from __future__ import annotations

import asyncio
from typing import Any

from django_sockets import open_hub
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.events import MISSED
from django_sockets.delivery.fanout import TURN_DELIVERIES
from django_sockets.delivery.flow_control import Backlog
from django_sockets.delivery.send_queue import SendQueue
from django_sockets.hub.hub import Hub

TEXTS = [b"%d" % number for number in range(10)]


class Direct(SendQueue):
    """A subscriber and the send queue to its client; `send` waits, or fails, when told to."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.heard: list[str] = []
        self.errors: list[Exception] = []
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.error: BaseException | None = None
        self.send = self.handle
        self.owner = self

    async def handle(self, item: Any) -> None:
        await self.let_go.wait()
        if self.error is not None:
            raise self.error
        self.heard.append(item["text"])

    def failed(self, exc: Exception) -> None:
        self.errors.append(exc)

    def dropped(self, items: list[Any]) -> None:
        pass

    def new_backlog(self) -> Backlog:
        return Backlog(9, 999, self.hub.congestion)

    def on_delivery(self, delivery: Any) -> None:
        self.put(delivery.event(), len(delivery.payload))

    def on_gap(self, channels: Any, reason: str) -> None:
        raise AssertionError(reason)


async def three(hub: Hub) -> list[Direct]:
    sockets = [Direct(hub) for _ in range(3)]
    for socket in sockets:
        await hub.add(socket, "room", direct=socket)
    return sockets


async def test_a_waiting_socket_gets_all_in_order_and_delays_no_other() -> None:
    async with open_hub("memory://direct-wait") as hub:
        sockets = await three(hub)
        sockets[1].let_go.clear()
        for text in TEXTS:
            await hub.publish("room", text, is_text=True)
        await asyncio.sleep(0.05)
        everything = [text.decode() for text in TEXTS]
        assert [socket.heard for socket in sockets] == [everything, [], everything]
        sockets[1].let_go.set()
        await sockets[1].run({"text": "last"})
        assert sockets[1].heard == [*everything, "last"]
        await hub.publish("room", b"again", is_text=True)
        await asyncio.sleep(0.05)
        assert {socket.heard[-1] for socket in sockets} == {"again"}


async def test_a_failing_socket_does_not_end_the_others() -> None:
    async with open_hub("memory://direct-fail") as hub:
        sockets = await three(hub)
        sockets[0].error, sockets[1].error = OSError(), asyncio.CancelledError()
        await hub.publish("room", b"1", is_text=True)
        await asyncio.sleep(0.05)
        sockets[1].error = None
        await hub.publish("room", b"2", is_text=True)
        await asyncio.sleep(0.05)
        assert [socket.heard for socket in sockets] == [[], ["2"], ["1", "2"]]
        assert [len(socket.errors) for socket in sockets] == [1, 0, 0]


async def test_closing_a_waiting_socket_does_not_end_the_others() -> None:
    async with open_hub("memory://direct-close") as hub:
        sockets = await three(hub)
        sockets[0].let_go.clear()
        for text in (b"1", b"2"):
            await hub.publish("room", text, is_text=True)
        await asyncio.sleep(0.05)
        sockets[0].end()
        sockets[0].let_go.set()
        await hub.publish("room", b"3", is_text=True)
        await asyncio.sleep(0.05)
        assert [socket.heard for socket in sockets] == [[], ["1", "2", "3"], ["1", "2", "3"]]


async def test_a_socket_in_its_handshake_delays_no_other() -> None:
    async with open_hub("memory://direct-held") as hub:
        sockets = await three(hub)
        sockets[0].hold()
        for number in range(20):  # Twice what may wait.
            await hub.publish("room", b"%d" % number, is_text=True)
        for _ in range(500):
            if len(sockets[1].heard) == 20:
                break
            await asyncio.sleep(0.01)
        assert sockets[1].heard == sockets[2].heard == [str(number) for number in range(20)]
        sockets[0].release()
        await sockets[0].run({"text": "last"})
        assert sockets[0].heard == [*map(str, range(9)), "last"]


async def test_a_text_message_with_invalid_utf8_is_dropped_alone() -> None:
    async with open_hub("memory://direct-poison") as hub:
        sockets = await three(hub)
        await hub.publish("room", b"\xff", is_text=True)
        await hub.publish("room", b"fine", is_text=True)
        await asyncio.sleep(0.05)
        assert [socket.heard for socket in sockets] == [["fine"]] * 3
        assert hub.stats()["poison"] == 1


def burst(*payloads: bytes) -> list[tuple[str, bytes]]:
    """Messages on one channel that arrive together."""
    publisher = Publisher()
    return [("room", publisher.headers(["room"], True)[0] + payload) for payload in payloads]


async def test_a_burst_goes_to_one_client_after_the_other_in_bounded_turns() -> None:
    """To change the connection with each message costs the server more than twice as much."""
    async with open_hub("memory://direct-burst") as hub:
        log: list[int] = []

        class Logging(Direct):
            async def handle(self, item: Any) -> None:
                log.append(self.number)

        for number in range(2):
            socket = Logging(hub)
            socket.number = number  # type: ignore[attr-defined]
            await hub.add(socket, "room", direct=socket)
        await hub.deliver(burst(b"1", b"2", b"3"))
        assert log == [0, 0, 0, 1, 1, 1]
        log.clear()
        await hub.deliver(burst(*[b'"%s"' % (b"x" * 20_000)] * 3))
        assert log == [0, 0, 1, 1, 0, 1]


async def test_a_socket_that_leaves_during_a_burst_gets_no_more_of_it() -> None:
    async with open_hub("memory://direct-leave") as hub:

        class Leaving(Direct):
            async def handle(self, item: Any) -> None:
                self.heard.append(item["text"])
                await self.hub.remove(self)

        socket, other = Leaving(hub), Direct(hub)
        await hub.add(socket, "room", direct=socket)
        await hub.add(other, "room", direct=other)
        await hub.deliver(burst(b"1", b"2", b"3"))
        assert (socket.heard, other.heard) == (["1"], ["1", "2", "3"])


async def test_a_gap_in_a_burst_is_signalled_at_its_position() -> None:
    async with open_hub("memory://direct-hole") as hub:

        class Telling(Direct):
            def on_gap(self, channels: Any, reason: str) -> None:
                self.heard.append(reason)

        sockets = [Telling(hub), Telling(hub)]
        for socket in sockets:
            await hub.add(socket, "room", direct=socket)
        batch = burst(b"1", b"2", b"3", b"4", b"5")
        del batch[2]
        await hub.deliver(batch)
        assert sockets[0].heard == sockets[1].heard == ["1", "2", MISSED, "4", "5"]


async def test_what_was_on_its_way_when_its_connection_ended_is_a_gap() -> None:
    """Two connections receive the same while one takes over from the other."""

    class Other(Direct):
        def on_gap(self, channels: Any, reason: str) -> None:
            self.heard.append(f"gap {reason} {sorted(channels)}")

    async with open_hub("memory://direct-ended") as hub:
        slow, other = Other(hub), Other(hub)
        await hub.add(slow, "room", direct=slow)
        await hub.add(other, "elsewhere", direct=other)
        slow.hold()
        publisher = Publisher()
        behind = ("elsewhere", publisher.headers(["elsewhere"], True)[0] + b"1")
        delivering = asyncio.create_task(hub.deliver([*burst(*TEXTS), behind]))
        await asyncio.sleep(0)
        assert not delivering.done()  # `slow` is full, and is given time.
        delivering.cancel()
        await asyncio.wait([delivering])
        await hub.deliver([behind])
        assert other.heard == ["gap missed ['elsewhere']"]


async def test_a_burst_to_very_many_leaves_the_loop_to_others_in_between() -> None:
    """A handshake, a ping or a page must not wait for the last delivery of a large burst."""
    async with open_hub("memory://direct-turns") as hub:
        sockets = await three(hub)
        batch = burst(*TEXTS * TURN_DELIVERIES)
        delivering = asyncio.create_task(hub.deliver(batch))
        before_the_end = 0
        while not delivering.done():
            await asyncio.sleep(0)
            before_the_end += len(sockets[-1].heard) < len(batch)
        assert before_the_end > 10
        assert [len(socket.heard) for socket in sockets] == [len(batch)] * 3


async def test_batches_of_two_servers_go_one_after_the_other() -> None:
    """When a channel moves, its new server's messages must not overtake those of the old one."""
    async with open_hub("memory://direct-two") as hub:
        sockets = await three(hub)
        texts = [text.decode() for text in TEXTS * TURN_DELIVERIES]
        messages = burst(*(text.encode() for text in texts), b"after it")
        await asyncio.gather(hub.deliver(messages[:-1]), hub.deliver(messages[-1:]))
        assert [socket.heard for socket in sockets] == [[*texts, "after it"]] * 3
