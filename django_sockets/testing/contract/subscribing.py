"""Subscribing and unsubscribing, in any order and at once."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from ...deadlines import with_deadline
from ...delivery.events import Message
from ...hub.hub import Hub, open_hub
from ...registry import open_broker
from .. import ledger
from ..ledger import listening
from .base import ContractTests, RecordingSink, fence, patient, with_options


class SubscribingContract(ContractTests):
    """The beginning and the end of a subscription."""

    async def test_nothing_published_after_subscribe_returned_is_missed(
        self, broker_url: str, room: str
    ) -> None:
        elsewhere = asyncio.new_event_loop()
        thread = threading.Thread(target=elsewhere.run_forever)
        thread.start()

        def publish(channel: str) -> None:
            """Publish on the other loop while this loop is blocked."""
            call = publisher.publish(channel, channel.encode())
            asyncio.run_coroutine_threadsafe(call, elsewhere).result(ledger.PATIENCE_SECONDS)

        async def open_there() -> Hub:
            return open_hub(patient(broker_url))

        publisher = asyncio.run_coroutine_threadsafe(open_there(), elsewhere).result()
        try:
            async with open_hub(patient(broker_url)) as reader:
                for i in range(300):
                    channel = f"{room}:{i}"
                    async with reader.subscribe(f"{room}:{i % 7}", channel) as events:
                        publish(channel)
                        event = await with_deadline(ledger.PATIENCE_SECONDS, anext(events))
                        assert event == Message(channel=channel, payload=channel.encode())
        finally:
            asyncio.run_coroutine_threadsafe(publisher.aclose(), elsewhere).result()
            elsewhere.call_soon_threadsafe(elsewhere.stop)
            thread.join()
            elsewhere.close()

    async def test_subscribing_twice_delivers_once(self, broker_url: str, room: str) -> None:
        sink = RecordingSink()
        publisher, broker = open_broker(patient(broker_url)), open_broker(patient(broker_url), sink)
        await asyncio.gather(*(broker.subscribe([room, f"{room}:other"]) for _ in range(5)))
        await broker.subscribe([room])
        await publisher.publish([room], b"one")
        await sink.until("message", room, b"one")
        await fence(publisher, broker, sink)
        assert sink.seen.count(("message", room, b"one")) == 1
        await broker.unsubscribe([room])
        await publisher.publish([room], b"two")
        await fence(publisher, broker, sink)
        assert ("message", room, b"two") not in sink.seen
        await asyncio.gather(broker.aclose(), publisher.aclose())

    async def test_local_subscribers_come_and_go_without_harm_to_each_other(
        self, broker_url: str, room: str
    ) -> None:
        async with open_hub(patient(broker_url)) as hub, listening(hub, room) as stays:
            async with listening(hub, room) as leaves:
                await hub.publish(room, b"to both")
                await leaves.until_payload(b"to both")
            await hub.publish(room, b"to one")
            await stays.until_payload(b"to one")
            assert [message.payload for message in leaves.messages] == [b"to both"]
            assert [message.payload for message in stays.messages] == [b"to both", b"to one"]

    @pytest.mark.parametrize("seed", range(6))
    async def test_the_last_call_decides_when_subscribe_and_unsubscribe_race(
        self, broker_url: str, room: str, seed: int
    ) -> None:
        rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
        channels = [f"{room}:{i}" for i in range(4)]
        sink = RecordingSink()
        publisher, broker = open_broker(patient(broker_url)), open_broker(patient(broker_url), sink)
        wanted: set[str] = set()
        calls: list[asyncio.Task[None]] = []
        for _ in range(100):
            some = rng.sample(channels, rng.randint(1, 3))
            if rng.random() < 0.5:
                calls.append(asyncio.create_task(broker.subscribe(some)))
                wanted |= set(some)
            else:
                calls.append(asyncio.create_task(broker.unsubscribe(some)))
                wanted -= set(some)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0, 0, 0.0005)))
        await with_deadline(60, asyncio.gather(*calls))
        await publisher.publish(channels, b"who hears this?")
        for channel in wanted:
            await sink.until("message", channel, b"who hears this?")
        await fence(publisher, broker, sink)
        assert sink.channels() == wanted
        await asyncio.gather(broker.aclose(), publisher.aclose())

    async def test_a_cancelled_subscribe_leaves_no_subscription(
        self, broker_url: str, room: str
    ) -> None:
        sink = RecordingSink()
        publisher, broker = open_broker(patient(broker_url)), open_broker(patient(broker_url), sink)
        kept = f"{room}:kept"
        await broker.subscribe([kept])
        cancelled = []
        for i in range(20):
            call = asyncio.create_task(broker.subscribe([f"{room}:{i}", kept]))
            for _ in range(i % 5):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            if call.cancelled():
                cancelled.append(f"{room}:{i}")
        await publisher.publish([*cancelled, kept], b"?")
        await sink.until("message", kept, b"?")
        await fence(publisher, broker, sink)
        assert sink.channels() == {kept}
        await asyncio.gather(broker.aclose(), publisher.aclose())

    async def test_nothing_arrives_after_unsubscribe(self, broker_url: str, room: str) -> None:
        sink = RecordingSink()
        publisher, broker = open_broker(patient(broker_url)), open_broker(patient(broker_url), sink)
        for i in range(10):

            async def storm(i: int = i) -> None:
                for j in range(100):
                    await publisher.publish([room], b"%d %d" % (i, j))
                    await asyncio.sleep(0)

            await broker.subscribe([room])
            publishing = asyncio.create_task(storm())
            await sink.until("message", room, b"%d 3" % i)
            leaving = asyncio.create_task(broker.unsubscribe([room]))
            await asyncio.sleep(0)
            before = len(sink.seen)
            await asyncio.gather(leaving, publishing)
            await fence(publisher, broker, sink)
            assert sink.seen[before:] == []
        await asyncio.gather(broker.aclose(), publisher.aclose())

    async def test_applications_with_different_prefixes_do_not_hear_each_other(
        self, broker_url: str, room: str
    ) -> None:
        async with (
            open_hub(with_options(broker_url, prefix="shop")) as shop,
            open_hub(with_options(broker_url, prefix="shop2")) as other,
            listening(shop, room) as heard,
        ):
            await other.publish(room, b"of the other application")
            await shop.publish(room, b"own")
            await heard.until_payload(b"own")
            assert [message.payload for message in heard.messages] == [b"own"]
