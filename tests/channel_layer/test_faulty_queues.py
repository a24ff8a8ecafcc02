"""Normal channels when calls to their queues fail: losses are counted, and nothing is repeated."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from django_sockets.broker import SupportsQueue
from django_sockets.errors import QueueError
from django_sockets.integration.channel_layer import ChannelLayer, queue_reader
from django_sockets.registry import open_broker
from django_sockets.testing import faulty
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.testing.faulty import Faults
from support.channel_layers import numbered, soon, take

_numbers = itertools.count()


def faulty_layer(faults: Faults) -> ChannelLayer:
    url = f"memory://faulty-queues{next(_numbers)}"
    return ChannelLayer(url=faults.around(url), capacity=1000)


async def test_a_send_says_whether_its_message_was_sent() -> None:
    faults = Faults()
    layer = faulty_layer(faults)
    faults.refuse_queue_calls()
    faults.lose_queue_replies()
    for number, unknown in ((1, False), (2, True)):
        with pytest.raises(QueueError) as caught:
            await layer.send("work", {"type": "test", "n": number})
        assert caught.value.unknown is unknown
    await layer.send("work", {"type": "test", "n": 3})
    assert await take(layer, "work", 2) == numbered(2, 3)
    assert faults.done == {"queue refused": 1, "queue reply lost": 1}
    await layer.close()


async def test_a_message_that_was_taken_without_a_reply_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_reader, "POLL_SECONDS", 0.02)
    faults = Faults()
    layer = faulty_layer(faults)
    for message in numbered(1, 2, 3):
        await layer.send("work", message)
    faults.refuse_queue_calls()
    faults.lose_queue_replies()
    assert await take(layer, "work", 2) == numbered(2, 3)
    assert layer.stats()["queue_unknown"] == 1
    assert layer.stats()["queue_errors"] == 2
    await layer.close()


async def test_a_message_without_its_doorbell_is_found() -> None:
    faults = Faults()
    layer = faulty_layer(faults)
    waiting = asyncio.create_task(layer.receive("work"))
    await asyncio.sleep(0)
    await asyncio.wait([waiting], timeout=0.05)
    faults.drop()
    await layer.send("work", {"type": "test", "n": 1})
    assert await soon(waiting) == {"type": "test", "n": 1}
    assert faults.done == {"drop": 1}
    await layer.close()


async def test_random_faults_lose_only_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_reader, "POLL_SECONDS", 0.01)
    faults = Faults(seed=5)
    layer = faulty_layer(faults)
    got: list[int] = []
    ended = asyncio.Event()

    async def read() -> None:
        while True:
            got.append((await layer.receive("work"))["n"])
            if got[-1] == 200:
                ended.set()

    readers = [asyncio.create_task(read()) for _ in range(3)]
    accepted, unknown = set(), set()
    for number in range(200):
        try:
            await layer.send("work", {"type": "test", "n": number})
        except QueueError as exc:
            unknown.update([number] if exc.unknown else [])
        else:
            accepted.add(number)
        await asyncio.sleep(0)
    faults.stop()
    accepted.add(200)
    await layer.send("work", {"type": "test", "n": 200})

    await soon(ended.wait())
    assert got == sorted(set(got))
    assert set(got) <= accepted | unknown
    assert faults.done["queue reply lost"] > 0
    assert len(accepted - set(got)) <= layer.stats()["queue_unknown"]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await layer.close()


class Plain:
    """A broker without its queues."""

    def __init__(self, broker: object) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> object:
        if name.startswith("queue_"):
            raise AttributeError(name)
        return getattr(self._broker, name)


@pytest.mark.parametrize("plain", [True, False])
async def test_a_broker_without_queues_has_none_with_faults_either(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    if plain:
        monkeypatch.setattr(faulty, "open_broker", lambda *args: Plain(open_broker(*args)))
    config = Faults().around("memory://faulty-queues-plain")
    broker = config.open_broker(config.url, RecordingSink())
    assert isinstance(broker, SupportsQueue) is not plain
    await broker.aclose()
