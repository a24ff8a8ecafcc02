"""The subscribers of one hub do not affect each other."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from django_sockets import Gap, Message, open_hub
from django_sockets.conf import load_config
from django_sockets.delivery.message import Delivery
from django_sockets.hub.hub import hub_on
from django_sockets.testing.faulty import Faults
from django_sockets.testing.ledger import Ledger, check_stream, listening


class Recorder:
    """A subscriber without a queue."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_delivery(self, delivery: Delivery) -> None:
        self.heard.append(delivery.payload)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        self.heard.append((*channels, reason))


@pytest.mark.parametrize("pause_seconds", [0.03, 0.15, 100])
async def test_a_slow_reader_holds_up_the_others_for_a_second_at_most(
    pause_seconds: float,
) -> None:
    ledger = Ledger()
    async with (
        open_hub("memory://slow-reader?events_queue_size=10") as hub,
        listening(hub, "room") as quick,
        hub.subscribe("room") as slow,
    ):
        events: list[Message | Gap] = []

        async def read_slowly() -> None:
            async for event in slow:
                events.append(event)
                await asyncio.sleep(pause_seconds)

        reading = asyncio.create_task(read_slowly())
        started = time.monotonic()
        for _ in range(2000):
            await hub.publish("room", ledger.write("room"))
        await quick.until_payload(b"publisher 2000 ")
        assert time.monotonic() - started < 3
        assert quick.check(ledger) == []
        reading.cancel()
        await asyncio.wait([reading])
        events += [
            event if isinstance(event, Gap) else Message(channel="room", payload=event.payload)
            for event in slow.drain()
        ]
        assert len(check_stream(events, ledger)) > 1000
        assert {event.reason for event in events if isinstance(event, Gap)} == {"overflow"}
        assert hub.stats()["gaps"] == sum(isinstance(event, Gap) for event in events)


async def test_a_failing_subscriber_does_not_affect_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Recorder):
        def on_delivery(self, delivery: Delivery) -> None:
            raise ZeroDivisionError

    async with open_hub("memory://broken") as hub:
        before, after = Recorder(), Recorder()
        for subscriber in (before, Broken(), after):
            await hub.add(subscriber, ["room"])
        async with listening(hub, "room") as heard:
            with caplog.at_level(logging.ERROR):
                await hub.publish("room", b"1")
                await hub.publish("room", b"2")
                await heard.until_payload(b"2")
        assert before.heard == after.heard == [b"1", b"2"]
        assert "ZeroDivisionError" in caplog.text


async def test_a_subscriber_may_leave_while_a_message_is_handed_out() -> None:
    async with open_hub("memory://leaving") as hub:
        other = Recorder()

        class Leaver(Recorder):
            def on_delivery(self, delivery: Delivery) -> None:
                super().on_delivery(delivery)
                leaving.append(asyncio.ensure_future(hub.remove(self)))

        leaving: list[asyncio.Future[None]] = []
        leaver = Leaver()
        await hub.add(leaver, "room")
        await hub.add(other, "room")
        async with listening(hub, "room") as heard:
            await hub.publish("room", b"1")
            await heard.until_payload(b"1")
            await asyncio.gather(*leaving)
            await hub.publish("room", b"2")
            await heard.until_payload(b"2")
        assert leaver.heard == [b"1"]
        assert other.heard == [b"1", b"2"]
        assert hub.channels_of(leaver) == frozenset()


async def test_a_gap_reaches_the_subscribers_of_its_channels() -> None:
    faults = Faults()
    async with open_hub(faults.around("memory://gaps")) as hub:
        one, two, both = Recorder(), Recorder(), Recorder()
        await hub.add(one, ["a"])
        await hub.add(two, ["b"])
        await hub.add(both, ["b", "a"])
        hub.lost(["a", "nobody's"], "because")
        assert (one.heard, two.heard, both.heard) == ([("a", "because")], [], [("a", "because")])
        faults.gap()
        assert len(both.heard[1]) == 3
        assert set(both.heard[1][:2]) == {"a", "b"}
        assert hub.stats()["gaps"] == 5


async def test_an_overflow_swallows_no_gap() -> None:
    faults = Faults()
    url = "memory://overflow?events_queue_size=2"
    async with open_hub(faults.around(url)) as hub, hub.subscribe("room") as events:
        async with listening(hub, "room") as heard:
            for i in range(5):
                await hub.publish("room", b"%d" % i)
            await heard.until_payload(b"4")
            faults.gap()
        first, second, gap = [await anext(events) for _ in range(3)]
        assert isinstance(first, Message)
        assert isinstance(second, Message)
        assert gap == Gap(channels=("room",), reason="overflow")


async def test_a_cancelled_read_loses_no_event() -> None:
    async with open_hub("memory://cancelled") as hub, hub.subscribe("room") as events:
        for _ in range(3):
            reading = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        await hub.publish("room", b"x")
        assert await asyncio.wait_for(anext(events), 5) == Message(channel="room", payload=b"x")


async def test_the_hub_of_a_loop_is_found_until_it_is_closed() -> None:
    loop = asyncio.get_running_loop()
    config = load_config("memory://found")
    assert hub_on(loop, config) is None
    async with open_hub("memory://found") as hub:
        assert hub_on(loop, config) is hub
        assert hub_on(loop, load_config("memory://other")) is None
        assert hub_on(loop, Faults().around("memory://found")) is None
    assert hub_on(loop, config) is None


def test_a_hub_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        open_hub("memory://")


async def test_a_subscriber_without_channels_is_not_kept() -> None:
    async with open_hub("memory://nothing") as hub:
        await hub.add(Recorder(), [])
        assert hub.stats()["subscribers"] == 0


async def test_repeated_subscriptions_to_the_same_channel_leave_nothing_behind() -> None:
    recorder = Recorder()
    async with open_hub("memory://again") as hub:
        for _ in range(10):
            await hub.add(recorder, "room")
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5000):
                await hub.add(recorder, "room")
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # One pointer kept by each call is 8 bytes. The interpreter keeps some free dicts (5 KiB).
        assert after - before < 5000 * 6
