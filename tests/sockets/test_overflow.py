"""A client that reads too slowly is closed or misses messages, by the policy, and is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from django_sockets import ConfigurationError
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.hold import HOLD_MESSAGES
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from support.slow_client import Reluctant

COUNT = 40


class Plain(BaseSocketServer):
    """Broadcasts go to the client without a hook of the class."""

    outbox_messages = 4

    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("joined")


class Telling(Plain):
    """Sends the gaps to the client."""

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"gap": [*channels], "reason": reason})


class Handling(Telling):
    """Handles each broadcast itself."""

    async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
        await self.async_send(data)


GAP = {"gap": ["room"], "reason": "overflow"}


def stats_of(kind: type[BaseSocketServer]) -> dict[str, int]:
    return shared_hub(load_config(kind.config)).stats()


async def overflowed(kind: type[BaseSocketServer], policy: str, url: str) -> Reluctant:
    """A client that has missed some of COUNT broadcasts, and then reads again and gets one more."""

    class Member(kind):  # type: ignore[misc, valid-type]
        config = url
        overflow = policy

    client = Reluctant(Member.as_asgi)
    async with client:
        await client.until(lambda: client.got == ["joined"])
        client.stop_reading()
        broadcaster = Broadcaster(url)
        for number in range(COUNT):
            await broadcaster.async_broadcast("room", number)
        # Delivery is over once the hub has handed on the last one.
        while stats_of(Member)["delivered"] < COUNT:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        client.go_on_reading()
        # Until all kept ones have arrived, the queue may be full and drop the next one.
        kept = COUNT - stats_of(Member)["dropped_overflow"]
        await client.until(lambda: len(numbers(client)) == kept)
        await broadcaster.async_broadcast("room", "after")
        await client.until(lambda: "after" in client.got)
    client.stats = stats_of(Member)  # type: ignore[attr-defined]
    return client


def numbers(client: Reluctant) -> list[int]:
    return [data for data in client.got if isinstance(data, int)]


@pytest.mark.parametrize("kind", [Plain, Telling, Handling])
async def test_drop_newest_keeps_what_came_first(kind: Any) -> None:
    client = await overflowed(kind, "drop_newest", f"memory://newest-{kind.__name__}")
    kept = numbers(client)
    assert kept == list(range(len(kept)))
    assert 1 < len(kept) < COUNT / 2
    assert client.got[-1] == "after"
    assert client.got.count(GAP) == (kind is not Plain)
    if kind is not Plain:
        assert client.got.index(GAP) > client.got.index(kept[-1])
    add_up(client, kept)


@pytest.mark.parametrize("kind", [Plain, Telling, Handling])
async def test_drop_oldest_keeps_what_came_last(kind: Any) -> None:
    client = await overflowed(kind, "drop_oldest", f"memory://oldest-{kind.__name__}")
    kept = numbers(client)
    assert kept == sorted(kept)
    assert kept[-4:] == list(range(COUNT - 4, COUNT))
    assert len(kept) < COUNT / 2
    assert client.got.count(GAP) == (kind is not Plain)
    if kind is not Plain:
        # Where the hole is: after the one that was on its way, before the first that was kept.
        assert client.got.index(GAP) < client.got.index(COUNT - 4)
    add_up(client, kept)


def add_up(client: Any, kept: list[int]) -> None:
    stats = client.stats
    assert stats["dropped_overflow"] == COUNT - len(kept)
    assert stats["discarded"] == 0
    assert stats["gaps"] == 1
    assert stats["closed_overflow"] == 0


@pytest.mark.parametrize("kind", [Plain, Telling, Handling])
async def test_close_is_what_happens_without_a_policy(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://close-{kind.__name__}"

    ended = []

    class Member(kind):  # type: ignore[misc, valid-type]
        config = url

        async def disconnect(self, code: int) -> None:
            ended.append(code)

    with caplog.at_level(logging.WARNING, "django_sockets"):
        async with Reluctant(Member.as_asgi) as client:
            await client.until(lambda: client.got == ["joined"])
            client.stop_reading()
            for number in range(COUNT):
                await Broadcaster(url).async_broadcast("room", number)
            await asyncio.wait_for(client.task, 5)
    assert ended == [1013]
    stats = stats_of(Member)
    assert stats["closed_overflow"] == 1
    assert stats["dropped_overflow"] == 0
    assert stats["discarded"] == stats["delivered"] - len(numbers(client))
    assert sum("reads too slowly" in record.message for record in caplog.records) <= 1


async def test_nothing_is_dropped_for_a_client_that_reads_however_large_the_burst() -> None:
    class Member(Telling):
        config = "memory://burst"
        overflow = "drop_newest"

    async with Reluctant(Member.as_asgi) as client:
        await client.until(lambda: client.got == ["joined"])
        broadcaster = Broadcaster(Member.config)
        await asyncio.gather(*(broadcaster.async_broadcast("room", n) for n in range(2000)))
        await client.until(lambda: len(client.got) == 2001)
        assert client.got[1:] == list(range(2000))


def test_a_misspelt_policy_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'drop_oldest'"):

        class Wrong(BaseSocketServer):
            overflow = "drop_oldset"


async def test_what_a_client_did_not_get_because_it_left_is_counted() -> None:
    """The connection breaks in the middle of a batch, and each message is counted once."""

    class Member(Plain):
        config = "memory://left"

    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    joined = asyncio.Event()
    taken = []

    async def send(event: Any) -> None:
        if len(taken) == 5:
            raise OSError
        taken.append(event)
        if event.get("text") == '"joined"':
            joined.set()

    scope = {"type": "websocket", "path": "/", "headers": []}
    serving = asyncio.create_task(Member.as_asgi(scope, incoming.get, send))
    await joined.wait()
    hub = shared_hub(load_config(Member.config))
    publisher = Publisher()
    await hub.deliver(
        [("room", publisher.headers(["room"], True)[0] + b"%d" % number) for number in range(COUNT)]
    )
    await serving
    stats = hub.stats()
    assert stats["delivered"] == COUNT
    sent = len(taken) - 2  # After the accept and the greeting.
    assert sent == 3
    assert stats["discarded"] == COUNT - sent


async def published(kind: type[BaseSocketServer], first: int, count: int) -> None:
    """Publish, and return once the hub has handed on the last message."""
    expected = stats_of(kind)["delivered"] + count
    broadcaster = Broadcaster(kind.config)
    for number in range(first, first + count):
        await broadcaster.async_broadcast("room", number)
    while stats_of(kind)["delivered"] < expected:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("kind", [Telling, Handling])
async def test_a_client_whose_messages_are_dropped_while_gap_waits_for_it_is_slow(
    kind: Any, policy: str
) -> None:
    """Otherwise an operator sees thousands of dropped messages, and no slow client."""
    telling = asyncio.Event()

    class Member(kind):  # type: ignore[misc, valid-type]
        config = f"memory://stuck-gap-{kind.__name__}-{policy}"
        overflow = policy

        async def gap(self, channels: Sequence[str], reason: str) -> None:
            if not telling.is_set():
                client.stop_reading()
                telling.set()
                await self.async_send("a gap")

    async with Reluctant(Member.as_asgi) as client:
        await client.until(lambda: client.got == ["joined"])
        assert stats_of(Member)["slow_clients"] == 0
        client.stop_reading()
        await published(Member, 0, COUNT)
        assert stats_of(Member)["slow_clients"] == 1
        client.go_on_reading()
        # From now on the client reads nothing, and the hook never returns.
        await asyncio.wait_for(telling.wait(), 20)
        before = stats_of(Member)["dropped_overflow"]
        await published(Member, COUNT, HOLD_MESSAGES + 1000)
        stats = stats_of(Member)
        assert stats["dropped_overflow"] >= before + 1000
        assert stats["slow_clients"] == 1
        assert stats["queued_messages"] >= HOLD_MESSAGES
        assert stats["queued_bytes"] > 0
        client.go_on_reading()
        await client.until(lambda: "a gap" in client.got)
        while stats_of(Member)["queued_messages"]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        assert stats_of(Member)["slow_clients"] == 0


async def test_a_client_whose_messages_are_dropped_while_connect_waits_is_slow() -> None:
    connected = asyncio.Event()

    class Member(Plain):
        config = "memory://long-connect"
        overflow = "drop_oldest"

        async def connect(self) -> None:
            await super().connect()
            await connected.wait()

    async with Reluctant(Member.as_asgi) as client:
        await client.until(lambda: client.got == ["joined"])
        await published(Member, 0, HOLD_MESSAGES)
        stats = stats_of(Member)
        assert (stats["queued_messages"], stats["dropped_overflow"]) == (HOLD_MESSAGES, 0)
        assert stats["slow_clients"] == 0
        await published(Member, HOLD_MESSAGES, 1)
        stats = stats_of(Member)
        assert (stats["dropped_overflow"], stats["slow_clients"]) == (1, 1)
        connected.set()
        await client.until(lambda: HOLD_MESSAGES in client.got)
        stats = stats_of(Member)
        assert (stats["queued_messages"], stats["slow_clients"]) == (0, 0)


async def test_a_protocol_client_that_does_not_read_is_slow() -> None:
    """A gap of such a client is a frame that waits as the messages do."""

    class Member(Plain):
        config = "memory://slow-protocol"
        overflow = "drop_newest"
        outbox_messages = 4

    client = Reluctant(Member.as_asgi, subprotocols=["django-sockets.v1"])
    async with client:
        await client.until(lambda: "joined" in str(client.got))
        client.stop_reading()
        await published(Member, 0, COUNT)
        stats = stats_of(Member)
        assert stats["dropped_overflow"] > 0
        assert stats["slow_clients"] == 1
        client.go_on_reading()
