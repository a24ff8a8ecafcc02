"""Applications can test a failing cache without a cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from django_sockets import Message, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import Faults, SocketClient, override_broker
from django_sockets.testing.ledger import Ledger, listening


class Chat(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"missed": list(channels)})


async def test_a_socket_gets_a_gap_for_messages_that_a_test_drops() -> None:
    faults = Faults()
    with override_broker(faults.around("memory://faulty-socket")):
        async with SocketClient(Chat.as_asgi) as client:
            assert await client.receive_json() == "ready"
            broadcaster = Broadcaster()
            faults.pass_on()
            faults.drop()
            for number in (1, 2, 3):
                await broadcaster.async_broadcast("room", number)
            heard: list[Any] = [await client.receive_json() for _ in range(3)]
            assert heard == [1, {"missed": ["room"]}, 3]
            assert faults.done == {"pass": 1, "drop": 1}


async def test_a_delay_holds_up_what_comes_after_it_and_keeps_the_order() -> None:
    faults = Faults()
    async with open_hub(faults.around("memory://delay")) as hub, listening(hub, "room") as heard:
        faults.delay(0.1)
        loop = asyncio.get_running_loop()
        started = loop.time()
        for i in range(3):
            await hub.publish("room", b"%d" % i)
        await heard.until_payload(b"2")
        assert loop.time() - started >= 0.09
        assert heard.events == [Message(channel="room", payload=b"%d" % i) for i in range(3)]


async def test_a_held_message_waits_for_the_next_one_of_its_own_channel() -> None:
    faults = Faults()
    async with open_hub(faults.around("memory://held")) as hub, listening(hub, "a", "b") as heard:
        for channel in ("a", "b"):
            await hub.publish(channel, b"first")
        await faults.until_seen(2)
        faults.reorder()
        for payload, channel in ((b"held", "a"), (b"1", "b"), (b"2", "b"), (b"3", "a")):
            await hub.publish(channel, payload)
        await heard.until_payload(b"3")
        assert [m.payload for m in heard.messages] == [b"first", b"first", b"1", b"2", b"3"]
        assert [gap.channels for gap in heard.gaps] == [("a",)]


async def run(seed: int) -> tuple[dict[str, int], list[Any]]:
    faults = Faults(seed=seed, rate=0.3)
    ledger = Ledger()
    async with open_hub(faults.around("memory://seed")) as hub, listening(hub, "room") as heard:
        faults.pass_on()
        for _ in range(100):
            await hub.publish("room", ledger.write("room"))
        await faults.until_seen(100)
        faults.stop()
        await hub.publish("room", ledger.write("room"))
        await heard.until_payload(b"publisher 101 ")
        heard.check(ledger)
        return dict(faults.done), heard.events


async def test_the_same_seed_makes_the_same_faults() -> None:
    seed = random.randrange(2**32)
    assert await run(seed) == await run(seed)
    assert (await run(1))[0] != (await run(2))[0]
