"""The history of a channel: kept messages, positions, and reads behind a subscription."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import cast

import pytest

from ...broker import Broker, HistoryItem, SupportsHistory
from ...conf import load_config
from ...deadlines import with_deadline
from ...delivery.envelope import Publisher, unpack, unpack_kept
from ...history import (
    NO_TAG,
    HistoryReply,
    HistoryStatus,
    Position,
    Start,
    position_of,
    tag_of,
)
from ...hub.hub import open_hub
from ...registry import open_broker
from .. import ledger
from ..ledger import listening
from .base import ContractTests, RecordingSink

__all__ = ["HistoryContract", "HistoryRecorder", "KeptRoom"]

WHOLE, CUT, BROKEN = HistoryStatus.WHOLE, HistoryStatus.CUT, HistoryStatus.BROKEN
KEPT, SMALL, SHORT, USED = "kept:", "kept:small:", "kept:short:", "kept:used:"
USED_SECONDS = 1.0
HISTORY = {
    KEPT: {"messages": 100, "seconds": 60},
    SMALL: {"messages": 3, "seconds": 60, "bytes": 20},
    SHORT: {"messages": 3, "seconds": 0.2},
    USED: {"messages": 100, "seconds": USED_SECONDS},
}


class HistoryRecorder(RecordingSink):
    """Records replies, too: ("reply", channel, reply).

    Attributes:
        reasons: of the losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self.reasons.append(reason)
        super().lost(channels, reason)

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        self.seen += [
            ("reply" if isinstance(item, HistoryReply) else "message", channel, item)
            for channel, item in batch
        ]
        self._changed.set()

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None:
        self.seen.append(("renamed", tuple(channels), history_id))
        self._changed.set()

    async def replies(self, channel: str, count: int = 1) -> list[HistoryReply]:
        """The replies for a channel, once there are so many."""

        def found() -> list[HistoryReply]:
            return [one[2] for one in self.seen if one[:2] == ("reply", channel)]

        async def look() -> None:
            while len(found()) < count:
                self._changed.clear()
                await self._changed.wait()

        await with_deadline(ledger.PATIENCE_SECONDS, look())
        return found()


class KeptRoom:
    """One channel with a rule, a broker, and a publisher of envelopes.

    Attributes:
        broker: the broker; also as `history`.
        sink: the sink of the broker.
        channel: the channel.
    """

    def __init__(self, broker: Broker, sink: HistoryRecorder, channel: str) -> None:
        self.broker = broker
        self.sink = sink
        self.channel = channel
        self.publisher = Publisher()

    @property
    def history(self) -> SupportsHistory:
        assert isinstance(self.broker, SupportsHistory)
        return self.broker

    async def publish(self, *payloads: bytes, channel: str | None = None) -> None:
        """Publish payloads in order, without waiting between them."""
        name = channel or self.channel
        calls = [
            asyncio.ensure_future(
                self.broker.publish([name], payload, self.publisher.headers([name], is_text=False))
            )
            for payload in payloads
        ]
        await asyncio.gather(*calls)

    async def read(self, start: Start, **limits: int) -> HistoryReply:
        """Read outside of the stream."""
        return (await self.history.read_history({self.channel: start}, **limits))[self.channel]

    async def position(self) -> Position:
        """The newest position."""
        position = (await self.read(None)).position
        assert position is not None
        return position

    def received(self) -> list[bytes]:
        """The messages that the sink has got as messages."""
        return [one[2] for one in self.sink.seen if one[:2] == ("message", self.channel)]


def payloads(messages: Sequence[bytes]) -> list[bytes]:
    """The payloads of messages, whose links are checked."""
    for before, message in itertools.pairwise(messages):
        place, last = unpack_kept(message)[1], unpack_kept(before)[1]
        assert place is not None
        assert last is not None
        assert place == (last[0], last[1] + 1, tag_of(before))
    return [unpack(message)[-1] for message in messages]


class HistoryContract(ContractTests):
    """The promises of `SupportsHistory`, while the server works."""

    @pytest.fixture
    def history(self) -> Mapping[str, object]:
        """The rules of these tests."""
        return HISTORY

    @pytest.fixture
    async def kept(self, broker_url: str, history: Mapping[str, object]) -> AsyncIterator[KeptRoom]:
        url = load_config({"url": broker_url.split(), "history": history}).url
        sink = HistoryRecorder()
        broker = open_broker(url, sink)
        yield KeptRoom(broker, sink, f"{KEPT}{uuid.uuid4().hex}")
        await broker.aclose()

    async def test_a_kept_message_carries_its_place(self, kept: KeptRoom) -> None:
        await kept.broker.subscribe([kept.channel])
        before = await kept.position()
        await kept.publish(b"one", b"two", b"three")
        await kept.publish(b"end")
        messages = await self._received(kept, 4)
        assert payloads(messages) == [b"one", b"two", b"three", b"end"]
        _, place = unpack_kept(messages[0])
        assert place == (before.epoch, 1, NO_TAG)
        assert await kept.position() == position_of(messages[-1], before.history_id)

    async def test_the_missed_messages_are_read(self, kept: KeptRoom) -> None:
        start = await kept.position()
        assert start.offset == 0
        await kept.publish(b"", b"two", b"3" * 1000)
        reply = await kept.read(start)
        assert reply.status is WHOLE
        assert payloads(reply.messages) == [b"", b"two", b"3" * 1000]
        assert reply.position == position_of(reply.messages[-1], start.history_id)
        nothing_new = await kept.read(reply.position)
        assert nothing_new == HistoryReply(
            WHOLE, reply.position, previous_history_id=reply.previous_history_id
        )

    async def test_the_text_of_a_position_is_enough_to_resume(self, kept: KeptRoom) -> None:
        await kept.publish(b"one")
        text = str(await kept.position())
        await kept.publish(b"two")
        assert payloads((await kept.read(Position.parse(text))).messages) == [b"two"]

    async def test_the_last_messages_are_read(self, kept: KeptRoom) -> None:
        assert (await kept.read(5)).messages == ()
        await kept.publish(*(b"%d" % number for number in range(7)))
        assert payloads((await kept.read(1)).messages) == [b"6"]
        assert payloads((await kept.read(3)).messages) == [b"4", b"5", b"6"]
        everything = await kept.read(100)
        assert everything.status is WHOLE
        assert payloads(everything.messages) == [b"%d" % number for number in range(7)]
        assert everything.position == await kept.position()
        assert (await kept.read(None)).messages == ()

    async def test_a_long_history_is_read_in_pages(self, kept: KeptRoom) -> None:
        start: Start = await kept.position()
        sent = [b"%d" % number * 40 for number in range(70)]
        await kept.publish(*sent)
        for limits in ({"messages": 30}, {"max_bytes": 3000}, {"messages": 1, "max_bytes": 1}):
            heard: list[bytes] = []
            at: Start = start
            statuses = []
            while True:
                reply = await kept.read(at, **limits)
                statuses.append(reply.status)
                heard += reply.messages
                assert reply.messages
                at = reply.position
                if reply.status is not CUT:
                    break
            assert payloads(heard) == sent
            assert set(statuses[:-1]) == {CUT}
            assert statuses[-1] is WHOLE
        assert payloads((await kept.read(50, messages=10)).messages) == sent[20:30]

    async def test_only_the_newest_messages_are_kept(self, kept: KeptRoom) -> None:
        kept.channel = f"{SMALL}{uuid.uuid4().hex}"
        start = await kept.position()
        await kept.publish(b"1", b"2", b"3")
        assert payloads((await kept.read(start)).messages) == [b"1", b"2", b"3"]
        after_one = position_of((await kept.read(3)).messages[0], start.history_id)
        await kept.publish(b"4")
        reply = await kept.read(start)
        assert (reply.status, reply.messages) == (BROKEN, ())
        assert reply.position == await kept.position()
        assert payloads((await kept.read(after_one)).messages) == [b"2", b"3", b"4"]
        assert payloads((await kept.read(100)).messages) == [b"2", b"3", b"4"]

    async def test_a_message_over_the_size_is_published_and_not_kept(self, kept: KeptRoom) -> None:
        kept.channel = f"{SMALL}{uuid.uuid4().hex}"
        await kept.broker.subscribe([kept.channel])
        start = await kept.position()
        await kept.publish(b"x" * 20, b"y" * 21)
        _, second = await self._received(kept, 2)
        assert unpack(second)[-1] == b"y" * 21
        assert (await kept.read(start)).status is BROKEN
        latest = await kept.read(1)
        assert (latest.status, latest.messages) == (BROKEN, ())
        await kept.publish(b"z")
        again = await kept.read(3)
        assert (again.status, payloads(again.messages)) == (BROKEN, [b"z"])
        assert payloads((await kept.read(position_of(second, start.history_id))).messages) == [b"z"]

    async def _received(self, kept: KeptRoom, count: int) -> list[bytes]:
        while len(kept.received()) < count:
            before = len(kept.sink.seen)
            await with_deadline(ledger.PATIENCE_SECONDS, kept.sink.changed(before))
        return kept.received()

    async def test_a_history_without_use_ends(self, kept: KeptRoom) -> None:
        kept.channel = f"{SHORT}{uuid.uuid4().hex}"
        await kept.publish(b"one")
        start = await kept.position()
        await asyncio.sleep(0.3)  # The rule says 0.2 s.
        reply = await kept.read(start)
        assert (reply.status, reply.messages) == (BROKEN, ())
        assert reply.position is not None
        assert reply.position.epoch != start.epoch
        assert (reply.position.offset, reply.position.tag) == (0, NO_TAG)

    async def test_reading_and_publishing_keep_a_history_alive(self, kept: KeptRoom) -> None:
        kept.channel = f"{USED}read:{uuid.uuid4().hex}"
        published = f"{USED}published:{uuid.uuid4().hex}"
        start = await kept.position()
        starts: dict[str, Start] = {
            published: (await kept.history.read_history({published: None}))[published].position
        }
        await kept.publish(b"one")
        began, sent = time.monotonic(), 0
        # The pauses are much shorter than the rule, because a busy machine makes them longer.
        while time.monotonic() - began < 1.2 * USED_SECONDS:
            await kept.read(None)
            await kept.publish(b"%d" % sent, channel=published)
            sent += 1
            await asyncio.sleep(0.05 * USED_SECONDS)
        assert payloads((await kept.read(start)).messages) == [b"one"]
        found = (await kept.history.read_history(starts))[published]
        assert payloads(found.messages) == [b"%d" % number for number in range(sent)]

    async def test_a_position_of_another_epoch_or_message_is_broken(self, kept: KeptRoom) -> None:
        await kept.publish(b"one", b"two")
        newest = await kept.position()
        for wrong in (
            Position(b"another!", newest.offset, newest.tag, newest.history_id),
            Position(newest.epoch, newest.offset + 1, newest.tag, newest.history_id),
            Position(newest.epoch, newest.offset, bytes(16), newest.history_id),
        ):
            reply = await kept.read(wrong)
            assert (reply.status, reply.messages, reply.position) == (BROKEN, (), newest)

    async def test_a_reply_stands_in_the_stream_behind_the_subscription(
        self, kept: KeptRoom
    ) -> None:
        start = await kept.position()
        count = 60
        await kept.publish(*(b"%d" % number for number in range(20)))
        storm = asyncio.ensure_future(kept.publish(*(b"%d" % n for n in range(20, count))))
        await kept.history.subscribe_with_history({kept.channel: start})
        await storm
        (reply,) = await kept.sink.replies(kept.channel)
        place = kept.sink.seen.index(("reply", kept.channel, reply))
        assert reply.status is WHOLE
        while True:
            behind: list[bytes] = [one[2] for one in kept.sink.seen[place:] if one[0] == "message"]
            if len(reply.messages) + len(behind) >= count:
                break
            await with_deadline(ledger.PATIENCE_SECONDS, kept.sink.changed(len(kept.sink.seen)))
        # The reply contains the messages before it in the stream; the later ones follow it.
        assert payloads([*reply.messages, *behind]) == [b"%d" % n for n in range(count)]

    async def test_many_channels_are_subscribed_and_read_at_once(self, kept: KeptRoom) -> None:
        names = [f"{kept.channel}:{number}" for number in range(100)]
        starts: dict[str, Start] = {}
        for name in names:
            starts[name] = (await kept.history.read_history({name: None}))[name].position
        await asyncio.gather(*(kept.publish(name.encode(), channel=name) for name in names))
        await kept.history.subscribe_with_history(starts)
        for name in names:
            (reply,) = await kept.sink.replies(name)
            assert reply.status is WHOLE
            assert payloads(reply.messages) == [name.encode()]
        assert await kept.history.read_history(dict.fromkeys(names, 1)) == {
            name: reply for name in names for reply in await kept.sink.replies(name)
        }

    async def test_a_subscribed_channel_can_be_read_again(self, kept: KeptRoom) -> None:
        await kept.history.subscribe_with_history({kept.channel: None})
        (first,) = await kept.sink.replies(kept.channel)
        assert (first.status, first.messages) == (WHOLE, ())
        await kept.publish(b"one")
        kept.history.request_history(kept.channel, first.position)
        second = (await kept.sink.replies(kept.channel, 2))[1]
        assert payloads(second.messages) == [b"one"]
        # The message came before the request, and so its delivery stands before the reply.
        kinds = [seen[0] for seen in kept.sink.seen if seen[1] == kept.channel]
        assert kinds == ["reply", "message", "reply"]

    async def test_a_channel_that_was_just_unsubscribed_is_read_again(self, kept: KeptRoom) -> None:
        await kept.history.subscribe_with_history({kept.channel: None})
        for count in range(2, 6):
            # The server has perhaps not been told yet that nobody subscribes.
            await kept.broker.unsubscribe([kept.channel])
            await kept.history.subscribe_with_history({kept.channel: 1})
            assert (await kept.sink.replies(kept.channel, count))[-1].status is WHOLE

    async def test_an_unsubscribed_channel_gives_no_reply(self, kept: KeptRoom) -> None:
        other = f"{kept.channel}:other"
        await kept.history.subscribe_with_history({kept.channel: None, other: None})
        kept.history.request_history(kept.channel, None)
        await kept.broker.unsubscribe([kept.channel])
        kept.history.request_history(other, None)
        await kept.sink.replies(other, 2)
        assert len(await kept.sink.replies(kept.channel)) == 1

    async def test_a_channel_without_a_rule_and_a_message_without_a_header_are_not_kept(
        self, kept: KeptRoom, room: str
    ) -> None:
        await kept.broker.subscribe([kept.channel, room])
        (header, bare) = kept.publisher.headers([room, kept.channel], is_text=False)
        await kept.broker.publish([room, kept.channel], b"both", [header, bare])
        await kept.sink.until("message", room, header + b"both")
        await kept.broker.publish([kept.channel, room], b"raw")
        await kept.sink.until("message", kept.channel, b"raw")
        assert payloads((await kept.read(10)).messages) == [b"both"]

    async def test_a_hub_without_history_understands_kept_messages(
        self, kept: KeptRoom, broker_url: str
    ) -> None:
        async with open_hub(broker_url) as hub, listening(hub, kept.channel) as heard:
            await kept.publish(*(b"%d" % number for number in range(10)))
            await heard.until_payload(b"9")
            assert [m.payload for m in heard.messages] == [b"%d" % n for n in range(10)]
            assert heard.gaps == []
            assert hub.stats()["poison"] == 0

    async def test_the_largest_payload_is_kept_if_the_rule_says_so(
        self, broker_url: str, room: str
    ) -> None:
        size = 2 * 1024 * 1024
        url = load_config(
            {
                "url": broker_url.split(),
                "history": {"": {"messages": 2, "seconds": 5, "bytes": size}},
            }
        ).url
        async with open_hub({"url": broker_url.split()}) as hub:
            assert hub.max_payload_bytes >= size
        sink = HistoryRecorder()
        broker = open_broker(url, sink)
        kept = KeptRoom(broker, sink, room)
        await kept.publish(b"x" * size)
        reply = await kept.read(1)
        assert payloads(reply.messages) == [b"x" * size]
        await kept.history.subscribe_with_history({room: 2})
        assert (await sink.replies(room)) == [reply]
        await broker.aclose()

    async def test_concurrent_publishers_share_one_history(self, kept: KeptRoom) -> None:
        others = [KeptRoom(kept.broker, kept.sink, kept.channel) for _ in range(4)]
        start = await kept.position()
        await asyncio.gather(
            *(
                other.publish(*(b"%d:%d" % (index, number) for number in range(20)))
                for index, other in enumerate(others)
            )
        )
        found = payloads((await kept.read(start)).messages)
        assert len(found) == 80
        for index in range(4):
            own = [one for one in found if one.startswith(b"%d:" % index)]
            assert own == [b"%d:%d" % (index, number) for number in range(20)]

    async def test_a_closed_broker_reads_nothing(self, kept: KeptRoom) -> None:
        from ...errors import BrokerClosed

        await kept.broker.aclose()
        with pytest.raises(BrokerClosed):
            await kept.read(None)
        with pytest.raises(BrokerClosed):
            await kept.history.subscribe_with_history(cast("dict[str, Start]", {kept.channel: 1}))
