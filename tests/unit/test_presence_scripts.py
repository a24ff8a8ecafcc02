"""The scripts of presence against real servers, compared with the bus in this process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis, RedisError

from django_sockets.backends import memory_presence
from django_sockets.backends.client.presence_scripts import (
    CHANGE,
    LEASE,
    change_arguments,
    change_of,
    lease_arguments,
    lease_of,
    published_diff,
    snapshot_of,
)
from django_sockets.backends.client.scripts import Script
from django_sockets.backends.memory_presence import MemoryLeases, MemoryPresence
from django_sockets.presence import (
    ALL_ENDED,
    ENDED_LEASES,
    LeaseAction,
    LeaseReply,
    LeaseState,
    NewerFormat,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
    pack_diff,
    parse_diff,
)
from django_sockets.testing.servers import CacheServer


def changed(script: Script, before: str, after: str) -> Script:
    source = script.source.decode()
    assert source.count(before) == 1
    return Script(source.replace(before, after))


# The same script with a clock that the test sets, and that remembers few ended leases.
MOVED_LEASE = changed(
    LEASE, "redis.call('TIME')", "{'0', redis.call('GET', KEYS[1] .. ':clock') .. '000'}"
)
FORGETFUL_LEASE = changed(
    MOVED_LEASE, f"remembered, at_most = {ENDED_LEASES}, {ALL_ENDED}", "remembered, at_most = 3, 6"
)


@pytest.fixture(params=["valkey", "redis", "fakeredis"])
def client(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "fakeredis":
        import fakeredis

        client = fakeredis.FakeRedis(version=(7,))
    else:
        server: CacheServer = request.getfixturevalue(f"{request.param}_server")
        client = Redis.from_url(server.url)
    yield loaded(client)
    client.close()


def loaded(client: Redis) -> Redis:
    for script in (CHANGE, LEASE, MOVED_LEASE, FORGETFUL_LEASE):
        client.execute_command(*script.load)
    return client


def change(
    client: Redis, name: bytes, changes: dict[str, bytes], most: int = 1000
) -> tuple[PresenceChange, bytes]:
    """Run the script of changes; returns its result and what it must have published."""
    command = CHANGE.command(name, *change_arguments(b"PUBLISH", name, changes, most))
    made, names = change_of(client.execute_command(*command), changes)
    return made, published_diff(made, names, changes)


def lease(client: Redis, key: bytes, process: str, action: LeaseAction, *args: Any) -> LeaseReply:
    command = LEASE.command(key, *lease_arguments(process, action, *args))
    return lease_of(client.execute_command(*command))


def test_changes_are_the_same_on_a_server_and_in_memory(client: Redis) -> None:
    chance = random.Random(5)
    name = b"test:{%d}:p" % id(client)
    client.delete(name)
    published: list[PresenceDiff] = []
    memory = MemoryPresence(lambda channel, diff: published.append(diff))
    listener = client.pubsub(ignore_subscribe_messages=False)
    listener.subscribe(name)
    assert listener.get_message(timeout=5)
    epochs: dict[bytes, bytes] = {b"": b""}
    for step in range(300):
        if chance.random() < 0.02:
            memory.forget("c")
            client.delete(name)
        fields = [f"p:{chance.randrange(12)}" for _ in range(chance.choice([1, 1, 2, 20]))]
        changes = {field: chance.choice([b"", b"1", b"2"]) for field in fields}
        most = chance.choice([3, 6, 1000])
        expected = memory.change("c", changes, most)
        found, message = change(client, name, changes, most)
        assert epochs.setdefault(expected.epoch, found.epoch) == found.epoch, step
        assert (found.version, found.changed, found.refused) == (
            expected.version,
            expected.changed,
            expected.refused,
        ), step
        if found.changed:
            heard = listener.get_message(timeout=5)
            assert heard is not None
            assert heard["data"] == message
            diff = published.pop()
            assert parse_diff(message) == PresenceDiff(found.epoch, diff.version, diff.changes)
            assert list(parse_diff(message).changes) == list(diff.changes)
        snapshot = memory.snapshot("c")
        assert snapshot_of(client.hgetall(name)) == PresenceSnapshot(
            epochs[snapshot.epoch], snapshot.version, snapshot.entries
        )
    assert len(epochs) > 3
    assert listener.get_message(timeout=0.01) is None
    listener.close()
    client.delete(name)


@pytest.mark.parametrize("forgetful", [False, True])
def test_leases_are_the_same_on_a_server_and_in_memory(
    client: Redis, monkeypatch: pytest.MonkeyPatch, forgetful: bool
) -> None:
    """Also when the clock stands still, jumps ahead or goes back, and if many have ended."""
    if forgetful:
        monkeypatch.setattr(memory_presence, "ENDED_LEASES", 3)
        monkeypatch.setattr(memory_presence, "ALL_ENDED", 6)
    script = FORGETFUL_LEASE if forgetful else MOVED_LEASE
    chance = random.Random(6)
    key = b"test:{%d}" % id(client)
    now = 50_000_000
    memory = MemoryLeases(lambda: now)
    client.delete(key)
    seen: set[LeaseState] = set()
    most = 0
    for step in range(600):
        now += chance.choice([0, 1, 50, 300, 900, 2000, 12_000, -400, -999, -1000, -60_000])
        if chance.random() < 0.01:
            now += 4_000_000
        client.set(key + b":clock", now)
        process = f"p{chance.randrange(step // 20, step // 20 + 6)}"
        action = chance.choice([*LeaseAction, LeaseAction.RENEW, LeaseAction.LOOK])
        grace = chance.choice([0, 0.3, 5])
        adopt = [f"p{chance.randrange(40)}"] if chance.random() < 0.1 else []
        command = script.command(key, *lease_arguments(process, action, 2, grace, adopt))
        found = lease_of(client.execute_command(*command))
        most = max(most, len(found.dead))
        expected = memory.call(process, action, 2000, round(grace * 1000), adopt)
        assert found == expected, step
        seen.add(found.state)
    assert seen == set(LeaseState)
    assert most == 6 if forgetful else most > 6
    client.delete(key, key + b":clock")


class Clock:
    """A lease server whose clock the test moves."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.key = b"test:{clock:%d}" % id(client)
        self.now = 1_000_000_000
        client.delete(self.key)

    def __call__(
        self, process: str, action: LeaseAction, after: int = 0, grace: float = 0
    ) -> LeaseReply:
        """Call `lease` with a lease of 10 seconds, `after` milliseconds after the last call."""
        self.now += after
        self.client.set(self.key + b":clock", self.now)
        command = MOVED_LEASE.command(self.key, *lease_arguments(process, action, 10, grace, ()))
        return lease_of(self.client.execute_command(*command))


@pytest.fixture
def clock(client: Redis) -> Clock:
    return Clock(client)


NEW, RENEW, END, LOOK = LeaseAction.NEW, LeaseAction.RENEW, LeaseAction.END, LeaseAction.LOOK


def test_a_lease_ends_at_its_time_and_not_before(clock: Clock) -> None:
    clock("a", NEW)
    for _ in range(3):
        assert clock("w", LOOK, 3333).dead == frozenset()
    assert clock("w", LOOK, 1).dead == {"a"}
    assert clock("a", RENEW).state is LeaseState.ENDED


def test_a_clock_that_goes_back_kills_nobody_and_revives_nobody(clock: Clock) -> None:
    clock("left", NEW)
    clock("left", END)
    clock("a", NEW)
    back = clock("w", LOOK, -3_000_000)
    assert back.dead == {"left"}
    assert back.soonest_ms == back.now_ms + 10_000
    # From then on, time passes as ever.
    for _ in range(3):
        assert clock("w", LOOK, 3333).dead == {"left"}
    assert clock("w", LOOK, 1).dead == {"left", "a"}


def test_a_small_step_back_does_not_extend_leases(clock: Clock) -> None:
    """Else a clock that is corrected again and again would keep the dead alive."""
    clock("a", NEW)
    for _ in range(13):
        assert clock("w", LOOK, 900).dead == frozenset()
        assert clock("w", LOOK, -150).dead == frozenset()
    assert clock("w", LOOK, 900).dead == {"a"}


def test_a_clock_that_jumps_ahead_gives_everybody_a_lease(clock: Clock) -> None:
    clock("a", NEW)
    assert clock("w", LOOK, 5000).soonest_ms == clock.now + 5000
    ahead = clock("w", LOOK, 5001)
    assert ahead.dead == frozenset()
    assert ahead.soonest_ms == ahead.now_ms + 10_000
    assert clock("w", LOOK, 10_000).dead == frozenset()


def test_ended_leases_are_forgotten_after_an_hour(clock: Clock) -> None:
    clock("gone", END)
    assert clock("w", LOOK, 3_600_000).dead == {"gone"}
    assert clock("w", LOOK, 1).dead == frozenset()
    assert clock("gone", LOOK).state is LeaseState.UNKNOWN


def test_many_ended_leases_are_bounded_and_the_oldest_are_forgotten_first(clock: Clock) -> None:
    """Each renewal tells them to every process: 10,000 ids would be 230 kB each time."""
    clock("alive", NEW)
    ended = {f"{n:016}": clock.now - 3_000_000 + n for n in range(9000)}
    clock.client.zadd(clock.key, ended)  # type: ignore[arg-type]
    reply = clock("alive", RENEW, 1000)
    assert reply.dead == set(list(ended)[-1000:])
    assert reply.state is LeaseState.OK
    assert sum(map(len, reply.dead)) == 16_000
    assert clock.client.zcard(clock.key) == 1000 + len(["alive", ":last"])
    clock("left", END)
    assert clock("alive", RENEW, 1).dead == (reply.dead | {"left"}) - {min(reply.dead)}


def test_processes_that_ended_just_now_are_remembered_up_to_a_limit(clock: Clock) -> None:
    """Else their entries would stay for a lease more on a channel that is watched."""
    clock("alive", NEW)
    now = clock.now
    old = {f"old {n}": now - 20_000 for n in range(50)}
    young = {f"{n:06}": now - 19_990 + n for n in range(9500)}
    clock.client.zadd(clock.key, {**old, **young})  # type: ignore[arg-type]
    assert clock("alive", RENEW).dead == {*old, *young}
    assert clock("alive", RENEW, 1).dead == {*young}
    more = {f"more {n:06}": now - 5000 + n for n in range(600)}
    clock.client.zadd(clock.key, more)  # type: ignore[arg-type]
    assert clock("alive", RENEW, 1).dead == {*list(young)[100:], *more}
    assert clock("alive", RENEW, -5000).dead == {*list(young)[100:], *more}
    assert clock("alive", RENEW, 1).state is LeaseState.OK


def test_the_keys_end_by_themselves(client: Redis) -> None:
    name, key = b"test:{ttl:%d}:p" % id(client), b"test:{ttl:%d}" % id(client)
    change(client, name, {"p:1": b"x"})
    day = 24 * 3600 * 1000
    assert day - 10_000 < client.pttl(name) <= day
    client.pexpire(name, 5000)
    change(client, name, {"p:1": b"x"})  # Changes nothing, and renews.
    assert day - 10_000 < client.pttl(name) <= day
    change(client, name, {"p:1": b""})
    assert 50_000 < client.pttl(name) <= 60_000
    change(client, name, {"p:1": b"y"})
    assert client.pttl(name) > 60_000
    lease(client, key, "p", LeaseAction.NEW, 1, 0, ())
    assert day - 10_000 < client.pttl(key) <= day
    client.delete(name, key)


def test_a_hash_of_another_program_is_no_presence(client: Redis) -> None:
    name = b"test:{foreign:%d}:p" % id(client)
    client.hset(name, "field", "value")
    with pytest.raises(ValueError, match="no epoch"):
        snapshot_of(client.hgetall(name))
    client.delete(name)
    client.set(name, "text")
    with pytest.raises(RedisError, match="WRONGTYPE"):
        change(client, name, {"p:1": b"x"})
    client.delete(name)


# A server of its own, to be filled and made a replica


@pytest.fixture(params=["valkey", "redis"])
def own(request: pytest.FixtureRequest) -> Iterator[Redis]:
    server: CacheServer = request.getfixturevalue(f"fresh_{request.param}_server")
    client = loaded(Redis.from_url(server.url))
    yield client
    client.close()


def test_without_memory_leases_are_renewed_and_entries_are_removed(own: Redis) -> None:
    name, key = b"test:{full}:p", b"test:{leases}"
    change(own, name, {"p:1": b"x", "p:2": b"x"})
    lease(own, key, "known", NEW, 60, 0, ())
    own.config_set("maxmemory", "1mb")
    own.config_set("maxmemory-policy", "noeviction")
    with pytest.raises(RedisError, match=r"OOM|used memory"):
        change(own, name, {"p:3": b"x"})
    assert snapshot_of(own.hgetall(name)).version == 1
    assert change(own, name, {"p:1": b"", "p:3": b"x"})[0].changed == 2
    assert lease(own, key, "known", RENEW, 60, 0, ()).state is LeaseState.OK
    assert lease(own, key, "new", NEW, 60, 0, ["other"]).state is LeaseState.OK
    own.config_set("maxmemory", "0")
    assert snapshot_of(own.hgetall(name)).entries == {"p:2": b"x", "p:3": b"x"}


def test_a_replica_refuses_both_scripts(own: Redis) -> None:
    change(own, b"test:{replica}:p", {"p:1": b"x"})
    own.execute_command("REPLICAOF", "127.0.0.1", "1")
    calls: list[Callable[[], object]] = [
        lambda: change(own, b"test:{replica}:p", {"p:1": b"y"}),
        lambda: lease(own, b"test:{leases}", "p", LOOK, 60, 0, ()),
    ]
    for call in calls:
        with pytest.raises(RedisError, match="read only replica"):
            call()


# The wire format of a diff


def test_a_diff_survives_the_wire() -> None:
    diff = PresenceDiff(b"12345678", 2**53, {"p:ä": b"\0" * 100, "p:": b"", "p:1": b"00000001x"})
    assert parse_diff(pack_diff(diff)) == diff
    strange = PresenceDiff(b"12345678", 1, {b"p:\xff".decode("utf-8", "surrogateescape"): b"x"})
    assert parse_diff(pack_diff(strange)) == strange


def test_what_is_no_diff_is_refused() -> None:
    whole = pack_diff(PresenceDiff(b"12345678", 7, {"p:1": b"value"}))
    for length in range(len(whole)):
        if length != 27:  # A head without changes is complete.
            with pytest.raises(ValueError, match=r"malformed|no diff|argument"):
                parse_diff(whole[:length])
    for wrong in (b"", b"{}", b"dp", b"dpx" + whole[3:], whole + b"1", b"\0" + whole):
        with pytest.raises(ValueError, match=r"malformed|no diff|argument") as raised:
            parse_diff(wrong)
        assert not isinstance(raised.value, NewerFormat)
    with pytest.raises(NewerFormat):
        parse_diff(b"dp2" + whole[3:])
