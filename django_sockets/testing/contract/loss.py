"""Messages that are lost, repeated or reordered between the server and the hub."""

from __future__ import annotations

import contextlib

import pytest

from ...deadlines import with_deadline
from ...delivery.events import MISSED, Gap, Message
from ...hub.hub import open_hub
from ..faulty import Faults
from ..ledger import Ledger, check_stream, listening
from .base import ContractTests, with_options


class LossContract(ContractTests):
    """No message is lost without a gap, delivered twice or delivered late."""

    async def test_a_lost_message_is_signalled_before_the_next_one(
        self, broker_url: str, room: str
    ) -> None:
        faults = Faults(heals=False)
        ledger = Ledger()
        async with open_hub(faults.around(broker_url)) as hub, listening(hub, room) as heard:
            await hub.publish(room, ledger.write(room))
            await heard.until(lambda _: True)
            faults.drop(2)
            for _ in range(3):
                await hub.publish(room, ledger.write(room))
            await heard.until(lambda _: len(heard.events) == 3)
            assert [type(event) for event in heard.events] == [Message, Gap, Message]
            assert heard.gaps == [Gap(channels=(room,), reason="missed")]
            assert heard.check(ledger) == [("publisher", room, n) for n in (2, 3)]

    async def test_a_message_that_is_lost_after_a_gap_is_another_gap(
        self, broker_url: str, room: str
    ) -> None:
        faults = Faults(heals=False)
        ledger = Ledger()
        async with open_hub(faults.around(broker_url)) as hub, listening(hub, room) as heard:
            await hub.publish(room, ledger.write(room))
            await heard.until(lambda _: True)
            faults.gap()
            await heard.until_gap()
            faults.drop()
            for _ in range(3):
                await hub.publish(room, ledger.write(room))
            await heard.until_payload(b"publisher 4 ")
            assert [type(event) for event in heard.events] == [Message, Gap, Gap, Message, Message]
            assert heard.gaps[1] == Gap(channels=(room,), reason=MISSED)

    async def test_the_lost_first_message_of_a_publisher_is_a_gap(
        self, broker_url: str, room: str
    ) -> None:
        faults = Faults(heals=False)
        ledger = Ledger()
        async with (
            open_hub(faults.around(broker_url)) as reader,
            open_hub(broker_url) as publisher,
            listening(reader, room) as heard,
        ):
            faults.drop()
            for _ in range(3):
                await publisher.publish(room, ledger.write(room))
            await heard.until_payload(b"publisher 3 ")
            assert [type(event) for event in heard.events] == [Gap, Message, Message]
            assert heard.gaps == [Gap(channels=(room,), reason=MISSED)]

    async def test_a_lost_link_is_signalled_in_its_place_with_its_channels(
        self, broker_url: str, room: str
    ) -> None:
        faults = Faults(heals=False)
        ledger = Ledger()
        rooms = [room, f"{room}:b"]
        async with open_hub(faults.around(broker_url)) as hub, listening(hub, *rooms) as heard:
            async with hub.subscribe(f"{room}:left"):
                pass
            faults.pass_on(2)
            faults.disconnect(2)
            for _ in range(3):
                await hub.publish(rooms, ledger.write(*rooms))
            await heard.until(lambda _: len(heard.messages) == 4)
            assert [type(event) for event in heard.events[:3]] == [Message, Message, Gap]
            assert sorted(heard.gaps[0].channels) == sorted(rooms)
            # The hub cannot know whether messages were lost between the gap and the next message.
            assert {gap.reason for gap in heard.gaps[1:]} <= {"missed"}
            assert len(heard.check(ledger)) == 2

    @pytest.mark.parametrize("lost_before", [0, 1])
    async def test_a_gap_covers_nothing_that_is_published_after_it(
        self, broker_url: str, room: str, lost_before: int
    ) -> None:
        faults = Faults(heals=False)
        ledgers = [Ledger("a"), Ledger("b")]
        async with (
            open_hub(faults.around(broker_url)) as hub,
            open_hub(broker_url) as other,
            listening(hub, room) as heard,
        ):

            async def publish_each(times: int = 1) -> None:
                for publisher, ledger in list(zip((hub, other), ledgers, strict=True)) * times:
                    await publisher.publish(room, ledger.write(room))

            await publish_each()
            await heard.until(lambda _: len(heard.messages) == 2)
            if lost_before:
                faults.disconnect(2 * lost_before)
                await publish_each(lost_before)
            else:
                faults.gap()
            await heard.until_gap()
            # An application loads its state here: the state lacks messages that are lost later.
            faults.drop(2)
            await publish_each(2)
            await heard.until(lambda _: len(heard.messages) == 4)
            assert len(heard.check(*ledgers)) == 2 * (lost_before + 1)

    async def test_a_repeated_or_late_message_is_never_delivered(
        self, broker_url: str, room: str
    ) -> None:
        faults = Faults(heals=False)
        ledger = Ledger()
        async with open_hub(faults.around(broker_url)) as hub, listening(hub, room) as heard:
            faults.pass_on()
            faults.duplicate()
            faults.reorder()
            faults.pass_on()
            faults.disconnect()
            faults.replay()
            for _ in range(7):
                await hub.publish(room, ledger.write(room))
            await heard.until_payload(b"publisher 7 ")
            assert [n for _, _, n in heard.check(ledger)] == [3, 5]
            # These are number 2 again, number 3 late, and three messages from before the lost link.
            assert hub.stats()["dropped_late"] == 1 + 1 + 3

    @pytest.mark.parametrize("seed", range(4))
    async def test_no_mix_of_faults_loses_repeats_or_reorders_silently(
        self, broker_url: str, room: str, seed: int
    ) -> None:
        faults = Faults(seed=seed, rate=0.25, heals=False)
        rooms = [f"{room}:{i}" for i in range(3)]
        ledgers = [Ledger("a"), Ledger("b")]
        async with (
            open_hub(faults.around(broker_url)) as hub,
            open_hub(broker_url) as other,
            listening(hub, *rooms) as heard,
        ):
            publishers = list(zip((hub, other), ledgers, strict=True))
            faults.pass_on(2 * len(rooms))
            for publisher, ledger in publishers:
                await publisher.publish(rooms, ledger.write(*rooms))
            await heard.until(lambda _: len(heard.messages) == 2 * len(rooms))
            for i in range(300):
                for publisher, ledger in publishers:
                    some = rooms[i % 3 : i % 3 + 2]
                    await publisher.publish(some, ledger.write(*some))
            published = sum(len(n) for ledger in ledgers for n in ledger.numbers.values())
            await with_deadline(10, faults.until_seen(published))
            faults.stop()

            async def all_hear_the_last() -> None:
                for ledger in ledgers:
                    for name in rooms:  # Each may come from another server.
                        last = f"{ledger.name} {ledger.numbers[name][-1]} ".encode()
                        await heard.until_payload(last, channel=name, within_seconds=3)

            # A history that is still being read may end in a gap, which covers these messages, too.
            for _ in range(5):
                for publisher, ledger in publishers:
                    await publisher.publish(rooms, ledger.write(*rooms))
                with contextlib.suppress(AssertionError):
                    await all_hear_the_last()
                    break
            else:
                raise AssertionError("nothing is heard after the faults")
            kinds = {"drop", "duplicate", "reorder", "delay", "replay", "disconnect"}
            assert set(faults.done) >= kinds
            assert heard.check(*ledgers)

    async def test_a_reader_that_does_not_keep_up_is_told_in_its_place(
        self, broker_url: str, room: str
    ) -> None:
        url = with_options(broker_url, events_queue_size=10)
        ledger = Ledger()
        async with open_hub(url) as hub, listening(hub, room) as quick:
            async with hub.subscribe(room) as slow:
                for _ in range(100):
                    await hub.publish(room, ledger.write(room))
                await quick.until_payload(b"publisher 100 ")
                events = [await anext(slow) for _ in range(11)]
                await hub.publish(room, ledger.write(room))
                events.append(await with_deadline(5, anext(slow)))
            assert [type(event) for event in events] == [*[Message] * 10, Gap, Message]
            assert events[10] == Gap(channels=(room,), reason="overflow")
            assert len(check_stream(events, ledger)) == 90
            await quick.until_payload(b"publisher 101 ")
            assert quick.check(ledger) == []
