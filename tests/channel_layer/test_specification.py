"""The channel layer specification of Channels, line by line, on each kind of broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge

from django_sockets.integration.channel_layer import ChannelLayer
from support.channel_layers import MakeLayer, numbered, soon, take

# Messages


async def test_every_type_of_the_specification_arrives_unchanged(layer: ChannelLayer) -> None:
    message = {
        "type": "test.message",
        "bytes": b"\x00\xff",
        "text": "grüße \U0001f600",
        "integers": [0, -1, 2**63 - 1, -(2**63)],
        "floats": [0.5, 1e300],
        "list": [1, [2, []]],
        "dict": {"a": {"b": {}}},
        "booleans": [True, False],
        "none": None,
    }
    local = await layer.new_channel()
    for channel in (local, "normal"):
        await layer.send(channel, message)
        assert await soon(layer.receive(channel)) == message
    await layer.group_add("group", local)
    await layer.group_send("group", message)
    assert await soon(layer.receive(local)) == message


async def test_a_tuple_arrives_as_a_list(layer: ChannelLayer) -> None:
    await layer.send("normal", {"type": "test", "pair": (1, 2)})
    assert await soon(layer.receive("normal")) == {"type": "test", "pair": [1, 2]}


async def test_each_consumer_of_a_group_gets_an_object_of_its_own(layer: ChannelLayer) -> None:
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "test", "list": []})
    for channel in channels:
        message = await soon(layer.receive(channel))
        assert message == {"type": "test", "list": []}
        message["list"].append("changed by the consumer")


async def test_a_message_of_1_mb_arrives_by_each_way(layer: ChannelLayer) -> None:
    message = {"type": "test", "text": "x" * 1024 * 1024}
    local = await layer.new_channel()
    await layer.group_add("group", local)
    await layer.send(local, message)
    await layer.group_send("group", message)
    await layer.send("normal", message)
    assert await take(layer, local, 2) == [message] * 2
    assert await soon(layer.receive("normal")) == message


async def test_a_message_over_the_limit_is_refused_by_each_way(make_layer: MakeLayer) -> None:
    layer = make_layer()
    local = await layer.new_channel()
    await layer.group_add("group", local)
    message = {"type": "test", "bytes": bytes(17 * 1024 * 1024)}
    assert layer.MessageTooLarge is MessageTooLarge
    for send in (
        layer.send(local, message),
        layer.send("normal", message),
        layer.group_send("group", message),
    ):
        with pytest.raises(MessageTooLarge, match="over the limit"):
            await send
    # A refused message takes no room.
    for message in numbered(*range(100)):
        await layer.send(local, message)
    assert await take(layer, local, 100) == numbered(*range(100))


@pytest.mark.parametrize(
    "message",
    [
        {"type": "test", 1: "an int key"},
        {"type": "test", "inside": [{"a": {2: "deep"}}]},
        {"type": "test", "object": object()},
        {"type": "test", "set": {1}},
        {"type": "test", "big": 2**64},
    ],
    ids=["int key", "deep int key", "object", "set", "big integer"],
)
@pytest.mark.parametrize("broker_url", ["memory://refused"])
async def test_another_type_is_refused_at_the_sender(
    layer: ChannelLayer, message: dict[Any, Any]
) -> None:
    local = await layer.new_channel()
    for send in (
        layer.send(local, message),
        layer.send("normal", message),
        layer.group_send("group", message),
    ):
        with pytest.raises(TypeError):
            await send


@pytest.mark.parametrize("broker_url", ["memory://refused"])
async def test_a_message_is_a_dict(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for send in (layer.send(local, "text"), layer.group_send("group", ["list"])):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a message is a dict"):
            await send


# Channels


async def test_a_channel_is_a_first_in_first_out_queue(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for channel in (local, "normal"):
        for message in numbered(*range(50)):
            await layer.send(channel, message)
        assert await take(layer, channel, 50) == numbered(*range(50))


async def test_calls_at_once_keep_their_order(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for channel in (local, "normal"):
        await asyncio.gather(*(layer.send(channel, m) for m in numbered(*range(50))))
        assert await take(layer, channel, 50) == numbered(*range(50))


async def test_a_normal_channel_gives_each_message_to_one_of_several_readers(
    make_layer: MakeLayer,
) -> None:
    readers = [make_layer(), make_layer()]
    sender = make_layer(capacity=1000)
    taken: list[list[int]] = [[], [], [], []]
    complete = asyncio.Event()

    async def read(layer: ChannelLayer, numbers: list[int]) -> None:
        while True:
            numbers.append((await layer.receive("normal"))["n"])
            if sum(map(len, taken)) == 200:
                complete.set()

    tasks = [
        asyncio.create_task(read(readers[index % 2], numbers))
        for index, numbers in enumerate(taken)
    ]
    for message in numbered(*range(200)):
        await sender.send("normal", message)
    await soon(complete.wait())
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert Counter(n for numbers in taken for n in numbers) == Counter(range(200))
    assert all(numbers == sorted(numbers) for numbers in taken)


async def test_a_normal_channel_keeps_messages_for_a_reader_that_comes_later(
    make_layer: MakeLayer,
) -> None:
    sender, reader = make_layer(), make_layer()
    await sender.send("normal", {"type": "test"})
    assert await soon(reader.receive("normal")) == {"type": "test"}


async def test_a_reader_that_waits_is_woken(make_layer: MakeLayer) -> None:
    sender, reader = make_layer(), make_layer()
    local = await reader.new_channel()
    for channel in ("normal", local):
        waiting = asyncio.create_task(reader.receive(channel))
        await asyncio.sleep(0.05)  # It waits for the doorbell, and not for its first look.
        await sender.send(channel, {"type": "test"})
        assert await soon(waiting) == {"type": "test"}


async def test_two_readers_of_a_process_local_channel_share_its_messages(
    layer: ChannelLayer,
) -> None:
    local = await layer.new_channel()
    waiting = [asyncio.create_task(layer.receive(local)) for _ in range(3)]
    await asyncio.sleep(0)
    for message in numbered(1, 2, 3):
        await layer.send(local, message)
    got = [await soon(task) for task in waiting]
    assert sorted(message["n"] for message in got) == [1, 2, 3]


async def test_a_process_local_channel_is_reached_from_another_layer(
    make_layer: MakeLayer,
) -> None:
    owner, other = make_layer(), make_layer()
    local = await owner.new_channel()
    for message in numbered(*range(5)):
        await other.send(local, message)
    assert await take(owner, local, 5) == numbered(*range(5))


async def test_names_of_process_local_channels_are_different(layer: ChannelLayer) -> None:
    import random

    names = set()
    for _ in range(100):
        random.seed(1)
        names.add(await layer.new_channel())
    assert len(names) == 100
    assert all(name.startswith("specific.") and name.count("!") == 1 for name in names)
    assert (await layer.new_channel("http.response")).startswith("http.response.")
    assert (await layer.new_channel("dotted.")).startswith("dotted.")
    assert ".." not in await layer.new_channel("dotted.")


async def test_receive_takes_the_part_up_to_the_exclamation_mark(layer: ChannelLayer) -> None:
    locals_ = [await layer.new_channel() for _ in range(2)]
    prefix = locals_[0][: locals_[0].index("!") + 1]
    virtual = f"{prefix}made.by.the.application"
    for index, channel in enumerate([*locals_, virtual, locals_[0]]):
        await layer.send(channel, {"type": "test", "n": index})
    assert await take(layer, prefix, 4) == numbered(0, 1, 2, 3)
    waiting = asyncio.create_task(layer.receive(prefix))
    await asyncio.sleep(0)
    await layer.send(virtual, {"type": "test", "n": 4})
    assert await soon(waiting) == {"type": "test", "n": 4}


async def test_other_names_with_an_exclamation_mark_work_like_normal_channels(
    make_layer: MakeLayer,
) -> None:
    sender, reader = make_layer(), make_layer()
    for message in numbered(1, 2):
        await sender.send("terminator!client", message)
    assert await soon(reader.receive("terminator!client")) == {"type": "test", "n": 1}
    assert await soon(reader.receive("terminator!")) == {"type": "test", "n": 2}


async def test_a_name_may_have_100_characters(layer: ChannelLayer) -> None:
    longest = "n" * 100
    await layer.send(longest, {"type": "test"})
    assert await soon(layer.receive(longest)) == {"type": "test"}
    local = await layer.new_channel("p" * 60)
    virtual = local[: local.index("!") + 1] + "v" * (100 - local.index("!") - 1)
    assert len(virtual) == 100
    await layer.group_add(longest, virtual)
    await layer.group_send(longest, {"type": "test"})
    assert await soon(layer.receive(virtual)) == {"type": "test"}


async def test_a_message_is_sent_without_waiting_for_a_reader(layer: ChannelLayer) -> None:
    await soon(layer.send(await layer.new_channel(), {"type": "test"}))
    await soon(layer.send("normal", {"type": "test"}))
    await soon(layer.group_send("group.without.members", {"type": "test"}))


# Capacity


async def test_a_full_channel_raises_channel_full(make_layer: MakeLayer) -> None:
    layer = make_layer(capacity=3)
    local = await layer.new_channel()
    assert layer.ChannelFull is ChannelFull
    for channel in (local, "normal"):
        for message in numbered(1, 2, 3):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"type": "test"})
        assert await take(layer, channel, 1) == numbered(1)
        await layer.send(channel, {"type": "test", "n": 4})
        assert await take(layer, channel, 3) == numbered(2, 3, 4)
    assert layer.stats()["channel_full"] == 2


async def test_a_sender_on_another_layer_of_the_process_sees_a_full_channel(
    make_layer: MakeLayer,
) -> None:
    owner, sender = make_layer(capacity=2), make_layer(capacity=2)
    local = await owner.new_channel()
    results = await asyncio.gather(
        *(sender.send(local, message) for message in numbered(*range(10))), return_exceptions=True
    )
    assert [type(result) for result in results].count(ChannelFull) == 8
    assert await take(owner, local, 2) == numbered(0, 1)


async def test_patterns_set_the_capacity_of_channels(make_layer: MakeLayer) -> None:
    import re

    layer = make_layer(
        capacity=3,
        channel_capacity={"one.*": 1, re.compile(r"^two\.[a-z]+$"): 2, "specific.*!*": 4},
    )
    for channel, capacity in (
        ("one.x", 1),
        ("two.x", 2),
        ("three", 3),
        (await layer.new_channel(), 4),
    ):
        for message in numbered(*range(capacity)):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"type": "test"})


async def test_a_group_drops_messages_for_a_full_channel_and_counts_them(
    make_layer: MakeLayer,
) -> None:
    layer = make_layer(capacity=3)
    full, reads = [await layer.new_channel() for _ in range(2)]
    for channel in (full, reads):
        await layer.group_add("group", channel)
    for message in numbered(*range(5)):
        await layer.group_send("group", message)
        assert await soon(layer.receive(reads)) == message
    assert await take(layer, full, 3) == numbered(0, 1, 2)
    assert layer.stats()["dropped_full"] == 2
    await layer.group_send("group", {"type": "test", "n": 5})
    assert await take(layer, full, 1) == numbered(5)


# Expiry

EXPIRY_SECONDS = 1.0
"""A busy machine delivers a new message in a small part of it."""


async def test_a_message_expires_and_makes_room(make_layer: MakeLayer) -> None:
    layer = make_layer(expiry=EXPIRY_SECONDS, capacity=1)
    local = await layer.new_channel()
    await layer.group_add("group", local)
    for channel in (local, "normal"):
        await layer.send(channel, {"type": "old"})
    await asyncio.sleep(EXPIRY_SECONDS)
    for channel in (local, "normal"):
        await soon(send_when_there_is_room(layer, channel, {"type": "new"}))
        assert await soon(layer.receive(channel)) == {"type": "new"}


async def send_when_there_is_room(
    layer: ChannelLayer, channel: str, message: dict[str, Any]
) -> None:
    """The layer removes expired messages at intervals, of which a sender gets no event."""
    while True:
        try:
            return await layer.send(channel, message)
        except ChannelFull:
            await asyncio.sleep(0.01)


async def test_a_reader_does_not_get_an_expired_message(make_layer: MakeLayer) -> None:
    layer = make_layer(expiry=EXPIRY_SECONDS)
    local = await layer.new_channel()
    for channel in (local, "normal"):
        await layer.send(channel, {"type": "old"})
    await asyncio.sleep(1.1 * EXPIRY_SECONDS)
    for channel in (local, "normal"):
        waiting = asyncio.create_task(layer.receive(channel))
        await layer.send(channel, {"type": "new"})
        assert await soon(waiting) == {"type": "new"}
    assert layer.stats()["dropped_expired"] >= 1


# Groups


async def test_a_group_reaches_its_channels_and_no_others(layer: ChannelLayer) -> None:
    one, two, three = [await layer.new_channel("test-gr-chan") for _ in range(3)]
    for channel in (one, two, three):
        await layer.group_add("test-group", channel)
    await layer.group_discard("test-group", two)
    await layer.group_send("test-group", {"type": "message.1"})
    for channel in (one, three):
        assert await soon(layer.receive(channel)) == {"type": "message.1"}
    await layer.send(two, {"type": "fence"})
    assert await soon(layer.receive(two)) == {"type": "fence"}


async def test_a_normal_channel_may_be_in_a_group(make_layer: MakeLayer) -> None:
    # As in the tests of the in-memory layer of Channels.
    layer, other = make_layer(), make_layer()
    for number in (1, 2, 3):
        await layer.group_add("test-group", f"test-gr-chan-{number}")
    await other.group_add("test-group", "test-gr-chan-1")
    await layer.group_discard("test-group", "test-gr-chan-2")
    await layer.group_send("test-group", {"type": "message.1"})
    for channel in ("test-gr-chan-1", "test-gr-chan-3"):
        assert await soon(layer.receive(channel)) == {"type": "message.1"}
    # Two layers have added it, and it has the message once.
    for channel in ("test-gr-chan-1", "test-gr-chan-2"):
        await layer.send(channel, {"type": "fence"})
        assert await soon(layer.receive(channel)) == {"type": "fence"}


async def test_another_layer_removes_a_normal_channel_from_a_group(make_layer: MakeLayer) -> None:
    layer, other = make_layer(), make_layer()
    await layer.group_add("group", "normal")
    await other.group_discard("group", "normal")
    await other.group_send("group", {"type": "lost"})
    probe = await layer.new_channel()
    await layer.group_add("group", probe)
    await other.group_send("group", {"type": "fence"})
    assert await soon(layer.receive(probe)) == {"type": "fence"}
    await layer.send("normal", {"type": "fence"})
    assert await soon(layer.receive("normal")) == {"type": "fence"}


async def test_a_channel_is_added_twice_and_removed_before_it_was_added(
    layer: ChannelLayer,
) -> None:
    local = await layer.new_channel()
    await layer.group_discard("group", local)
    await layer.group_add("group", local)
    await layer.group_add("group", local)
    await layer.group_send("group", {"type": "once"})
    await layer.send(local, {"type": "fence"})
    got = await take(layer, local, 2)
    assert sorted(message["type"] for message in got) == ["fence", "once"]
    await layer.group_discard("group", local)
    await layer.group_send("group", {"type": "none"})
    await layer.send(local, {"type": "fence"})
    assert await take(layer, local, 1) == [{"type": "fence"}]


async def test_the_last_of_several_calls_at_once_decides(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for last in ("add", "discard"):
        first = layer.group_discard if last == "add" else layer.group_add
        second = layer.group_add if last == "add" else layer.group_discard
        for _ in range(20):
            await asyncio.gather(first("group", local), second("group", local))
        await layer.group_send("group", {"type": "group"})
        await layer.send(local, {"type": "fence"})
        if last == "add":
            got = await take(layer, local, 2)
            assert sorted(message["type"] for message in got) == ["fence", "group"]
        else:
            assert await take(layer, local, 1) == [{"type": "fence"}]


async def test_a_membership_ends_after_group_expiry(make_layer: MakeLayer) -> None:
    layer = make_layer(group_expiry=EXPIRY_SECONDS)
    assert layer.group_expiry == EXPIRY_SECONDS
    old, renewed = [await layer.new_channel() for _ in range(2)]
    await layer.group_add("group", old)
    for _ in range(12):
        await layer.group_add("group", renewed)
        await asyncio.sleep(0.1 * EXPIRY_SECONDS)
    await layer.group_add("group", renewed)
    await layer.group_send("group", {"type": "group"})
    assert await soon(layer.receive(renewed)) == {"type": "group"}
    await layer.send(old, {"type": "fence"})
    assert await soon(layer.receive(old)) == {"type": "fence"}


async def test_a_membership_ends_in_time_although_it_is_removed_later(
    make_layer: MakeLayer,
) -> None:
    layer = make_layer(group_expiry=0.05)  # Removed within a second.
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    await asyncio.sleep(0.1)
    await layer.group_send("group", {"type": "group"})
    for channel in channels:
        await layer.send(channel, {"type": "fence"})
        assert await soon(layer.receive(channel)) == {"type": "fence"}


async def test_the_default_group_expiry_is_a_day(layer: ChannelLayer) -> None:
    assert layer.group_expiry == 86_400
    assert layer.extensions == ["groups", "flush"]


async def test_each_sender_is_heard_in_order_in_a_group(make_layer: MakeLayer) -> None:
    senders = [make_layer(), make_layer()]
    reader = make_layer(capacity=1000)
    local = await reader.new_channel()
    await reader.group_add("group", local)

    async def send(name: str, layer: ChannelLayer) -> None:
        for number in range(100):
            await layer.group_send("group", {"type": "test", "by": name, "n": number})

    await asyncio.gather(*(send(str(index), layer) for index, layer in enumerate(senders)))
    got = await take(reader, local, 200)
    for name in ("0", "1"):
        assert [message["n"] for message in got if message["by"] == name] == [*range(100)]


# Flush


async def test_flush_removes_all_messages_and_groups(make_layer: MakeLayer) -> None:
    layer, other = make_layer(), make_layer()
    here, there = await layer.new_channel(), await other.new_channel()
    for channel, owner in ((here, layer), (there, other)):
        await layer.send(channel, {"type": "old"})
        await owner.group_add("group", channel)
    await layer.send("normal", {"type": "old"})
    await layer.group_add("group", "normal")
    # The message to the other layer has arrived.
    await other.send(there, {"type": "old"})
    assert await soon(other.receive(there)) == {"type": "old"}
    await layer.flush()
    await layer.group_send("group", {"type": "lost"})
    for channel, owner in ((here, layer), (there, other), ("normal", layer)):
        await layer.send(channel, {"type": "fence"})
        assert await soon(owner.receive(channel)) == {"type": "fence"}
    await layer.group_add("group", here)
    await layer.group_send("group", {"type": "again"})
    assert await soon(layer.receive(here)) == {"type": "again"}


async def test_a_layer_with_another_prefix_is_separate(make_layer: MakeLayer) -> None:
    layer, other = make_layer(), make_layer(prefix="separate")
    here, there = await layer.new_channel(), await other.new_channel()
    await layer.group_add("group", here)
    await other.group_add("group", there)
    await other.send("normal", {"type": "other"})
    await layer.flush()
    await layer.group_add("group", here)
    await layer.group_send("group", {"type": "here"})
    assert await soon(layer.receive(here)) == {"type": "here"}
    await other.send(there, {"type": "there"})
    assert await soon(other.receive(there)) == {"type": "there"}
    assert await soon(other.receive("normal")) == {"type": "other"}


# Names


@pytest.mark.parametrize(
    "name",
    ["", "¯\\_(ツ)_/¯", "n" * 101, "with space", "two!!marks", "a!b!c", "line\n", "٣", "{x}", None],
)
@pytest.mark.parametrize("broker_url", ["memory://refused"])
async def test_a_bad_name_is_refused(make_layer: MakeLayer, name: Any) -> None:
    layer = make_layer()
    message = {"type": "test"}
    for call in (
        layer.send(name, message),
        layer.receive(name),
        layer.group_add("group", name),
        layer.group_add(name, "channel"),
        layer.group_discard("group", name),
        layer.group_send(name, message),
        layer.new_channel(name),
    ):
        with pytest.raises(TypeError):
            await call


@pytest.mark.parametrize("name", ["chat", "n" * 100, "a.b-c_d", "A1"])
@pytest.mark.parametrize("broker_url", ["memory://refused"])
async def test_a_good_name_is_accepted(make_layer: MakeLayer, name: str) -> None:
    layer = make_layer()
    assert layer.require_valid_channel_name(name)
    assert layer.require_valid_group_name(name)
    assert layer.require_valid_channel_name(name[:50] + "!x")
    with pytest.raises(TypeError):
        layer.require_valid_group_name("group!x")


# Cancellation


async def test_a_cancelled_receive_loses_nothing(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for channel in (local, "normal"):
        got = []
        sending = asyncio.create_task(_send_slowly(layer, channel, 60))
        turns = 0
        while len(got) < 60:
            call = asyncio.create_task(layer.receive(channel))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            turns += 1
            if call.done() or turns % 3 == 0:
                got.append((await soon(call))["n"])
                continue
            call.cancel()
            # A call that had its message just before it was cancelled returns it.
            (result,) = await asyncio.gather(call, return_exceptions=True)
            if isinstance(result, dict):
                got.append(result["n"])
        await sending
        assert sorted(got) == [*range(60)]


async def _send_slowly(layer: ChannelLayer, channel: str, count: int) -> None:
    for message in numbered(*range(count)):
        await layer.send(channel, message)


async def test_a_message_for_a_cancelled_reader_goes_to_another(make_layer: MakeLayer) -> None:
    first, second, sender = make_layer(), make_layer(), make_layer()
    leaving = asyncio.create_task(first.receive("normal"))
    staying = asyncio.create_task(second.receive("normal"))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    for message in numbered(1, 2, 3):
        await sender.send("normal", message)
    assert await soon(staying) == {"type": "test", "n": 1}
    assert await take(second, "normal", 2) == numbered(2, 3)
