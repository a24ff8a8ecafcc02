"""Publishing and subscribing without faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from ...delivery.events import Message
from ...hub.hub import open_hub
from ..ledger import Ledger, listening
from .base import ContractTests, patient


class DeliveryContract(ContractTests):
    """Publishers, receivers and the order of messages."""

    async def test_a_message_reaches_every_channel_it_is_published_to(
        self, broker_url: str, room: str
    ) -> None:
        channels = [f"{room}:{i}" for i in range(3)]
        async with open_hub(patient(broker_url)) as hub, listening(hub, *channels) as heard:
            await hub.publish(channels[0], b"to one")
            await hub.publish(iter([channels[0], channels[2], channels[0]]), b"to two")
            await hub.publish([], b"to none")
            await hub.publish(channels, b"to all")
            await heard.until(lambda e: e == Message(channel=channels[2], payload=b"to all"))
            await heard.until(lambda e: e == Message(channel=channels[1], payload=b"to all"))
            await heard.until(lambda e: e == Message(channel=channels[0], payload=b"to all"))
            per_channel = {
                channel: [m.payload for m in heard.messages if m.channel == channel]
                for channel in channels
            }
        assert list(per_channel.values()) == [
            [b"to one", b"to two", b"to all"],
            [b"to all"],
            [b"to two", b"to all"],
        ]

    async def test_one_publish_takes_a_thousand_channels(self, broker_url: str, room: str) -> None:
        channels = [f"{room}:{i}" for i in range(1000)]
        ledger = Ledger()
        url = patient(broker_url)
        async with open_hub(url) as hub, listening(hub, *channels) as heard:
            await hub.publish(channels, ledger.write(*channels))
            await hub.publish(channels, ledger.write(*channels))
            await heard.until_messages(2000)
            assert heard.check(ledger) == []

    async def test_each_publisher_is_heard_in_the_order_of_its_calls(
        self, broker_url: str, room: str
    ) -> None:
        channels = [f"{room}:{i}" for i in range(20)]
        ledgers = [Ledger("a"), Ledger("b")]
        url = patient(broker_url)
        async with (
            open_hub(url) as one,
            open_hub(url) as other,
            open_hub(url) as reader,
            listening(reader, *channels) as heard,
        ):
            calls: list[Coroutine[Any, Any, None]] = []
            for i in range(1000):
                for hub, ledger in zip((one, other), ledgers, strict=True):
                    some = [channels[i % 20], channels[i // 20 % 20]]
                    payload = ledger.write(*dict.fromkeys(some), pad_bytes=i % 7 * 500)
                    calls.append(hub.publish(some, payload))
            await asyncio.gather(*calls)
            total = sum(len(n) for ledger in ledgers for n in ledger.numbers.values())
            await heard.until_messages(total)
            assert heard.check(*ledgers) == []
            assert heard.gaps == []

    async def test_a_thousand_callers_publish_at_once(self, broker_url: str, room: str) -> None:
        url = patient(broker_url)
        async with open_hub(url) as hub, listening(hub, room) as heard:
            payloads = [f"caller {i}".encode() for i in range(1000)]
            await asyncio.gather(*(hub.publish(room, payload) for payload in payloads))
            await heard.until_messages(len(payloads))
            assert [message.payload for message in heard.messages] == payloads

    async def test_a_cancelled_publish_harms_no_other(self, broker_url: str, room: str) -> None:
        rng = random.Random(0)  # noqa: S311 - reproducible, no secret
        async with open_hub(patient(broker_url)) as hub, listening(hub, room) as heard:
            kept = []
            for i in range(300):
                payload = b"%d" % i
                call = asyncio.create_task(hub.publish(room, payload))
                for _ in range(rng.randint(0, 4)):
                    await asyncio.sleep(0)
                if call.done() or rng.random() < 0.5:
                    kept.append(payload)
                    await call
                else:
                    call.cancel()
            await hub.publish(room, b"end")
            await heard.until_payload(b"end")
            numbers = [int(message.payload) for message in heard.messages[:-1]]
            assert numbers == sorted(set(numbers))
            assert {b"%d" % number for number in numbers} >= set(kept)
            assert heard.gaps == []
