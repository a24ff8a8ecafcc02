"""The checker of deliveries finds every kind of loss."""

from __future__ import annotations

import asyncio

import pytest

from django_sockets import Gap, Message, open_hub
from django_sockets.testing import Faults
from django_sockets.testing.ledger import Ledger, Listener, check_stream, listening

STREAMS = {
    # name: how many messages were published, message n at second n; what was heard in the room, n
    # for a message and G for a gap, with its second; the missing ones, or what is wrong.
    "everything": (3, "1@1 2@2 3@3", []),
    "a hole before the gap": (3, "1@1 G@2.5 3@3", [2]),
    "a publish that began when the gap was handed out": (3, "1@1 G@2 3@3", [2]),
    "a hole without a gap": (3, "1@1 3@3", r"\[2\] lost without a gap, before 3"),
    "a hole after the gap": (3, "1@1 G@1.5 3@3", r"\[2\] lost without a gap since .*, before 3"),
    "a hole around the gap": (4, "1@1 G@2.5 4@4", r"\[3\] lost without a gap since .*, before 4"),
    "a gap for each half of a hole": (4, "1@1 G@2.5 G@3.5 4@4", [2, 3]),
    "two gaps of which the last covers all": (4, "1@1 G@3.5 G@3.6 4@4", [2, 3]),
    "a gap behind the next message": (3, "1@1 3@3 G@3.5", r"\[2\] lost without a gap, before 3"),
    "a gap before the last message": (4, "1@1 G@9 2@9 4@9", r"\[3\] lost without a gap, before 4"),
    "a gap on another channel": (3, "1@1 g@2.5 3@3", r"\[2\] lost without a gap, before 3"),
    "the last ones before the gap": (4, "1@1 2@2 G@4.5", [3, 4]),
    "the last ones without a gap": (4, "1@1 2@2", r"\[3, 4\] lost without a gap, before the end"),
    "the last one after the gap": (4, "1@1 2@2 G@3.5", r"\[4\] lost .* since .*, before the end"),
    "twice": (1, "1@1 1@1", "1 came twice or after a newer one"),
    "out of order": (3, "1@1 G@2.5 3@3 2@3", "2 came twice or after a newer one"),
    "never published": (1, "1@1 9@9", "9 was never published there"),
}


def stream(text: str) -> tuple[list[Message | Gap], list[float]]:
    events: list[Message | Gap] = []
    times = []
    for what, at in (word.split("@") for word in text.split()):
        times.append(float(at))
        if what in "gG":
            events.append(Gap(channels=("room" if what == "G" else "elsewhere",), reason="a test"))
        else:
            events.append(Message(channel="room", payload=f"publisher {what} ".encode()))
    return events, times


def published(count: int) -> Ledger:
    ledger = Ledger()
    for _ in range(count):
        ledger.write("room")
    ledger.began["room"] = [float(number) for number in ledger.numbers["room"]]
    return ledger


@pytest.mark.parametrize("name", STREAMS)
def test_each_loss_is_told_from_what_a_gap_covers(name: str) -> None:
    count, text, expected = STREAMS[name]
    events, times = stream(text)
    if isinstance(expected, str):
        with pytest.raises(AssertionError, match=expected):
            check_stream(events, published(count), times=times)
    else:
        missing = check_stream(events, published(count), times=times)
        assert missing == [("publisher", "room", number) for number in expected]


def test_events_without_times_are_held_against_their_order_alone() -> None:
    events, _ = stream("1@1 G@1.5 3@3")
    assert check_stream(events, published(3)) == [("publisher", "room", 2)]
    with pytest.raises(AssertionError, match="lost without a gap, before 3"):
        check_stream([events[0], events[2]], published(3))
    with pytest.raises(ValueError, match="shorter"):
        check_stream(events, published(3), times=[1.0])


def test_each_channel_and_each_publisher_needs_a_gap_of_its_own_time() -> None:
    one, other = Ledger("one"), Ledger("other")
    for ledger in (one, other):
        for _ in range(3):
            ledger.write("a", "b")
        ledger.began = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}
    other.began["b"] = [1.0, 2.6, 3.0]

    def heard(number: int) -> list[Message | Gap]:
        return [
            Message(channel=channel, payload=f"{ledger.name} {number} ".encode())
            for ledger in (one, other)
            for channel in "ab"
        ]

    events = [*heard(1), Gap(channels=("a", "b"), reason="a test"), *heard(3)]
    times = [1.0] * 4 + [2.5] + [3.0] * 4
    with pytest.raises(AssertionError, match=r"\('other', 'b'\): \[2\] lost without a gap since"):
        check_stream(events, one, other, times=times)
    assert len(check_stream(events[:-1], one, other, times=times[:-1], to_the_end=False)) == 3


async def test_a_gap_counts_from_when_the_reader_has_it_not_from_when_it_was_queued() -> None:
    """A reader that gets the gap late also fetches the messages published in between."""
    faults, ledger = Faults(), Ledger()
    async with open_hub(faults.around("memory://late")) as hub, hub.subscribe("room") as events:
        faults.gap()
        faults.drop()
        await hub.publish("room", ledger.write("room"))
        await faults.until_seen(1)
        listener = Listener(events)
        reading = asyncio.create_task(listener.read())
        gap = await listener.until_gap()
        assert listener.times[gap] > ledger.began["room"][0]
        assert listener.check(ledger) == [("publisher", "room", 1)]
        faults.drop()
        await hub.publish("room", ledger.write("room"))
        await faults.until_seen(2)
        with pytest.raises(AssertionError, match=r"\[2\] lost without a gap since"):
            listener.check(ledger)
        faults.gap()
        await listener.until_gap(start=gap + 1)
        assert len(listener.check(ledger)) == 2
    await reading


async def test_a_number_of_messages_is_awaited_and_gaps_are_not_counted() -> None:
    faults = Faults()
    async with open_hub(faults.around("memory://count")) as hub, listening(hub, "room") as heard:
        publishing = asyncio.create_task(hub.publish("room", b"one"))
        await heard.until_messages(1)
        await publishing
        faults.gap()
        await hub.publish("room", b"two")
        await heard.until_messages(2)
        assert len(heard.events) == 3
        with pytest.raises(AssertionError, match=r"not heard within 0\.01 s"):
            await heard.until_messages(3, within_seconds=0.01)
