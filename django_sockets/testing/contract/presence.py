"""The presence of a channel: entries, diffs to its watchers, and the leases of processes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

from ...broker import Broker, PresenceSink, SupportsPresence
from ...deadlines import with_deadline
from ...errors import BrokerClosed
from ...presence import (
    ABSENT,
    ADOPTED_AT_ONCE,
    LeaseAction,
    LeaseReply,
    LeaseState,
    PresenceDiff,
    PresenceSnapshot,
)
from ...registry import open_broker
from .. import ledger
from .base import ContractTests, RecordingSink, patient, with_options

__all__ = ["LeaseContract", "PresenceContract", "PresenceRecorder", "PresenceRoom", "replica_of"]

LONG_SECONDS = 600
"""A lease that does not end during a test."""


class PresenceRecorder(RecordingSink):
    """Records ("snapshot", channel, snapshot), ("diff", channel, diff) and ("gone", channels)."""

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        self.seen.append(("snapshot", channel, snapshot))
        self._changed.set()

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        self.seen.append(("diff", channel, diff))
        self._changed.set()

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        self.seen.append(("gone", tuple(sorted(channels)), reason))
        self._changed.set()

    def found(self, kind: str, channel: str) -> list[Any]:
        """The recorded items of one kind for a channel."""
        return [one[2] for one in self.seen if one[:2] == (kind, channel)]

    async def wait(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds; it is checked at each call of the broker."""

        async def look() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await with_deadline(ledger.PATIENCE_SECONDS, look())

    async def snapshots(self, channel: str, count: int = 1) -> list[PresenceSnapshot | None]:
        """The snapshots of a channel, once there are so many."""
        await self.wait(lambda: len(self.found("snapshot", channel)) >= count)
        return self.found("snapshot", channel)

    async def diffs(self, channel: str, count: int = 1) -> list[PresenceDiff]:
        """The diffs of a channel, once there are so many."""
        await self.wait(lambda: len(self.found("diff", channel)) >= count)
        return self.found("diff", channel)

    async def version(self, channel: str, version: int) -> PresenceSnapshot:
        """The replica of a channel, once it has this version."""
        await self.wait(lambda: replica_of(self.seen, channel).version >= version)
        return replica_of(self.seen, channel)


def replica_of(seen: Sequence[tuple[Any, ...]], channel: str) -> PresenceSnapshot:
    """The entries of a channel by what a sink has got; fails if a change is missing."""
    found = ABSENT
    for kind, name, item in seen:
        if name != channel or kind not in ("snapshot", "diff"):
            continue
        if kind == "snapshot":
            assert item is not None
            found = item
        elif item.epoch == found.epoch and item.version <= found.version:
            continue
        else:
            assert item.version == found.version + 1
            assert found is ABSENT or not found.version or item.epoch == found.epoch
            entries = {**found.entries, **item.changes}
            kept = {field: value for field, value in entries.items() if value}
            found = PresenceSnapshot(item.epoch, item.version, kept)
    return found


class PresenceRoom:
    """One channel, and a broker whose sink records.

    Attributes:
        broker: the broker; also as `presence`.
        sink: the sink of the broker.
        channel: the channel.
    """

    def __init__(self, url: str, channel: str) -> None:
        self.sink = PresenceRecorder()
        self.broker: Broker = open_broker(url, self.sink)
        self.channel = channel
        assert isinstance(self.sink, PresenceSink)

    @property
    def presence(self) -> SupportsPresence:
        assert isinstance(self.broker, SupportsPresence)
        return self.broker

    async def change(self, **changes: bytes | None) -> Any:
        """Put entries of the process "p", or remove them (None)."""
        return await self.presence.change_presence(
            self.channel, {f"p:{name}": value or b"" for name, value in changes.items()}
        )

    async def watch(self) -> PresenceSnapshot:
        """Watch the channel; returns the first snapshot."""
        before = len(self.sink.found("snapshot", self.channel))
        await self.presence.watch_presence([self.channel])
        snapshot = self.sink.found("snapshot", self.channel)[before]
        assert snapshot is not None
        return cast("PresenceSnapshot", snapshot)

    async def read(self) -> PresenceSnapshot:
        """Read the channel outside of the stream."""
        return (await self.presence.read_presence([self.channel]))[self.channel]

    async def lease(
        self,
        process: str,
        action: LeaseAction,
        seconds: float = LONG_SECONDS,
        grace: float = 0,
        adopt: Sequence[str] = (),
        server: str = "",
    ) -> LeaseReply:
        """Call `lease` at one server, the one of the channel by default."""
        return await self.presence.lease(
            server or self.presence.lease_server_of(self.channel),
            process,
            action,
            lease_seconds=seconds,
            grace_seconds=grace,
            adopt=adopt,
        )

    async def until_dead(self, *processes: str) -> LeaseReply:
        """Look until the leases of these processes have ended.

        The looks name a long lease. With a short one, a pause of a busy machine would give
        everybody a whole lease again and again.
        """

        async def look() -> LeaseReply:
            while True:
                reply = await self.lease("watcher", LeaseAction.LOOK)
                if reply.dead.issuperset(processes):
                    return reply
                await asyncio.sleep(0.02)

        return await with_deadline(ledger.PATIENCE_SECONDS, look())


class _WithRoom(ContractTests):
    """Tests with a room whose server-side names no other test uses."""

    @pytest.fixture
    def own_url(self, broker_url: str) -> str:
        """The URL with a prefix of its own, because all channels share the leases."""
        return patient(with_options(broker_url, prefix=f"p{uuid.uuid4().hex}"))

    @pytest.fixture
    async def here(self, own_url: str, room: str) -> AsyncIterator[PresenceRoom]:
        here = PresenceRoom(own_url, room)
        yield here
        await here.broker.aclose()

    @pytest.fixture
    async def there(self, own_url: str, room: str) -> AsyncIterator[PresenceRoom]:
        """The same channel in another broker, as in another process."""
        there = PresenceRoom(own_url, room)
        yield there
        await there.broker.aclose()


class PresenceContract(_WithRoom):
    """The promises of `SupportsPresence` on entries, while the server works."""

    async def test_a_watcher_sees_each_change_with_the_next_version(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        assert await here.watch() == ABSENT
        first = await there.change(a=b"1", b=b"2")
        second = await there.change(a=b"3", b=None, c=b"4")
        assert (first.version, first.changed, first.refused) == (1, 2, ())
        assert (second.version, second.changed, second.epoch) == (2, 3, first.epoch)
        assert len(first.epoch) == 8
        one, two = await here.sink.diffs(here.channel, 2)
        assert one == PresenceDiff(first.epoch, 1, {"p:a": b"1", "p:b": b"2"})
        assert two == PresenceDiff(first.epoch, 2, {"p:b": b"", "p:a": b"3", "p:c": b"4"})
        assert list(two.changes) == ["p:b", "p:a", "p:c"]
        assert (
            await here.read()
            == PresenceSnapshot(first.epoch, 2, {"p:a": b"3", "p:c": b"4"})
            == replica_of(here.sink.seen, here.channel)
        )

    async def test_the_first_snapshot_has_the_entries_so_far(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await there.change(a=b"1")
        changed = await there.change(b=b"2")
        expected = PresenceSnapshot(changed.epoch, 2, {"p:a": b"1", "p:b": b"2"})
        assert await here.watch() == expected == await there.read()
        assert here.sink.found("diff", here.channel) == []

    async def test_a_snapshot_is_the_boundary_between_old_and_new_diffs(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        count = 60
        for number in range(20):
            await there.change(**{f"n{number}": b"x"})
        storm = [
            asyncio.ensure_future(there.change(**{f"n{number}": b"x"}))
            for number in range(20, count)
        ]
        snapshot = await here.watch()
        here.presence.request_presence(here.channel)
        await asyncio.gather(*storm)
        replica = await here.sink.version(here.channel, count)
        assert replica == await here.read()
        assert len(replica.entries) == count
        place = here.sink.seen.index(("snapshot", here.channel, snapshot))
        behind = [one[2].version for one in here.sink.seen[place:] if one[0] == "diff"]
        assert behind == list(range(snapshot.version + 1, count + 1))

    async def test_what_changes_nothing_publishes_nothing(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.watch()
        nothing = await there.change(a=None)
        assert (nothing.epoch, nothing.version, nothing.changed) == (b"", 0, 0)
        assert await there.read() == ABSENT
        first = await there.change(a=b"1", b=b"2")
        for repeated in ({"a": b"1", "b": b"2"}, {"b": b"2"}, {"c": None}):
            again = await there.change(**repeated)
            assert (again.epoch, again.version, again.changed) == (first.epoch, 1, 0)
        mixed = await there.change(a=b"1", b=b"3", c=None)
        assert (mixed.version, mixed.changed) == (2, 1)
        _, diff = await here.sink.diffs(here.channel, 2)
        assert (diff.version, diff.changes) == (2, {"p:b": b"3"})

    async def test_changes_of_many_processes_are_numbered_without_gaps(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.watch()
        changes = await asyncio.gather(
            *(
                room.change(**{f"{name}{number}": b"x"})
                for number in range(50)
                for name, room in (("here", here), ("there", there))
            )
        )
        assert sorted(change.version for change in changes) == list(range(1, 101))
        versions = [diff.version for diff in await here.sink.diffs(here.channel, 100)]
        assert versions == list(range(1, 101))
        assert replica_of(here.sink.seen, here.channel) == await there.read()

    async def test_changes_of_one_process_take_effect_in_their_order(
        self, here: PresenceRoom
    ) -> None:
        await asyncio.gather(
            *(here.change(a=b"%d" % number if number % 3 else None) for number in range(1, 51))
        )
        assert (await here.read()).entries == {"p:a": b"50"}

    async def test_a_full_channel_refuses_only_new_entries(self, here: PresenceRoom) -> None:
        await here.watch()

        async def change(**changes: bytes) -> Any:
            named = {f"p:{name}": value for name, value in changes.items()}
            return await here.presence.change_presence(here.channel, named, max_entries=3)

        assert (await change(a=b"1", b=b"1")).refused == ()
        part = await change(c=b"1", d=b"1", a=b"2", e=b"1")
        assert (part.changed, part.refused) == (2, ("p:d", "p:e"))
        full = await change(d=b"1")
        assert (full.version, full.changed, full.refused) == (2, 0, ("p:d",))
        # A removal in the same call frees a place, wherever it stands.
        swapped = await change(d=b"1", a=b"")
        assert (swapped.changed, swapped.refused) == (2, ())
        expected = {"p:b": b"1", "p:c": b"1", "p:d": b"1"}
        assert (await here.sink.version(here.channel, 3)).entries == expected
        assert (await here.read()).entries == expected

    async def test_an_empty_channel_goes_on_with_its_versions(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        first = await there.change(a=b"1")
        await there.change(a=None)
        assert await here.watch() == PresenceSnapshot(first.epoch, 2, {})
        again = await there.change(a=b"1")
        assert (again.epoch, again.version) == (first.epoch, 3)

    async def test_fields_are_any_text_and_values_any_bytes(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.watch()
        entries = {
            "p:": b"\0",
            "p::e": b":v",
            "p:ünï {x}\r\n": bytes(range(256)),
            f"p:{'x' * 1000}": b"y" * 100_000,
            "p:1": b"00000001" * 3,
        }
        await there.presence.change_presence(there.channel, entries)
        (diff,) = await here.sink.diffs(here.channel)
        assert diff.changes == entries == (await there.read()).entries

    async def test_a_field_names_its_process(self, here: PresenceRoom) -> None:
        for field in ("", "e", ":e", ":v", ":"):
            with pytest.raises(ValueError, match="process"):
                await here.presence.change_presence(here.channel, {"p:1": b"x", field: b"y"})
        with pytest.raises(ValueError, match="no changes"):
            await here.presence.change_presence(here.channel, {})
        assert await here.read() == ABSENT

    async def test_ten_thousand_entries_are_one_snapshot_and_one_diff(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        entries = {f"0123456789abcdef:{n:08}": b"%08d" % n * 12 for n in range(10_000)}
        await here.watch()
        changed = await there.presence.change_presence(there.channel, entries)
        assert (changed.version, changed.changed) == (1, 10_000)
        (diff,) = await here.sink.diffs(here.channel)
        assert diff.changes == entries
        for count in (2, 3):
            here.presence.request_presence(here.channel)
            snapshot = (await here.sink.snapshots(here.channel, count))[-1]
            assert snapshot == PresenceSnapshot(changed.epoch, 1, entries)
        assert (await there.watch()) == snapshot
        # The next change of one entry is small again.
        await there.presence.change_presence(there.channel, {"0123456789abcdef:00000000": b""})
        assert (await here.sink.diffs(here.channel, 2))[1].version == 2
        assert not any(one[0] == "gone" for one in here.sink.seen)

    # Watching

    async def test_many_channels_are_watched_and_read_at_once(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        names = [f"{here.channel}:{number}" for number in range(100)]
        await asyncio.gather(
            *(there.presence.change_presence(name, {"p:1": name.encode()}) for name in names)
        )
        await here.presence.watch_presence(names)
        everything = await there.presence.read_presence(names)
        assert list(everything) == names
        for name in names:
            (snapshot,) = await here.sink.snapshots(name)
            assert snapshot == everything[name]
            assert snapshot.entries == {"p:1": name.encode()}

    async def test_two_watches_of_one_channel_both_return_with_a_snapshot(
        self, here: PresenceRoom
    ) -> None:
        await here.change(a=b"1")
        calls = [asyncio.ensure_future(here.watch()) for _ in range(3)]
        assert [one.entries for one in await asyncio.gather(*calls)] == [{"p:a": b"1"}] * 3

    async def test_a_cancelled_watch_leaves_another_one_alone(self, here: PresenceRoom) -> None:
        await here.change(a=b"1")
        cancelled = asyncio.ensure_future(here.watch())
        other = asyncio.ensure_future(here.watch())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert (await other).entries == {"p:a": b"1"}
        await here.change(b=b"2")
        await here.sink.version(here.channel, 2)

    async def test_a_watched_channel_is_read_again_in_the_stream(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.watch()
        await there.change(a=b"1")
        here.presence.request_presence(here.channel)
        _, again = await here.sink.snapshots(here.channel, 2)
        assert again is not None
        assert again.entries == {"p:a": b"1"}
        # The change came before the request, and so its diff stands before the reply.
        assert [one[0] for one in here.sink.seen] == ["snapshot", "diff", "snapshot"]

    async def test_an_unwatched_channel_is_silent(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        other = f"{here.channel}:other"
        await here.presence.watch_presence([here.channel, other])
        here.presence.request_presence(here.channel)
        await here.presence.unwatch_presence([here.channel])
        here.presence.request_presence(here.channel)
        await there.change(a=b"1")
        await there.presence.change_presence(other, {"p:1": b"x"})
        await here.sink.diffs(other)
        here.presence.request_presence(other)
        await here.sink.snapshots(other, 2)
        assert len(here.sink.found("snapshot", here.channel)) == 1
        assert here.sink.found("diff", here.channel) == []

    async def test_a_channel_that_was_just_unwatched_is_watched_again(
        self, here: PresenceRoom
    ) -> None:
        for number in range(1, 6):
            await here.change(a=b"%d" % number)
            assert (await here.watch()).version == number
            # The server has perhaps not been told yet that nobody watches.
            await here.presence.unwatch_presence([here.channel])
        assert (await here.watch()).entries == {"p:a": b"5"}

    async def test_messages_and_presence_of_a_channel_are_independent(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.broker.subscribe([here.channel])
        await here.watch()
        await there.broker.publish([there.channel], b"one")
        await there.change(a=b"1")
        await here.sink.until("message", here.channel, b"one")
        await here.sink.diffs(here.channel)
        await here.broker.unsubscribe([here.channel])
        await there.change(a=b"2")
        await here.sink.diffs(here.channel, 2)
        await here.broker.subscribe([here.channel])
        await here.presence.unwatch_presence([here.channel])
        await there.change(a=b"3")
        await there.broker.publish([there.channel], b"two")
        await here.sink.until("message", here.channel, b"two")
        kinds = [one[0] for one in here.sink.seen]
        assert sorted(kinds) == ["diff", "diff", "message", "message", "snapshot"]

    async def test_a_closed_broker_does_nothing(self, here: PresenceRoom) -> None:
        await here.watch()
        await here.broker.aclose()
        with pytest.raises(BrokerClosed):
            await here.change(a=b"1")
        with pytest.raises(BrokerClosed):
            await here.presence.watch_presence([here.channel])
        with pytest.raises(BrokerClosed):
            await here.read()
        with pytest.raises(BrokerClosed):
            await here.lease("p", LeaseAction.NEW)


NEW, RENEW, END, LOOK = LeaseAction.NEW, LeaseAction.RENEW, LeaseAction.END, LeaseAction.LOOK
OK, ENDED, UNKNOWN = LeaseState.OK, LeaseState.ENDED, LeaseState.UNKNOWN
SHORT_SECONDS = 0.2


class LeaseContract(_WithRoom):
    """The promises of `SupportsPresence` on leases, while the server works."""

    async def test_a_lease_begins_and_is_renewed(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        assert (await here.lease("a", LOOK)).state is UNKNOWN
        assert (await here.lease("a", RENEW)).state is UNKNOWN
        begun = await here.lease("a", NEW)
        assert (begun.state, begun.dead) == (OK, frozenset())
        assert begun.soonest_ms == begun.now_ms + LONG_SECONDS * 1000
        looked = await there.lease("b", LOOK)
        assert (looked.state, looked.soonest_ms) == (UNKNOWN, begun.soonest_ms)
        renewed = await here.lease("a", RENEW, LONG_SECONDS * 2)
        assert renewed.state is OK
        assert renewed.soonest_ms == renewed.now_ms + LONG_SECONDS * 2000
        assert renewed.now_ms >= looked.now_ms >= begun.now_ms
        # Repeating the call that began it is harmless, if its reply was lost.
        assert (await here.lease("a", NEW)).state is OK

    async def test_the_next_end_is_that_of_the_shortest_lease(self, here: PresenceRoom) -> None:
        assert (await here.lease("none", LOOK)).soonest_ms is None
        await here.lease("long", NEW, 500)
        short = await here.lease("short", NEW, 100)
        assert short.soonest_ms == short.now_ms + 100_000
        await here.lease("short", END, 500)
        last = await here.lease("long", LOOK, 500)
        assert last.soonest_ms is not None
        assert 0 < last.soonest_ms - last.now_ms <= 500_000

    async def test_a_lease_that_is_not_renewed_ends(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.lease("a", NEW, SHORT_SECONDS)
        await here.lease("b", NEW, LONG_SECONDS)
        reply = await there.until_dead("a")
        assert reply.dead == {"a"}
        assert (await there.lease("a", LOOK)).state is ENDED
        assert (await there.lease("b", LOOK)).state is OK

    async def test_an_ended_lease_is_never_revived(self, here: PresenceRoom) -> None:
        await here.lease("slow", NEW, SHORT_SECONDS)
        await here.until_dead("slow")
        await here.lease("left", NEW)
        assert (await here.lease("left", END)).state is ENDED
        for process in ("slow", "left"):
            for action in (RENEW, NEW, END, LOOK):
                reply = await here.lease(process, action, grace=60)
                assert reply.state is ENDED
                assert reply.dead == {"slow", "left"}
        adopted = await here.lease("b", NEW, adopt=["slow", "left"])
        assert adopted.dead == {"slow", "left"}

    async def test_a_process_that_leaves_has_the_grace_that_it_asks_for(
        self, here: PresenceRoom
    ) -> None:
        await here.lease("a", NEW)
        leaving = await here.lease("a", END, grace=50)
        assert (leaving.state, leaving.dead) == (OK, frozenset())
        assert leaving.soonest_ms == leaving.now_ms + 50_000
        await here.lease("b", NEW, SHORT_SECONDS)
        await here.lease("b", END, SHORT_SECONDS, grace=0.01)
        assert (await here.until_dead("b")).dead == {"b"}
        assert (await here.lease("a", LOOK)).state is OK
        # A process that the server does not know is known to have left.
        gone = await here.lease("c", END)
        assert gone.state is ENDED
        assert gone.dead == {"b", "c"}

    async def test_unknown_owners_are_adopted_for_one_lease(self, here: PresenceRoom) -> None:
        await here.lease("known", NEW, LONG_SECONDS)
        first = await here.lease("me", NEW, SHORT_SECONDS, adopt=["known", "stranger"])
        assert first.dead == frozenset()
        # An adopted process that lives renews its lease like any other.
        assert (await here.lease("stranger", LOOK, SHORT_SECONDS)).state is OK
        assert (await here.until_dead("stranger")).dead >= {"stranger"}
        assert (await here.lease("known", LOOK)).state is OK

    async def test_many_owners_are_adopted_at_once(self, here: PresenceRoom) -> None:
        ids = [uuid.uuid4().hex for _ in range(ADOPTED_AT_ONCE)]
        assert (await here.lease("me", NEW, adopt=ids)).dead == frozenset()
        for one in ids[:3] + ids[-3:]:
            assert (await here.lease(one, RENEW)).state is OK
        with pytest.raises(ValueError, match="adopt has 1001"):
            await here.lease("me", LOOK, adopt=[*ids, "one"])

    async def test_after_a_time_without_calls_the_living_get_a_whole_lease(
        self, here: PresenceRoom
    ) -> None:
        """The server was away, or so it seems to it: nobody could renew."""
        await here.lease("left", NEW, SHORT_SECONDS)
        await here.lease("left", END, SHORT_SECONDS)
        await here.lease("b", NEW, LONG_SECONDS)
        await here.lease("a", NEW, SHORT_SECONDS)
        await asyncio.sleep(2 * SHORT_SECONDS)  # Longer than the lease, on any machine.
        back = await here.lease("me", LOOK, SHORT_SECONDS)
        assert back.dead == {"left"}
        assert back.soonest_ms == back.now_ms + SHORT_SECONDS * 1000
        # It ends like any other; and a longer one was not shortened.
        assert (await here.until_dead("a")).dead == {"left", "a"}

    async def test_each_server_has_its_own_leases(self, here: PresenceRoom) -> None:
        servers = here.presence.lease_servers
        assert len(set(servers)) == len(servers) >= 1
        channels = [f"{here.channel}:{number}" for number in range(100)]
        assert {here.presence.lease_server_of(channel) for channel in channels} == set(servers)
        for number, server in enumerate(servers):
            assert (await here.lease(f"p{number}", NEW, server=server)).state is OK
            await here.lease(f"p{number}", END, server=server)
        for number, server in enumerate(servers):
            assert (await here.lease("me", LOOK, server=server)).dead == {f"p{number}"}
        with pytest.raises(ValueError, match="no lease server"):
            await here.lease("me", LOOK, server="nowhere")

    async def test_wrong_arguments_are_named(self, here: PresenceRoom) -> None:
        for process in ("", ":last", "a:b", "a\n", "ä", "x" * 65):
            with pytest.raises(ValueError, match="is no process id"):
                await here.lease(process, NEW)
            with pytest.raises(ValueError, match="is no process id"):
                await here.lease("me", NEW, adopt=[process])
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="lease_seconds="):
                await here.lease("me", NEW, seconds)
        for grace in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="grace_seconds="):
                await here.lease("me", END, grace=grace)
