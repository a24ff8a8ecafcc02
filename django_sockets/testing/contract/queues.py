"""Queues: `django_sockets.broker.SupportsQueue`. A broker without them skips these tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ...broker import Broker, SupportsQueue
from ...errors import BrokerClosed
from ...hub.hub import Hub, open_hub
from ...hub.queues import Queues
from ...registry import open_broker
from .. import ledger
from .base import ContractTests, RecordingSink, patient

LONG_SECONDS = 60.0


def queues_of(hub: Hub) -> Queues:
    assert hub.queues is not None
    return hub.queues


async def push(hub: Hub, queue: str, payload: bytes, capacity: int = 100) -> bool:
    return await queues_of(hub).push(queue, payload, capacity=capacity, expiry_seconds=LONG_SECONDS)


async def pop(hub: Hub, queue: str) -> bytes | None:
    entry, _ = await queues_of(hub).pop(queue)
    return None if entry is None else entry.payload


class QueueContract(ContractTests):
    """The promises of `SupportsQueue`."""

    @pytest_asyncio.fixture
    async def queue_hub(self, broker_url: str) -> AsyncIterator[Hub]:
        """A hub whose broker has queues."""
        async with open_hub(patient(broker_url)) as hub:
            if hub.queues is None:
                pytest.skip("the broker has no queues")
            yield hub

    async def test_a_queue_keeps_messages_in_order_without_a_reader(
        self, queue_hub: Hub, room: str
    ) -> None:
        for number in range(20):
            assert await push(queue_hub, room, b"%d" % number)
        assert [await pop(queue_hub, room) for _ in range(21)] == [
            *(b"%d" % number for number in range(20)),
            None,
        ]

    async def test_each_queued_message_goes_to_one_of_several_readers(
        self, broker_url: str, queue_hub: Hub, room: str
    ) -> None:
        taken: list[list[int]] = [[], [], []]
        done = asyncio.Event()

        async def read(numbers: list[int]) -> None:
            async with open_hub(patient(broker_url)) as hub:
                while not done.is_set():
                    payload = await pop(hub, room)
                    if payload is not None:
                        numbers.append(int(payload))
                        if sum(map(len, taken)) == 200:
                            done.set()
                    await asyncio.sleep(0)

        readers = [asyncio.ensure_future(read(numbers)) for numbers in taken]
        async with open_hub(patient(broker_url)) as other:
            for number in range(0, 200, 2):
                assert await push(queue_hub, room, b"%d" % number, 1000)
                assert await push(other, room, b"%d" % (number + 1), 1000)
        try:
            await asyncio.wait_for(done.wait(), ledger.PATIENCE_SECONDS)
        finally:
            done.set()
            await asyncio.gather(*readers)
        assert sorted(number for numbers in taken for number in numbers) == [*range(200)]
        assert all(numbers == sorted(numbers) for numbers in taken)

    async def test_a_full_queue_refuses_a_message(self, queue_hub: Hub, room: str) -> None:
        pushes = [push(queue_hub, room, b"x", capacity=10) for _ in range(50)]
        assert (await asyncio.gather(*pushes)).count(True) == 10
        assert await pop(queue_hub, room) == b"x"
        assert await push(queue_hub, room, b"room again", capacity=10)
        assert not await push(queue_hub, room, b"too many", capacity=10)

    async def test_a_queued_message_expires(self, queue_hub: Hub, room: str) -> None:
        queues = queues_of(queue_hub)
        await queues.push(room, b"old", capacity=2, expiry_seconds=0.05)
        await push(queue_hub, room, b"new", capacity=2)
        entry, expired = None, 0
        give_up = time.monotonic() + ledger.PATIENCE_SECONDS
        while time.monotonic() < give_up:
            # An expired message takes no room.
            if await push(queue_hub, room, b"newest", capacity=2):
                break
            await asyncio.sleep(0.01)
        entry, expired = await queues.pop(room)
        assert entry is not None
        assert entry.payload == b"new"
        assert expired == 0
        assert await pop(queue_hub, room) == b"newest"
        await queues.push(room, b"old", capacity=2, expiry_seconds=0.001)
        await asyncio.sleep(0.02)
        assert (await queues.pop(room))[0] is None

    async def test_a_doorbell_rings_when_a_queue_is_not_empty_any_more(
        self, queue_hub: Hub, room: str
    ) -> None:
        async with queue_hub.subscribe(room) as events:
            for payload in (b"one", b"two"):
                assert await push(queue_hub, room, payload)
            bell = await asyncio.wait_for(anext(events), ledger.PATIENCE_SECONDS)
            assert getattr(bell, "payload", None) == b""
            assert [await pop(queue_hub, room) for _ in range(3)] == [b"one", b"two", None]
            assert await push(queue_hub, room, b"three")
            bell = await asyncio.wait_for(anext(events), ledger.PATIENCE_SECONDS)
            assert getattr(bell, "payload", None) == b""
            await queue_hub.publish(room, b"fence")
            event = await asyncio.wait_for(anext(events), ledger.PATIENCE_SECONDS)
            assert getattr(event, "payload", None) == b"fence"

    async def test_a_message_that_is_given_back_is_the_next_one(
        self, queue_hub: Hub, room: str
    ) -> None:
        queues = queues_of(queue_hub)
        for payload in (b"one", b"two"):
            await push(queue_hub, room, payload)
        first, _ = await queues.pop(room)
        second, _ = await queues.pop(room)
        assert first is not None
        assert second is not None
        async with queue_hub.subscribe(room) as events:
            await queues.give_back(room, second)
            bell = await asyncio.wait_for(anext(events), ledger.PATIENCE_SECONDS)
            assert getattr(bell, "payload", None) == b""
            await queues.give_back(room, first)
        assert [await pop(queue_hub, room) for _ in range(3)] == [b"one", b"two", None]

    async def test_a_message_with_an_identifier_is_pushed_once(
        self, broker_url: str, queue_hub: Hub, room: str
    ) -> None:
        async with open_hub(patient(broker_url)) as other:
            for hub in (queue_hub, other, queue_hub):
                assert await queues_of(hub).push(
                    room, b"x", capacity=5, expiry_seconds=LONG_SECONDS, once=b"id"
                )
        assert [await pop(queue_hub, room) for _ in range(2)] == [b"x", None]

    async def test_queues_are_cleared_by_the_beginning_of_their_names(
        self, queue_hub: Hub, room: str
    ) -> None:
        names = [f"{room}:{tail}" for tail in ("a", "[b]", "c?", "{d}", "%e", "ü")]
        for name in (*names, f"{room}-other"):
            await push(queue_hub, name, b"x")
        await queues_of(queue_hub).clear(f"{room}:")
        assert [await pop(queue_hub, name) for name in names] == [None] * 6
        assert await pop(queue_hub, f"{room}-other") == b"x"
        for name in names:
            await push(queue_hub, name, b"again")
        await queues_of(queue_hub).clear(f"{room}:[b")
        left = [await pop(queue_hub, name) for name in names]
        assert left == [b"again", None, *[b"again"] * 4]

    async def test_a_queue_carries_any_bytes(self, queue_hub: Hub, room: str) -> None:
        payloads = [b"", bytes(range(256)), b"x" * (1 << 20)]
        for payload in payloads:
            assert await push(queue_hub, room, payload)
        assert [await pop(queue_hub, room) for _ in payloads] == payloads

    async def test_a_closed_broker_has_no_queues(self, broker_url: str, room: str) -> None:
        broker: Broker = open_broker(patient(broker_url), RecordingSink())
        if not isinstance(broker, SupportsQueue):
            pytest.skip("the broker has no queues")
        await broker.queue_pop(room)
        await broker.aclose()
        with pytest.raises(BrokerClosed):
            await broker.queue_pop(room)
        with pytest.raises(BrokerClosed):
            await broker.queue_push(room, b"x", capacity=1, expiry_ms=1000, doorbell=b"")
