"""The entries of a channel, and the diffs of them to its watchers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ...errors import BrokerClosed
from ...presence import ABSENT, LeaseAction, PresenceDiff, PresenceSnapshot
from .presence_room import PresenceRoom, PresenceTests, replica_of

__all__ = ["PresenceContract"]


class PresenceContract(PresenceTests):
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
