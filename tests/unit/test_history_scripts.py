"""The scripts of the history against real servers, compared with the bus in this process."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hiredis import ReplyError
from redis import Redis, RedisError

from django_sockets.backends.client.history_scripts import (
    KEEP,
    READ,
    KeptMessage,
    history_key,
    history_reply,
    read_command,
)
from django_sockets.backends.client.scripts import surely_refused
from django_sockets.backends.memory_history import MemoryHistory
from django_sockets.delivery.envelope import Publisher
from django_sockets.history import (
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    Start,
    position_of,
)
from django_sockets.testing.servers import CacheServer

Execute = Callable[[tuple[bytes, ...]], Any]


@pytest.fixture(params=["valkey", "redis", "fakeredis"])
def client(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "fakeredis":
        import fakeredis

        client = fakeredis.FakeRedis(version=(7,))
    else:
        server: CacheServer = request.getfixturevalue(f"{request.param}_server")
        client = Redis.from_url(server.url)
    client.execute_command(*KEEP.load)
    client.execute_command(*READ.load)
    yield client
    client.close()


class Server:
    """The scripts on a real server, for one channel, as `MemoryHistory` offers them."""

    def __init__(self, client: Redis, name: bytes) -> None:
        self.client = client
        self.name = name

    def keep(self, header: bytes, payload: bytes, rule: HistoryRule) -> bytes:
        kept = KeptMessage(self.name, header, payload, rule)
        published = kept.published(self.client.execute_command(*kept.command(b"PUBLISH")))
        assert published is not None
        return published

    def read(self, start: Start, rule: HistoryRule, messages: int, max_bytes: int) -> HistoryReply:
        command = read_command(self.name, start, rule, messages, max_bytes)
        reply = history_reply(self.client.execute_command(*command))
        assert reply is not None
        return reply


class Epochs:
    """Replaces random values by numbers, in the order in which they appear."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def plain(self, reply: HistoryReply) -> tuple[Any, ...]:
        found = reply.position
        place = None
        if found is not None:
            epoch = self.numbers.setdefault(found.epoch, len(self.numbers))
            place = (epoch, found.offset, found.tag)
        bodies = [message[-8:] for message in reply.messages]
        return reply.status, place, bodies


def test_the_scripts_and_the_bus_in_memory_do_the_same(client: Redis) -> None:
    chance = random.Random(7)
    for round_number in range(6):
        server = Server(client, b"test:{%d:%d}" % (id(client), round_number))
        memory = MemoryHistory()
        publishers = [Publisher() for _ in range(3)]
        here, there = Epochs(), Epochs()
        places: list[tuple[Position, Position]] = []
        rules = [HistoryRule(5, 60, 20), HistoryRule(12, 60, 20)]
        rule = rules[0]
        for step in range(150):
            action = chance.random()
            if action < 0.45:
                (header,) = chance.choice(publishers).headers(["c"], is_text=False)
                payload = b"%08d" % step * chance.choice([1, 1, 1, 3])
                mine = memory.keep("c", header, payload, rule, 0.0)
                its = server.keep(header, payload, rule)
                assert len(mine) == len(its)
                places.append((_place(mine, memory.id), _place(its)))
            elif action < 0.9:
                start: Start = chance.choice([None, 1, 3, 50])
                its_start = start
                if places and chance.random() < 0.7:
                    start, its_start = chance.choice(places[-15:])
                    if chance.random() < 0.1:
                        start = Position(start.epoch, start.offset, b"another message!")
                        its_start = Position(its_start.epoch, its_start.offset, b"another message!")
                messages, size = chance.choice([(2, 10**6), (100, 150), (100, 10**6), (1, 1)])
                expected = memory.read("c", start, rule, 0.0, messages, size)
                found = server.read(its_start, rule, messages, size)
                assert there.plain(found) == here.plain(expected), (round_number, step)
                assert expected.position is not None
                assert found.position is not None
                places.append((expected.position, found.position))
            elif action < 0.93:
                memory.remove("c")
                client.delete(history_key(server.name))
            else:
                rule = chance.choice(rules)
        client.delete(history_key(server.name))


def _place(message: bytes, history_id: bytes = b"") -> Position:
    place = position_of(message, history_id)
    assert place is not None
    return place


@pytest.fixture
def channel(client: Redis) -> tuple[Server, Callable[[bytes], bytes]]:
    server = Server(client, b"test:{%d:one}" % id(client))
    publisher = Publisher()
    rule = HistoryRule(3, 60)

    def publish(payload: bytes) -> bytes:
        (header,) = publisher.headers(["c"], is_text=False)
        return server.keep(header, payload, rule)

    client.delete(history_key(server.name))
    return server, publish


def test_the_hash_holds_no_more_than_the_rule_says(
    client: Redis, channel: tuple[Server, Callable[[bytes], bytes]]
) -> None:
    server, publish = channel
    messages = [publish(b"%d" % number) for number in range(10)]
    stored = client.hgetall(history_key(server.name))
    assert set(stored) == {b"e", b"o", b"t", b"l", b"8", b"9", b"10"}
    assert (stored[b"o"], stored[b"l"], stored[b"10"]) == (b"10", b"8", messages[-1])
    assert 59_000 < client.pttl(history_key(server.name)) <= 60_000


def test_what_is_published_is_what_is_kept(
    client: Redis, channel: tuple[Server, Callable[[bytes], bytes]]
) -> None:
    server, publish = channel
    listener = client.pubsub(ignore_subscribe_messages=False)
    listener.subscribe(server.name)
    listener.get_message(timeout=5)
    kept = publish(b"payload")
    heard = listener.get_message(timeout=5)
    assert heard is not None
    assert heard["data"] == kept
    assert server.read(1, HistoryRule(3, 60), 10, 10**6).messages == (kept,)
    listener.close()


# A server of its own, to be filled, paused and made a replica


@pytest.fixture(params=["valkey", "redis"])
def own(request: pytest.FixtureRequest) -> Iterator[Redis]:
    server: CacheServer = request.getfixturevalue(f"fresh_{request.param}_server")
    client = Redis.from_url(server.url)
    client.execute_command(*KEEP.load)
    client.execute_command(*READ.load)
    yield client
    client.close()


def test_without_memory_a_message_is_published_and_its_history_removed(own: Redis) -> None:
    server = Server(own, b"test:{full}")
    publisher = Publisher()
    rule = HistoryRule(3, 60)
    headers = itertools.chain.from_iterable(
        publisher.headers(["c"], is_text=False) for _ in itertools.count()
    )
    server.keep(next(headers), b"one", rule)
    listener = own.pubsub(ignore_subscribe_messages=False)
    listener.subscribe(server.name)
    listener.get_message(timeout=5)
    own.config_set("maxmemory", "1mb")
    own.config_set("maxmemory-policy", "noeviction")
    (header,) = publisher.headers(["c"], is_text=False)
    kept = KeptMessage(server.name, header, b"two", rule)
    assert kept.published(own.execute_command(*kept.command(b"PUBLISH"))) is None
    heard = listener.get_message(timeout=5)
    assert heard is not None
    assert heard["data"] == header + b"two"
    assert not own.exists(history_key(server.name))
    # A read cannot make a position, and says so.
    nothing = server.read(None, rule, 10, 10**6)
    assert (nothing.status, nothing.position) == (HistoryStatus.BROKEN, None)
    own.config_set("maxmemory", "0")
    assert _place(server.keep(next(headers), b"three", rule)).offset == 1
    listener.close()


def test_a_replica_refuses_both_scripts(own: Redis) -> None:
    server = Server(own, b"test:{replica}")
    rule = HistoryRule(3, 60)
    (header,) = Publisher().headers(["c"], is_text=False)
    server.keep(header, b"one", rule)
    own.execute_command("REPLICAOF", "127.0.0.1", "1")
    for call in (
        lambda: server.keep(header, b"two", rule),
        lambda: server.read(1, rule, 10, 10**6),
    ):
        with pytest.raises(RedisError, match="read only replica"):
            call()
    own.execute_command("REPLICAOF", "NO", "ONE")
    assert len(server.read(5, rule, 10, 10**6).messages) == 1


def test_without_enough_replicas_nothing_is_published_and_reading_works(own: Redis) -> None:
    server = Server(own, b"test:{replicas}")
    rule = HistoryRule(3, 60)
    (header,) = Publisher().headers(["c"], is_text=False)
    server.keep(header, b"one", rule)
    own.config_set("min-replicas-to-write", "1")
    with pytest.raises(RedisError, match="NOREPLICAS"):
        server.keep(header, b"two", rule)
    reply = server.read(5, rule, 10, 10**6)
    assert (reply.status, len(reply.messages)) == (HistoryStatus.WHOLE, 1)
    own.config_set("min-replicas-to-write", "0")


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ("NOSCRIPT No matching script", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MOVED 1 127.0.0.1:1", True),
        ("NOPERM User x has no permissions to run the 'evalsha' command", True),
        ("NOPERM ACL failure in script: User x has no permissions to run 'publish'", False),
        ("NOPERM The user can't run this command script: 21c4, on @user_script:26.", False),
        ("ERR value is not an integer or out of range", False),
        ("OOM command not allowed", False),
    ],
)
def test_an_error_tells_whether_the_script_had_an_effect(error: str, refused: bool) -> None:
    assert surely_refused(ReplyError(error)) is refused


def test_an_acl_that_refuses_the_publish_leaves_the_outcome_unknown(own: Redis) -> None:
    own.execute_command(
        "ACL", "SETUSER", "mute", "on", "nopass", "~*", "resetchannels", "+@all", "-publish"
    )
    host, port = (
        own.connection_pool.connection_kwargs["host"],
        own.connection_pool.connection_kwargs["port"],
    )
    mute = Redis(host=host, port=port, username="mute", password="x")
    server = Server(mute, b"test:{mute}")
    (header,) = Publisher().headers(["c"], is_text=False)
    with pytest.raises(RedisError) as refused:
        server.keep(header, b"one", HistoryRule(3, 60))
    text = str(refused.value)
    assert "script" in text
    assert not surely_refused(ReplyError(f"NOPERM {text}".replace("NOPERM NOPERM", "NOPERM")))
    mute.close()
