"""Messages to a cluster keep their order while its servers change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest

from django_sockets.backends.client.commands import SHARDED, slot_of
from django_sockets.backends.client.connection import Connection
from django_sockets.backends.client.identity import Identity
from django_sockets.backends.client.pipeline import NotSent, Pipeline
from django_sockets.backends.client.routes import Route
from django_sockets.backends.cluster.router import Router
from django_sockets.errors import ConnectError
from django_sockets.url import BrokerURL

URL = BrokerURL.parse("redis+cluster://h?publish_timeout_seconds=3&dead_peer_seconds=1000")
NAME = b"p:{room}"


class Server:
    """Accepts every message, after it accepts a connection.

    Attributes:
        taken: payloads, in the order in which they came.
    """

    identity = Identity()
    received_bytes = partial_bytes = 0
    held_seconds = 0.0
    held_since: float | None = None

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.reachable = asyncio.Event()
        self.refusals: list[Any] = []
        self._answers: asyncio.Queue[list[int]] = asyncio.Queue()
        self.route = Route(Pipeline(URL, self._open), SHARDED)

    async def _open(self) -> Connection:
        if self.refusals:
            self.refusals.pop()()
            raise ConnectError(URL, "refused")
        await self.reachable.wait()
        return self

    async def read(self) -> list[Any]:
        return await self._answers.get()

    def write(self, data: bytes) -> None:
        parser = hiredis.Reader()
        parser.feed(data)
        while (command := parser.gets()) is not False:
            if command[0] == b"SPUBLISH":
                self.taken.append(command[2])
            self._answers.put_nowait([1])

    def abort(self) -> None:
        """Nothing is open."""


class World:
    """Two servers; `owner` has every slot."""

    def __init__(self) -> None:
        self.first, self.second = Server(), Server()
        self.owner = self.first
        self.asked = 0
        self.router = Router(
            URL,
            route_for=lambda _: self.owner.route,
            refresh=self._refresh,
            on_moved=lambda *_: None,
            on_waiting=self._on_waiting,
        )

    def _on_waiting(self) -> None:
        self.asked += 1

    async def _refresh(self) -> None:
        self.owner = self.second

    def send(self, payload: bytes) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.router.send([(NAME, payload)]))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.router.aclose()
    await world.first.route.pipeline.aclose()
    await world.second.route.pipeline.aclose()


async def test_what_waits_for_a_server_that_is_gone_goes_to_its_successor(world: World) -> None:
    """They must not wait for the connect timeout, during which a publisher could send nothing."""
    calls = [world.send(b"1"), world.send(b"2")]
    await asyncio.sleep(0)
    assert world.asked, "nobody looked for the successor"
    world.second.reachable.set()
    world.owner = world.second
    world.router.hold([slot_of(NAME)], world.first.route)
    calls.append(world.send(b"3"))
    assert await asyncio.wait_for(asyncio.gather(*calls), 1) == [[None]] * 3
    assert world.second.taken == [b"1", b"2", b"3"]
    assert world.first.taken == []


async def test_what_waits_and_has_no_other_server_goes_on_waiting(world: World) -> None:
    """A moved slot of the same server must not fail the messages of other slots."""
    world.second = world.first
    call = world.send(b"1")
    await asyncio.sleep(0)
    world.router.hold([slot_of(b"p:{another}")], world.first.route)
    await asyncio.sleep(0.01)
    world.first.reachable.set()
    assert await asyncio.wait_for(call, 1) == [None]


async def test_a_message_sent_in_the_turn_in_which_an_older_one_comes_back_waits_for_it(
    world: World,
) -> None:
    later: list[asyncio.Future[Any]] = []
    loop = asyncio.get_running_loop()
    # Runs after the older message has failed, and before the router is told.
    world.first.refusals.append(lambda: loop.call_soon(lambda: later.append(world.send(b"2"))))
    world.first.reachable.set()
    world.second.reachable.set()
    assert await asyncio.wait_for(world.send(b"1"), 1) == [None]
    assert await asyncio.wait_for(later[0], 1) == [None]
    assert world.first.taken + world.second.taken == [b"1", b"2"]


async def test_a_message_that_no_node_can_take_fails_with_the_reason(world: World) -> None:
    world.second = world.first
    world.first.refusals.append(lambda: None)
    (outcome,) = await asyncio.wait_for(world.send(b"1"), 1)
    assert isinstance(outcome, NotSent)
    assert str(outcome) == "refused"
    assert isinstance(outcome.__cause__, ConnectError)
