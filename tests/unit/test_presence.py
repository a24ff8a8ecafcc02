"""Leases, reaping, grace and resyncs of a hub, with a bus in memory and a clock that is moved."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from django_sockets import (
    ConfigurationError,
    Presence,
    PresenceError,
    SubscribeError,
    open_hub,
)
from django_sockets.backends import memory_presence
from django_sockets.conf import load_config
from django_sockets.errors import BrokerClosed
from django_sockets.hub.presence.reaper import place_in_order
from django_sockets.hub.presence.replica import Replica
from django_sockets.hub.presence.values import pack_value
from django_sockets.presence import ABSENT, PresenceDiff, PresenceSnapshot
from django_sockets.testing import Faults
from support.presence_world import GRACE, LEASE, ROOM, world_of

# The replica


def value(key: str, info: object = None) -> bytes:
    return pack_value(key, info, 1000)


def snapshot(version: int, **entries: str) -> PresenceSnapshot:
    fields = {f"{name[0]}:{name[1:]}": value(key) for name, key in entries.items()}
    return PresenceSnapshot(b"epoch000", version, fields)


def taken(replica: Replica, state: PresenceSnapshot) -> Presence | None:
    return replica.take_snapshot(state, replica.difference(state))


def test_a_key_joins_with_its_first_entry_and_leaves_with_its_last_one() -> None:
    replica = Replica(ROOM)
    change = taken(replica, snapshot(1, a1="ann"))
    assert change is not None
    assert (change.joined, change.left) == ({"ann": [None]}, {})
    change = taken(replica, snapshot(5, a1="ann", b1="ann"))
    assert change is not None
    assert (change.joined, change.left, change.updated) == ({}, {}, {"ann": [None, None]})
    # The entries are replaced by another one with the same info, as after a lease that was missed.
    change = replica.take_diff(
        PresenceDiff(b"epoch000", 6, {"a:1": b"", "b:1": b"", "c:1": value("ann"), "d:1": b"x"})
    )
    assert change is not None
    assert change.updated == {"ann": [None]}
    assert replica.members() == {"ann": [None]}
    assert replica.members({"c"}) == {}
    assert set(replica.processes) == {"c", "d"}
    change = taken(replica, PresenceSnapshot(b"", 0, {}))
    assert change is not None
    assert change.left == {"ann": [None]}
    assert not replica.processes


def test_entries_in_another_order_are_no_change() -> None:
    replica = Replica(ROOM)
    before = {"a:1": value("ann", 1), "a:2": value("ann", 2)}
    taken(replica, PresenceSnapshot(b"epoch000", 1, before))
    after = {"a:1": b"", "a:2": b"", "b:2": value("ann", 2), "b:1": value("ann", 1)}
    assert replica.take_diff(PresenceDiff(b"epoch000", 2, after)) is None


def test_a_list_decodes_no_info_again_and_has_lists_of_its_own() -> None:
    replica = Replica(ROOM)
    entries = {"a:1": value("ann", {"n": 1}), "b:1": value("ann", {"n": 2})}
    change = taken(replica, PresenceSnapshot(b"epoch000", 1, entries))
    assert change is not None
    first, second, left_out = replica.members(), replica.members(), replica.members({"b"})
    assert first == second == {"ann": [{"n": 1}, {"n": 2}]}
    assert left_out == {"ann": [{"n": 1}]}
    for found in (second, left_out, change.joined):
        assert found["ann"] is not first["ann"]
        assert found["ann"][0] is first["ann"][0]


def test_an_entry_may_change_its_key() -> None:
    replica = Replica(ROOM)
    taken(replica, snapshot(1, a1="ann"))
    change = replica.take_diff(PresenceDiff(b"epoch000", 2, {"a:1": value("bob", 1)}))
    assert change == Presence(channel=ROOM, joined={"bob": [1]}, left={"ann": [None]})


@pytest.mark.parametrize(
    ("epoch", "version", "follows"),
    [
        (b"epoch000", 4, True),
        (b"epoch000", 3, None),
        (b"epoch000", 2, None),
        (b"epoch000", 5, False),
        (b"epoch001", 4, False),
        (b"epoch001", 1, False),
    ],
)
def test_only_the_next_diff_follows(epoch: bytes, version: int, follows: bool | None) -> None:
    replica = Replica(ROOM)
    taken(replica, snapshot(3, a1="ann"))
    assert replica.follows(PresenceDiff(epoch, version, {"a:2": b"x"})) is follows


def test_the_first_diff_of_a_new_epoch_follows_on_a_channel_without_entries() -> None:
    replica = Replica(ROOM)
    taken(replica, PresenceSnapshot(b"", 0, {}))
    assert replica.follows(PresenceDiff(b"epoch001", 1, {"a:1": b"x"}))
    assert replica.follows(PresenceDiff(b"epoch001", 2, {"a:1": b"x"})) is False


# Reaping


def test_every_process_has_its_own_place_in_the_order() -> None:
    processes = [f"process {number}" for number in range(8)]
    first: Counter[str] = Counter()
    for dead in range(50):
        places = {one: place_in_order(ROOM, f"dead {dead}", one, processes) for one in processes}
        assert sorted(places.values()) == list(range(8))
        first.update(one for one, place in places.items() if not place)
    assert len(first) > 4, "the work is not shared"


@pytest.mark.parametrize("watchers", [1, 2, 5])
async def test_members_of_a_dead_process_leave_within_the_lease_and_2_seconds(
    watchers: int,
) -> None:
    async with world_of(watchers + 1) as world:
        dying, *living = world.processes
        await asyncio.gather(*(dying.hub.track(ROOM, f"user {n}") for n in range(20)))
        for process in living:
            await process.hub.track(ROOM, "stays", entry=process.id)
        await world.move(LEASE / 3)  # The last renewal of the process.
        await world.move(1)
        await dying.crash()
        await world.move(LEASE - 2)
        assert all(len(process.view.members) == 21 for process in living)
        assert len(await living[0].hub.presence(ROOM)) == 21
        await world.move(3)
        for process in living:
            assert set(process.view.members) == {"stays"}
            assert Counter(process.view.told)["-user 0"] == 1
        assert sum(process.hub.stats()["presence_reaped"] for process in living) == 20
        assert len(world.entries) == watchers


async def test_the_next_in_the_order_reaps_if_the_first_does_not() -> None:
    async with world_of(4) as world:
        dying, *living = world.processes
        await dying.hub.track(ROOM, "ann")
        for process in living:
            await process.hub.track(ROOM, process.id)
        order = sorted(
            living,
            key=lambda one: place_in_order(ROOM, dying.id, one.id, [two.id for two in living]),
        )
        await dying.crash()
        await world.move(LEASE - 1)
        await order[0].crash()  # It dies, too, and its lease goes on.
        await world.move(3)
        assert "ann" not in order[1].view.members
        assert order[1].hub.stats()["presence_reaped"] == 1


async def test_late_writes_of_a_dead_process_are_removed() -> None:
    async with world_of(2) as world:
        dying, other = world.processes
        await dying.hub.track(ROOM, "ann")
        await dying.crash()
        await world.move(LEASE + 2)
        world.write_late(dying.id, "ghost")
        assert await other.hub.presence(ROOM) == {}
        await world.move(2)
        assert world.entries == {}
        assert other.view.members == {}
        assert other.view.told == ["+ann", "-ann", "+ghost", "-ghost"]


async def test_entries_of_a_dead_process_that_the_server_has_lost_leave_as_well() -> None:
    """Nobody can remove them, so that no diff tells of them."""
    async with world_of(2) as world:
        dying, other = world.processes
        await dying.hub.track(ROOM, "ann")
        await other.hub.track(ROOM, "bob")
        await world.move(1)
        await dying.crash()
        kept = world.bus.presence._channels[ROOM].entries
        for field in [field for field in kept if field.startswith(dying.id)]:
            del kept[field]
        await world.move(LEASE + 2)
        assert other.view.told == ["+ann", "+bob", "-ann"]
        resyncs = other.hub.stats()["presence_resyncs"]
        await world.move(2 * LEASE)
        assert other.hub.stats()["presence_resyncs"] == resyncs == 1


async def test_entries_of_an_unknown_process_live_for_one_lease() -> None:
    async with world_of(1) as world:
        (watcher,) = world.processes
        world.write_late("stranger", "ghost")
        await world.move(1)
        assert watcher.view.members == {"ghost": [None]}
        await world.move(LEASE * 4 / 3 + 2)
        assert watcher.view.members == {}
        assert world.entries == {}


async def test_entries_of_a_process_that_is_forgotten_are_removed_one_lease_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If many processes have ended, the server does not remember all of them."""
    monkeypatch.setattr(memory_presence, "ENDED_LEASES", 2)
    async with world_of(1) as world:
        (watcher,) = world.processes
        await watcher.hub.track(ROOM, "stays")
        leases = world.bus.presence.leases
        for n in range(4):
            leases._ends[f"gone {n}"] = round(world.clock.now * 1000) + n
        await world.move(3 * LEASE)
        assert {"gone 2", "gone 3"} == {one for one in leases._ends if one.startswith("gone")}
        world.write_late("gone 0", "ghost")
        await world.move(LEASE * 4 / 3 + 2)
        assert watcher.view.told == ["+stays", "+ghost", "-ghost"]
        assert len(world.entries) == 1


# Leases


async def test_a_process_that_the_server_has_forgotten_puts_its_entries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was stopped, and many others have ended meanwhile."""
    monkeypatch.setattr(memory_presence, "ENDED_LEASES", 0)
    async with world_of(2) as world:
        stopped, other = world.processes
        await stopped.hub.track(ROOM, "ann")
        await other.hub.track(ROOM, "bob")
        old = stopped.id
        stopped.faults.refuse_presence_calls(1000)
        await world.move(4 * LEASE)
        assert old not in world.bus.presence.leases._ends
        assert set(other.view.members) == {"bob"}
        stopped.faults.stop()
        await world.move(LEASE)
        assert stopped.id != old
        assert set(other.view.members) == {"ann", "bob"}
        assert other.view.told == ["+ann", "+bob", "-ann", "+ann"]
        assert len(world.entries) == 2


async def test_a_process_that_missed_its_lease_puts_its_entries_again() -> None:
    async with world_of(2) as world:
        late, other = world.processes
        await asyncio.gather(*(late.hub.track(ROOM, f"user {n}") for n in range(3)))
        old = late.id
        world.end_lease(late)
        await late.presence._leases["leases"].confirm()
        await world.move(0)
        assert late.id != old
        assert {field.partition(":")[0] for field in world.entries} == {late.id}
        assert other.view.told == ["+user 0", "+user 1", "+user 2"]
        assert late.hub.stats()["presence_replaced"] == 1
        await world.move(100)
        assert len(other.view.members) == 3
        assert late.hub.stats()["presence_replaced"] == 1


async def test_staying_costs_one_command_in_a_third_of_a_lease() -> None:
    async with world_of(1) as world:
        (process,) = world.processes
        await asyncio.gather(*(process.hub.track(f"room {n}", str(n)) for n in range(100)))
        await world.move(0)
        calls: Counter[str] = Counter()
        broker: Any = process.hub._broker  # type: ignore[attr-defined]
        for name in ("lease", "change_presence", "read_presence", "watch_presence"):
            count(broker, name, calls)
        await world.move(LEASE * 4)
        assert calls == {"lease": 12}


def count(broker: Any, name: str, calls: Counter[str]) -> None:
    method = getattr(broker, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return method(*args, **kwargs)

    setattr(broker, name, counted)


async def test_joins_of_one_turn_share_one_command_and_one_event() -> None:
    async with world_of(2) as world:
        process, watcher = world.processes
        calls: Counter[str] = Counter()
        count(process.hub._broker, "change_presence", calls)  # type: ignore[attr-defined]
        await process.hub.track(ROOM, "first")
        await asyncio.gather(*(process.hub.track(ROOM, str(n)) for n in range(500)))
        assert calls == {"change_presence": 2}
        await asyncio.sleep(0.01)
        events = watcher.view.queue.drain()
        assert [len(event.joined) for event in events if isinstance(event, Presence)] == [1, 500]


async def test_a_server_without_answer_is_asked_again_and_nobody_leaves() -> None:
    async with world_of(2) as world:
        process, other = world.processes
        await process.hub.track(ROOM, "ann")
        process.faults.refuse_presence_calls(3)
        await world.move(LEASE)
        assert process.faults.done["presence refused"] == 3
        await world.move(LEASE)
        assert other.view.told == ["+ann"]
        assert process.hub.stats()["presence_replaced"] == 0


# Own entries


@pytest.mark.parametrize("fault", ["refuse_presence_calls", "lose_presence_replies"])
async def test_a_track_that_fails_leaves_no_ghost(fault: str) -> None:
    async with world_of(2) as world:
        process, other = world.processes
        await process.hub.track(ROOM, "ann", 1)
        getattr(process.faults, fault)()
        with pytest.raises(PresenceError, match="by a test"):
            await process.hub.track(ROOM, "bob")
        getattr(process.faults, fault)()
        with pytest.raises(PresenceError):
            await process.hub.track(ROOM, "ann", 2)
        await world.move(3)
        assert other.view.members == process.view.members == {"ann": [1]}
        assert len(world.entries) == 1


async def test_an_untrack_that_fails_is_done_later() -> None:
    async with world_of(2) as world:
        process, other = world.processes
        await process.hub.track(ROOM, "ann")
        process.faults.refuse_presence_calls()
        await process.hub.untrack(ROOM, "ann")
        assert len(world.entries) == 1
        await world.move(2)
        assert (world.entries, other.view.members) == ({}, {})


async def test_a_cancelled_track_leaves_no_ghost() -> None:
    async with world_of(1) as world:
        (process,) = world.processes
        await process.hub.track(ROOM, "ann")
        tracking = asyncio.ensure_future(process.hub.track(ROOM, "bob"))
        await asyncio.sleep(0)
        tracking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tracking
        await world.move(2)
        assert process.view.members == {"ann": [None]}
        assert len(world.entries) == 1


async def test_own_entries_that_somebody_removes_are_put_again() -> None:
    async with world_of(2) as world:
        process, other = world.processes
        await process.hub.track(ROOM, "ann")
        with world.bus.lock:
            world.bus.presence.change(ROOM, {f"{process.id}:ann": b""}, 10)
        await world.move(1)
        assert other.view.members == process.view.members == {"ann": [None]}
        assert process.hub.stats()["presence_replaced"] == 0


async def test_entries_are_written_again_before_a_server_forgets_them() -> None:
    async with world_of(1, "presence_lease_seconds=1800") as world:
        (process,) = world.processes
        await process.hub.track(ROOM, "ann")
        await world.move(30 * 3600)
        assert process.view.told == ["+ann"]
        assert len(world.entries) == 1


# Resyncs


async def test_after_a_loss_the_difference_follows_the_gap() -> None:
    async with world_of(2) as world:
        process, watcher = world.processes
        for key in ("ann", "bob"):
            await process.hub.track(ROOM, key)
        await world.move(0)
        watcher.faults.drop_presence(2)
        await process.hub.untrack(ROOM, "ann")
        await process.hub.track(ROOM, "cid")
        await world.move(0)
        assert watcher.view.told == ["+ann", "+bob"]
        watcher.faults.gap()
        await world.move(0)
        assert watcher.view.gaps == 1
        assert watcher.view.told == ["+ann", "+bob", "+cid", "-ann"]
        assert watcher.hub.stats()["presence_resyncs"] == 1


async def test_a_server_that_has_gone_back_to_an_earlier_version_is_noticed() -> None:
    """A replica that was promoted without the last changes counts from an earlier version."""
    async with world_of(2) as world:
        process, other = world.processes
        for key in ("ann", "bob", "kim"):
            await process.hub.track(ROOM, key)
        await world.move(0)
        kept = world.bus.presence._channels[ROOM]
        kept.version -= 2
        del kept.entries[f"{process.id}:kim"]
        world.write_late("stranger", "ghost")
        await world.move(1)
        assert set(other.view.members) == {"ann", "bob", "kim", "ghost"}
        assert set(world.entries) >= {f"{process.id}:kim", "stranger:late"}
        assert other.hub.stats()["presence_resyncs"] >= 1


async def test_a_diff_that_is_missing_is_noticed_with_the_next_one() -> None:
    async with world_of(2) as world:
        process, watcher = world.processes
        watcher.faults.drop_presence()
        await process.hub.track(ROOM, "ann")
        await process.hub.track(ROOM, "bob")
        await world.move(0)
        assert watcher.view.members == {"ann": [None], "bob": [None]}
        assert watcher.view.gaps == 0


@pytest.mark.parametrize("sign", [True, False])
async def test_a_server_that_lost_its_data_gets_the_entries_again(sign: bool) -> None:
    async with world_of(3) as world:
        for process in world.processes:
            await process.hub.track(ROOM, process.id)
        await world.move(0)
        world.bus.presence.forget(ROOM)
        if sign:
            for process in world.processes:
                process.faults.gap()
        else:
            await world.processes[0].hub.track(ROOM, "new")
        await world.move(1)
        assert len(world.entries) == (3 if sign else 4)
        for process in world.processes:
            assert {one.id for one in world.processes} <= set(process.view.members)
            # It does not see its own member leave.
            assert Counter(process.view.told)[f"-{process.id}"] == 0


async def test_a_reply_of_before_a_loss_is_not_taken_while_own_entries_are_written() -> None:
    async with world_of(1) as world:
        (process,) = world.processes
        await process.hub.track(ROOM, "ann")
        await world.move(0)
        process.hub.presence_lost([ROOM], "by a test")
        process.hub.presence_snapshot(ROOM, ABSENT)
        await world.move(1)
        assert process.view.told == ["+ann"]


async def test_a_server_that_lost_an_entry_of_which_its_owner_was_not_told() -> None:
    async with world_of(2) as world:
        process, other = world.processes
        process.faults.drop_presence()
        await process.hub.track(ROOM, "ann")
        world.bus.presence.forget(ROOM)
        await other.hub.track(ROOM, "bob")
        await world.move(1)
        for one in world.processes:
            assert set(one.view.members) == {"ann", "bob"}


async def test_a_process_whose_lease_has_ended_does_not_put_entries_under_its_old_id() -> None:
    async with world_of(2) as world:
        late, other = world.processes
        await late.hub.track(ROOM, "ann")
        await world.move(0)
        late.faults.drop_presence()
        world.end_lease(late)
        other.presence._leases["leases"].check()
        await world.move(0)
        assert world.entries == {}
        late.faults.gap()
        await world.move(1)
        assert other.view.told == ["+ann", "-ann", "+ann"]
        assert late.view.members == {"ann": [None]}


# Grace and the end of a hub


async def test_a_key_that_returns_in_another_process_ends_the_grace() -> None:
    async with world_of(3) as world:
        old, new, watcher = world.processes
        await old.hub.track(ROOM, "ann", 1, entry="tab")
        old.hub.release("tab")
        await world.move(GRACE / 2)
        await new.hub.track(ROOM, "ann", 2, entry="tab")
        await world.move(0)
        assert watcher.view.members == {"ann": [2]}
        assert "-ann" not in watcher.view.told
        assert len(world.entries) == 1


async def test_a_hub_that_is_closed_lets_its_members_stay_for_the_grace() -> None:
    async with world_of(2) as world:
        closing, watcher = world.processes
        await closing.hub.track(ROOM, "ann")
        closing.alive = False
        await closing.hub.aclose()
        await world.move(GRACE - 0.5)
        assert watcher.view.members == {"ann": [None]}
        await world.move(2.5)
        assert watcher.view.members == {}
        assert world.entries == {}


async def test_without_a_grace_members_leave_at_once() -> None:
    async with world_of(2, "presence_grace_seconds=0") as world:
        closing, watcher = world.processes
        await closing.hub.track(ROOM, "ann")
        await closing.hub.track(ROOM, "bob")
        closing.hub.release("ann")
        await world.move(0)
        assert watcher.view.members == {"bob": [None]}
        closing.alive = False
        await closing.hub.aclose()
        await world.move(LEASE / 3)
        assert watcher.view.members == {}


async def test_the_end_of_a_hub_ends_what_waits_for_it() -> None:
    async with world_of(1) as world:
        (process,) = world.processes
        waiting = asyncio.ensure_future(process.hub.track("elsewhere", "ann"))
        await asyncio.sleep(0)
        await process.hub.aclose()
        await asyncio.wait([waiting])
        assert waiting.exception() is None or isinstance(waiting.exception(), BrokerClosed)
        for call in (
            process.hub.track(ROOM, "ann"),
            process.hub.untrack(ROOM, "ann"),
            process.hub.presence(ROOM),
        ):
            with pytest.raises(BrokerClosed):
                await call
        process.hub.release("ann")
        left = [task.get_name() for task in asyncio.all_tasks() if "presence" in task.get_name()]
        assert left == []


# Watching


async def test_a_watch_that_fails_subscribes_to_nothing() -> None:
    faults = Faults()
    async with open_hub(faults.around("memory://watch-fails")) as hub:
        broker: Any = hub._broker  # type: ignore[attr-defined]

        async def refuse(channels: list[str]) -> None:
            raise SubscribeError(hub.config.url, "refused by a test", channels=channels)

        watch, broker.watch_presence = broker.watch_presence, refuse
        queue = hub.new_queue()
        await hub.add(queue, "kept")
        with pytest.raises(SubscribeError):
            await hub.add(queue, ["kept", "new"], presence=True)
        assert set(hub.channels_of(queue)) == {"kept"}
        broker.watch_presence = watch
        found = await hub.add(queue, ["kept", "new"], presence=["new"])
        assert (found["kept"].presence, found["new"].presence) == (None, {})


async def test_the_watch_of_a_channel_ends_with_its_last_watcher() -> None:
    async with world_of(1) as world:
        (process,) = world.processes
        broker: Any = process.hub._broker  # type: ignore[attr-defined]
        assert list(broker._presence._watched) == [ROOM]
        await process.hub.track(ROOM, "ann")
        await process.hub.remove(process.view.queue)
        await world.move(0)
        assert list(broker._presence._watched) == [ROOM]  # For its own entry.
        await process.hub.untrack(ROOM, "ann")
        await world.move(0)
        assert list(broker._presence._watched) == []


async def test_a_hub_without_presence_loads_nothing_of_it() -> None:
    code = """
import asyncio, sys
from django_sockets import open_hub
import django_sockets.sockets
async def main():
    async with open_hub("memory://") as hub, hub.subscribe("room"):
        await hub.publish("room", b"1")
        assert len(asyncio.all_tasks()) <= 2, asyncio.all_tasks()
asyncio.run(main())
print([name for name in sys.modules if name.startswith("django_sockets.hub.presence")])
"""
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


# Configuration


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("memory://?presence_lease_seconds=0", "presence_lease_seconds: must be over 0"),
        ("memory://?presence_grace_seconds=-1", "presence_grace_seconds: must be 0 or more"),
        ("memory://?presence_members=2.5", "presence_members: use a whole number"),
        ({"url": "memory://", "presence_members": True}, "use a whole number"),
        ({"url": "memory://", "presence_lease_seconds": "5"}, "use a number"),
        ({"url": "memory://", "presence_lease_seconds": float("nan")}, "over 0"),
        ({"url": "memory://", "presence_lease": 5}, "did you mean 'presence_lease_seconds'"),
        ({"url": "memory://?presence_members=5", "presence_members": 6}, "keep one of them"),
        (["redis://a?presence_members=5", "redis://b"], "different options presence_members"),
    ],
)
def test_wrong_options_are_refused(source: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load_config(source)


def test_options_may_be_settings_for_all_hosts() -> None:
    config = load_config({"url": ["redis://a", "redis://b"], "presence_grace_seconds": 0})
    for url in (config.url, *config.url.shards):
        assert url.options.presence_grace_seconds == 0
    assert config.url.options.presence_lease_seconds == 15
