"""Consumers learn of lost messages by `broker.gap` events; without these, counters show them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.testing.faulty import Faults
from support.channel_layers import numbered, soon, take


async def new_layer(faults: Faults, **options: Any) -> tuple[ChannelLayer, list[str]]:
    """A layer whose messages have faults, and two channels of which the first is in a group."""
    layer = ChannelLayer(url=faults.around("memory://gaps"), **options)
    channels = [await layer.new_channel() for _ in range(2)]
    await layer.group_add("group", channels[0])
    return layer, channels


def gap(*groups: str, reason: str, channels: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "broker.gap", "groups": [*groups], "channels": [*channels], "reason": reason,
    }  # fmt: skip


async def test_a_lost_group_message_is_a_gap_between_its_neighbours() -> None:
    faults = Faults()
    layer, (member, other) = await new_layer(faults, gap_events=True)
    await layer.group_send("group", {"type": "test", "n": 1})
    assert await take(layer, member, 1) == numbered(1)
    faults.drop()
    for message in numbered(2, 3):
        await layer.group_send("group", message)
    assert await take(layer, member, 2) == [gap("group", reason="missed"), *numbered(3)]
    await layer.send(other, {"type": "fence"})
    assert await take(layer, other, 1) == [{"type": "fence"}]
    assert layer.stats()["gaps"] == 1
    await layer.close()


async def test_a_lost_connection_is_one_gap_for_each_channel_that_names_all_its_groups() -> None:
    faults = Faults()
    layer, (member, other) = await new_layer(faults, gap_events=True)
    await layer.group_add("second", member)
    faults.gap()
    event = await soon(layer.receive(member))
    assert sorted(event.pop("groups")) == ["group", "second"]
    assert event["channels"] == [member]
    assert event["type"] == "broker.gap"
    assert await take(layer, other, 1) == [
        gap(reason="lost by a test", channels=(other,)),
    ]
    await layer.send(member, {"type": "fence"})
    assert await take(layer, member, 1) == [{"type": "fence"}]
    await layer.close()


async def test_without_gap_events_a_consumer_gets_none_and_they_are_counted() -> None:
    faults = Faults()
    layer, (member, other) = await new_layer(faults)
    faults.gap()
    await layer.group_send("group", {"type": "fence"})
    await layer.send(other, {"type": "fence"})
    for channel in (member, other):
        assert await take(layer, channel, 1) == [{"type": "fence"}]
    assert layer.stats()["gaps"] == 3
    await layer.close()


async def test_messages_for_a_full_channel_are_a_gap_where_they_are_missing() -> None:
    layer = ChannelLayer(url="memory://full", capacity=2, gap_events=True)
    channel, probe = [await layer.new_channel() for _ in range(2)]
    for member in (channel, probe):
        await layer.group_add("group", member)

    async def send(*numbers: int) -> None:
        for message in numbered(*numbers):
            await layer.group_send("group", message)
            assert await take(layer, probe, 1) == [message]

    await send(1, 2, 3, 4)
    assert await take(layer, channel, 1) == numbered(1)
    await send(5)
    overflow = gap("group", reason="overflow")
    assert await take(layer, channel, 3) == [*numbered(2), overflow, *numbered(5)]
    await send(6, 7, 8)
    assert await take(layer, channel, 3) == [*numbered(6, 7), overflow]
    assert layer.stats()["dropped_full"] == 3
    await layer.close()


async def test_expired_messages_are_a_gap() -> None:
    layer = ChannelLayer(url="memory://expired", expiry=0.5, gap_events=True)
    channel = await layer.new_channel()
    for message in numbered(1, 2):
        await layer.send(channel, message)
    await asyncio.sleep(0.55)
    waiting = asyncio.create_task(layer.receive(channel))
    assert await soon(waiting) == gap(reason="expired", channels=(channel,))
    await layer.send(channel, {"type": "test", "n": 3})
    assert await take(layer, channel, 1) == numbered(3)
    await layer.close()


async def test_a_repeated_or_late_message_is_never_delivered() -> None:
    faults = Faults(seed=3)
    layer, (member, _) = await new_layer(faults, gap_events=True, capacity=10_000)
    for message in numbered(*range(300)):
        await layer.group_send("group", message)
    await faults.until_seen(300)
    faults.stop()
    await layer.group_send("group", {"type": "test", "n": 300})
    got = []
    while not got or got[-1].get("n") != 300:
        got.append(await soon(layer.receive(member)))
    assert sum(faults.done.values()) > 30
    arrived = [message["n"] for message in got if message["type"] == "test"]
    assert arrived == sorted(set(arrived))
    # Each hole has a gap in its place.
    last = -1
    gap_since = False
    for message in got:
        if message["type"] == "broker.gap":
            gap_since = True
            continue
        assert gap_since or message["n"] == last + 1
        last, gap_since = message["n"], False
    await layer.close()


@pytest.mark.parametrize("gap_events", [True, False])
async def test_room_that_a_lost_message_had_is_free_again(gap_events: bool) -> None:
    faults = Faults()
    layer, (channel, _) = await new_layer(faults, capacity=2, gap_events=gap_events)
    faults.disconnect(2)
    for message in numbered(1, 2):
        await layer.send(channel, message)
    for message in numbered(3, 4):
        while True:
            try:
                await layer.send(channel, message)
                break
            except layer.ChannelFull:
                await asyncio.sleep(0.01)  # The gap is on its way.
    got = await take(layer, channel, 3 if gap_events else 2)
    assert got[-2:] == numbered(3, 4)
    await layer.close()
