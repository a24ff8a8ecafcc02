"""Exact moments at which a `receive` is cancelled, with a queue that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from django_sockets import open_hub
from django_sockets.broker import QueueEntry
from django_sockets.integration.channel_layer.boxes import Boxes
from django_sockets.integration.channel_layer.counters import LayerCounters
from django_sockets.integration.channel_layer.names import DIRECT, direct
from django_sockets.integration.channel_layer.options import LayerOptions
from django_sockets.integration.channel_layer.queue_reader import QueueReader
from django_sockets.integration.channel_layer.serializer import Serializer
from support.channel_layers import soon

LOCAL = "specific.0123456789abcdef!a"


@pytest.fixture
async def options() -> LayerOptions:
    serializer = Serializer("msgpack", None, 60)
    return LayerOptions(None, "test", 60, 60, lambda _: 100, serializer, False)


@pytest.fixture
async def boxes(options: LayerOptions) -> Boxes:
    return Boxes(options, LayerCounters(), asyncio.get_running_loop())


async def test_a_reader_that_is_cancelled_when_it_is_woken_wakes_the_next(boxes: Boxes) -> None:
    first, second = [asyncio.create_task(boxes.receive(LOCAL)) for _ in range(2)]
    await asyncio.sleep(0)
    boxes.put([LOCAL], b"one")
    first.cancel()
    assert (await soon(second)).content == b"one"
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )


class OneMessage:
    """A queue with one message, which arrives when the test says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.arrives: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.entries = [QueueEntry(direct(DIRECT, "normal", b"message"), 1)]
        self.given_back = asyncio.Event()

    async def pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        self.asked.set()
        await self.arrives
        return (self.entries.pop() if self.entries else None), 0

    async def give_back(self, queue: str, entry: QueueEntry) -> None:
        self.entries.append(entry)
        self.given_back.set()


@pytest.fixture
async def queue(
    options: LayerOptions, boxes: Boxes
) -> AsyncIterator[tuple[OneMessage, QueueReader]]:
    queue: Any = OneMessage()
    async with open_hub("memory://cancelled") as hub:
        reader = QueueReader("normal", options, LayerCounters(), hub, queue, boxes)
        yield queue, reader
        await reader.aclose()


async def test_a_message_that_arrives_after_its_reader_has_left_goes_back_to_the_queue(
    boxes: Boxes, queue: tuple[OneMessage, QueueReader]
) -> None:
    messages, reader = queue
    call = asyncio.create_task(boxes.receive("normal"))
    await asyncio.sleep(0)
    reader.look()
    await soon(messages.asked.wait())
    call.cancel()
    await asyncio.wait([call])
    messages.arrives.set_result(None)
    await soon(messages.given_back.wait())
    assert len(messages.entries) == 1


async def test_a_message_whose_reader_is_cancelled_when_it_is_woken_goes_back(
    boxes: Boxes, queue: tuple[OneMessage, QueueReader]
) -> None:
    messages, reader = queue
    call = asyncio.create_task(boxes.receive("normal"))
    await asyncio.sleep(0)
    reader.look()
    await soon(messages.asked.wait())
    box = boxes.get("normal")
    messages.arrives.set_result(None)
    while not box.items:  # noqa: ASYNC110 - the moment before the reader runs
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    if call.cancelled():
        reader.look()  # As `Endpoint.receive` does.
        await soon(messages.given_back.wait())
        assert len(messages.entries) == 1


async def test_a_reader_that_is_closed_finishes_the_call_under_way_and_gives_back(
    boxes: Boxes, queue: tuple[OneMessage, QueueReader]
) -> None:
    messages, reader = queue
    call = asyncio.create_task(boxes.receive("normal"))
    await asyncio.sleep(0)
    reader.look()
    await soon(messages.asked.wait())
    call.cancel()
    closing = asyncio.create_task(reader.aclose())
    await asyncio.sleep(0)
    messages.arrives.set_result(None)
    await soon(closing)
    assert len(messages.entries) == 1
