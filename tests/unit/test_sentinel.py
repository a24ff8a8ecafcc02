"""If sentinels disagree, the newest configuration counts, and no older one is used again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from django_sockets.backends.client import sentinels
from django_sockets.backends.client.connection import Connection, ConnectionLost
from django_sockets.backends.client.connector import Connector
from django_sockets.backends.client.deadlines import Backoff
from django_sockets.backends.sentinel import SentinelBroker
from django_sockets.errors import ConnectError
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.url import Address, BrokerURL
from support.links import StandIn

OLD, NEW = Address("10.0.0.1", 6379), Address("10.0.0.2", 6379)


class AnsweringLink(StandIn):
    """A link whose server is the test's `answer`; what it returns None for stays unanswered."""

    def __init__(self, answer: Callable[[AnsweringLink, list[bytes]], Any]) -> None:
        self._answer = answer
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._parser = hiredis.Reader()
        self._aborted = False

    async def read(self) -> list[Any]:
        reply = await self._replies.get()
        if isinstance(reply, ConnectionLost):
            raise reply
        return [reply]

    def write(self, data: bytes) -> None:
        if self._aborted:
            raise ConnectionLost("aborted")
        self._parser.feed(data)
        while (command := self._parser.gets()) is not False:
            reply = self._answer(self, command)
            if reply is not None:
                self.say(reply)

    def say(self, reply: Any) -> None:
        self._replies.put_nowait(reply)

    def abort(self) -> None:
        self._aborted = True
        self.say(ConnectionLost("aborted"))


class Sentinel:
    """One sentinel, which the test tells what it knows.

    Attributes:
        primary: whom it names.
        listed: whom it lists as the service's server, where that is not yet the same.
        silent: it takes questions and answers none.
        down: it cannot be reached.
        asked: how many questions it has answered.
    """

    def __init__(self) -> None:
        self.epoch = 1
        self.primary = OLD
        self.listed: Address | None = None
        self.silent = self.down = False
        self.asked = 0
        self.links: list[AnsweringLink] = []
        self._listeners: list[AnsweringLink] = []

    @property
    def subscribed(self) -> int:
        """How many subscriptions it has taken."""
        return len(self._listeners)

    def die(self) -> None:
        self.down = True
        for link in self.links:
            link.abort()

    def learn(self, epoch: int, primary: Address, *, listed: Address | None = None) -> None:
        self.epoch, self.primary, self.listed = epoch, primary, listed

    def announce(self, former: Address, new: Address) -> None:
        """Publish the switch to the subscribers."""
        words = f"main {former.host} {former.port} {new.host} {new.port}".encode()
        for listener in self._listeners:
            listener.say([b"message", b"+switch-master", words])

    def answer(self, link: AnsweringLink, command: list[bytes]) -> Any:
        if command[0] == b"SUBSCRIBE":
            self._listeners.append(link)
            return [b"subscribe", command[1], 1]
        if command[0] == b"PING":
            return b"PONG"
        if self.silent:
            return None
        self.asked += 1
        if command[1] == b"MASTER":
            told = self.listed or self.primary
            facts = {"ip": told.host, "port": told.port, "config-epoch": self.epoch}
            return {name.encode(): str(fact).encode() for name, fact in facts.items()}
        return [self.primary.host.encode(), str(self.primary.port).encode()]


class Servers:
    """Three sentinels and the two servers that they watch.

    Attributes:
        published: which server took each message.
        opened: called when a connection to one of the two is about to be there.
        frozen: the one of the two that lets nobody connect, and does not say so.
        refused: how many connections to sentinels were refused.
    """

    def __init__(self) -> None:
        self.sentinels = {f"s{number}": Sentinel() for number in range(3)}
        self.first, self.second, self.third = self.sentinels.values()
        self.published: list[Address] = []
        self.opened: Callable[[], None] = lambda: None
        self.frozen: Address | None = None
        self.refused = 0
        url = BrokerURL.parse("redis+sentinel://s0,s1,s2/main?connect_timeout_seconds=0.2")
        self.broker = SentinelBroker(url, RecordingSink())

    async def open(self, address: Address, **_: object) -> Connection:
        sentinel = self.sentinels.get(address.host)
        if sentinel is None:
            await (asyncio.Event().wait() if address == self.frozen else asyncio.sleep(0))
            self.opened()
            return AnsweringLink(lambda *_: self.published.append(address) or 1)
        if sentinel.down:
            self.refused += 1
            raise ConnectError(self.broker.url, "down")
        sentinel.links.append(AnsweringLink(sentinel.answer))
        return sentinel.links[-1]

    async def taken_by(self) -> Address:
        """Publish; the server that took it."""
        self.published.clear()
        await asyncio.wait_for(self.broker.publish(["room"], b"x"), 5)
        (address,) = self.published
        return address

    def tell_all(self, epoch: int, primary: Address) -> None:
        for sentinel in self.sentinels.values():
            sentinel.learn(epoch, primary)


@pytest.fixture
async def servers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Connector, "open", lambda _, *args, **kwargs: servers.open(*args, **kwargs))
    servers = Servers()
    yield servers
    await servers.broker.aclose()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never became so")


async def test_the_leader_of_an_election_lists_the_former_primary_for_a_while(
    servers: Servers,
) -> None:
    """The former primary may be up again and accept messages that others never get."""
    servers.first.learn(2, NEW, listed=OLD)
    servers.second.learn(2, NEW)
    servers.third.learn(1, OLD)
    assert await servers.taken_by() == NEW


async def test_there_is_no_way_back_while_the_one_who_knows_takes_its_time(
    servers: Servers,
) -> None:
    servers.first.learn(2, NEW)
    assert await servers.taken_by() == NEW
    servers.first.silent = True
    servers.broker._node.reset("the connection is lost")
    assert await servers.taken_by() == NEW


async def test_a_server_that_is_gone_does_not_count(servers: Servers) -> None:
    """Otherwise its last answer would count forever, even if the others are set up again."""
    servers.first.learn(2, NEW)
    assert await servers.taken_by() == NEW
    servers.first.die()
    await servers.broker._sentinels.primary()
    assert await servers.taken_by() == OLD


async def test_a_connect_to_a_frozen_primary_ends_when_another_one_is_named(
    servers: Servers,
) -> None:
    servers.frozen = OLD
    taken = asyncio.create_task(servers.taken_by())
    await until(lambda: servers.broker._sentinels.named == OLD)
    servers.tell_all(2, NEW)
    servers.third.announce(OLD, NEW)
    assert await asyncio.wait_for(taken, 5) == NEW


async def test_a_service_that_is_set_up_again_is_followed(servers: Servers) -> None:
    """After SENTINEL REMOVE and MONITOR, the epoch starts at zero."""
    servers.tell_all(7, OLD)
    assert await servers.taken_by() == OLD
    servers.tell_all(0, NEW)
    assert await servers.broker._sentinels.primary() == NEW
    assert await servers.taken_by() == NEW


async def test_a_switch_is_followed_when_it_is_heard(servers: Servers) -> None:
    assert await servers.taken_by() == OLD
    servers.third.learn(2, NEW)
    servers.third.announce(OLD, NEW)
    await until(lambda: servers.broker._sentinels.named == NEW)
    assert await servers.taken_by() == NEW


async def test_old_news_of_a_switch_leads_nowhere(servers: Servers) -> None:
    """A delayed sentinel reports the election before the last one."""
    servers.tell_all(3, OLD)
    assert await servers.taken_by() == OLD
    servers.third.learn(2, NEW)
    asked = servers.third.asked
    servers.third.announce(OLD, NEW)
    await until(lambda: servers.third.asked > asked)
    await asyncio.sleep(0.01)  # It has answered.
    assert servers.broker._sentinels.named == OLD
    assert await servers.taken_by() == OLD


@pytest.mark.parametrize("turns", range(8))
async def test_a_switch_in_the_moment_of_the_connection(servers: Servers, turns: int) -> None:
    """The former primary is not used, for any number of loop turns in between."""
    loop = asyncio.get_running_loop()

    def switch(turns: int) -> None:
        if turns:
            loop.call_soon(switch, turns - 1)
            return
        servers.tell_all(2, NEW)
        servers.broker._sentinels._name_newest([said._replace(epoch=2, primary=NEW)])

    assert await servers.broker._sentinels.primary() == OLD
    (said, *_), _ = await servers.broker._sentinels._ask_all(grace_seconds=1)
    servers.opened = lambda: switch(turns)
    taken = asyncio.ensure_future(servers.broker.publish(["room"], b"x"))
    await asyncio.wait([taken], timeout=5)
    servers.opened = lambda: None
    assert await servers.taken_by() == NEW


async def test_the_pauses_between_attempts_at_a_dead_sentinel_become_long(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead sentinel costs nobody a message, and each process and hub tries."""
    pauses: list[float] = []

    async def pause(backoff: Backoff) -> None:
        pauses.append(backoff.increase())
        await asyncio.sleep(0)

    assert await servers.taken_by() == OLD
    monkeypatch.setattr(Backoff, "pause", pause)
    for sentinel in servers.sentinels.values():
        sentinel.die()
    await until(lambda: len(pauses) > 100)
    assert max(pauses) == 10.0
    assert await servers.taken_by() == OLD


async def test_a_sentinel_that_answers_again_is_subscribed_to_at_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could not tell of a new primary during the pause."""
    monkeypatch.setattr(Backoff, "FIRST_SECONDS", 3600.0)
    monkeypatch.setattr(sentinels, "LONGEST_PAUSE_SECONDS", 3600.0)
    broker = SentinelBroker(servers.broker.url, RecordingSink())
    sentinel = servers.first
    try:
        await broker._sentinels.primary()
        await until(lambda: sentinel.subscribed == 1)
        sentinel.die()
        # The first attempt fails at once. The next one follows after an hour.
        await until(lambda: servers.refused > 0)
        sentinel.down = False
        await broker._sentinels.primary()
        await until(lambda: sentinel.subscribed == 2)
    finally:
        await broker.aclose()
