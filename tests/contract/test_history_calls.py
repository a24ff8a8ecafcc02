"""Applications read the history of a channel: pages, positions, from any thread and event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

from django_sockets import (
    BrokerClosed,
    BrokerError,
    CallError,
    ChannelError,
    ConfigurationError,
    Hub,
    PositionError,
    open_hub,
)
from django_sockets.broadcaster import Broadcaster
from django_sockets.broker import Limits, Sink
from django_sockets.conf import load_config
from django_sockets.history import Position
from django_sockets.runtime import background_loop, close_shared_hubs
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.servers import CacheServer, free_port
from django_sockets.url import BrokerURL

T = TypeVar("T")
RULES = {
    "kept:": {"messages": 100, "seconds": 60},
    "short:": {"messages": 3, "seconds": 60, "bytes": 200},
}


def in_thread(call: Callable[[], T]) -> T:
    """The result of a call on a new thread without an event loop."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((call(), None))
        except Exception as exc:
            results.append((None, exc))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    ((result, error),) = results
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


class HistoryCalls:
    url = ""

    @pytest.fixture
    def broker_url(self) -> str:
        return self.url

    @pytest.fixture
    def config(self, broker_url: str) -> Any:
        return {"url": broker_url.split(), "history": RULES}

    @pytest.fixture
    async def hub(self, config: Any) -> AsyncIterator[Hub]:
        async with open_hub(config) as hub:
            yield hub
        closing = close_shared_hubs()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, background_loop()))

    @pytest.fixture
    def channel(self) -> str:
        return f"kept:{uuid.uuid4().hex}"

    @pytest.fixture
    def short(self) -> str:
        return f"short:{uuid.uuid4().hex}"

    async def test_a_page_has_the_data_that_receivers_got(self, hub: Hub, channel: str) -> None:
        before = await hub.position(channel)
        data: list[Any] = [{"text": "grüße"}, [1, None], "text", b"\x00\xff bytes"]
        broadcaster = Broadcaster(hub.config)
        for one in data:
            await broadcaster.async_broadcast(channel, one)
        await broadcaster.async_broadcast(f"{channel}2", "of another channel")
        page = await hub.history(channel)
        assert [message.data for message in page.messages] == data
        assert [message.is_text for message in page.messages] == [True, True, True, False]
        assert json.loads(page.messages[1].payload) == [1, None]
        assert (page.recovered, page.more) == (True, False)
        assert page.position == page.messages[-1].position == await hub.position(channel)
        assert await hub.history(channel, before) == page
        assert len({before, *(message.position for message in page.messages)}) == 5

    async def test_reading_goes_on_behind_any_position(self, hub: Hub, channel: str) -> None:
        for number in range(7):
            await hub.publish(channel, b"%d" % number)
        newest = await hub.history(channel, limit=3)
        assert [message.payload for message in newest.messages] == [b"4", b"5", b"6"]
        assert not newest.more
        everything = await hub.history(channel)
        for index, message in enumerate(everything.messages):
            page = await hub.history(channel, since=message.position)
            assert page.messages == everything.messages[index + 1 :]
            assert (page.recovered, page.position) == (True, everything.position)

    async def test_pages_follow_on_each_other(self, hub: Hub, channel: str) -> None:
        since = await hub.position(channel)
        sent = [b"%d" % number for number in range(10)]
        for one in sent:
            await hub.publish(channel, one)
        read, sizes = [], []
        while True:
            page = await hub.history(channel, since=since, limit=4)
            assert page.recovered
            read += [message.payload for message in page.messages]
            sizes.append(len(page.messages))
            since = page.position
            if not page.more:
                break
        assert read == sent
        assert sizes == [4, 4, 2]

    async def test_a_page_larger_than_one_reply_is_whole(self, hub: Hub, channel: str) -> None:
        """A reply of the server has at most 256 KiB."""
        sent = [bytes([number]) * 60_000 for number in range(12)]
        for one in sent:
            await hub.publish(channel, one)
        start = (await hub.history(channel, limit=12)).messages[0].position
        cut = await hub.history(channel, since=start, limit=6)
        assert [message.payload for message in cut.messages] == sent[1:7]
        assert cut.more
        page = await hub.history(channel, limit=11)
        assert [message.payload for message in page.messages] == sent[1:]
        assert not page.more

    async def test_messages_that_are_not_kept_any_more_are_told(self, hub: Hub, short: str) -> None:
        start = await hub.position(short)
        for number in range(5):
            await hub.publish(short, b"%d" % number)
        page = await hub.history(short, since=start)
        assert (page.recovered, page.messages, page.more) == (False, (), False)
        assert page.position == await hub.position(short)
        await hub.publish(short, b"next")
        after = await hub.history(short, since=page.position)
        assert [message.payload for message in after.messages] == [b"next"]
        assert after.recovered

    async def test_a_message_that_was_too_large_to_keep_is_told(self, hub: Hub, short: str) -> None:
        start = await hub.position(short)
        await hub.publish(short, b"large" * 100)
        await hub.publish(short, b"small")
        assert not (await hub.history(short, since=start)).recovered
        page = await hub.history(short)
        assert [message.payload for message in page.messages] == [b"small"]

    async def test_a_position_of_another_history_is_told(self, hub: Hub, channel: str) -> None:
        await hub.publish(channel, b"one")
        other = await hub.position(f"{channel}2")
        page = await hub.history(channel, since=other)
        assert (page.recovered, page.messages) == (False, ())
        assert page.position == await hub.position(channel)

    async def test_the_same_place_in_another_data_set_is_told(self, hub: Hub, channel: str) -> None:
        """A promoted replica has the same offsets for other messages."""
        await hub.publish(channel, b"one")
        place = Position.parse(await hub.position(channel))
        assert len(place.history_id) == 8 or "fakeredis" in str(hub.config.url)
        other = dataclasses.replace(place, history_id=b"\x01" * 8)
        await hub.publish(channel, b"two")
        assert not (await hub.history(channel, since=str(other))).recovered
        assert (await hub.history(channel, since=str(place))).recovered

    async def test_text_that_is_no_text_reached_nobody(self, hub: Hub, channel: str) -> None:
        await hub.publish(channel, b"\xff", is_text=True)
        await hub.publish(channel, b"1", is_text=True)
        (message,) = (await hub.history(channel)).messages
        assert message.data == 1

    async def test_positions_of_several_channels(self, hub: Hub, channel: str) -> None:
        names = [f"{channel}{number}" for number in range(20)]
        await hub.publish(names[0], b"one")
        found = await hub.position(names)
        assert list(found) == names
        assert len(set(found.values())) == 20
        assert found[names[0]] == await hub.position(names[0])
        assert await hub.position([]) == {}
        assert await hub.position({names[1]}) == {names[1]: found[names[1]]}

    async def test_a_position_is_safe_in_pages_and_addresses(self, hub: Hub, channel: str) -> None:
        for _ in range(20):
            await hub.publish(channel, b"")
            assert re.fullmatch(r"[A-Za-z0-9_-]{43,54}", await hub.position(channel))

    async def test_from_coroutines_and_threads(self, hub: Hub, config: Any, channel: str) -> None:
        """Like `broadcast`: with the hub of the loop, or on the loop of the library."""
        broadcaster = Broadcaster(config)
        position = await broadcaster.async_position(channel)
        assert position == await hub.position(channel)
        await broadcaster.async_broadcast(channel, {"id": 1})
        page = await broadcaster.async_history(channel)
        assert page == await hub.history(channel)
        assert await asyncio.to_thread(broadcaster.history, channel, since=position) == page
        assert await asyncio.to_thread(broadcaster.position, channel) == page.position
        assert await asyncio.to_thread(broadcaster.position, [channel]) == {channel: page.position}
        assert await asyncio.to_thread(asyncio.run, broadcaster.async_history(channel)) == page
        plain = await asyncio.to_thread(broadcaster.history, channel, None, 1)
        assert plain.messages == page.messages

    async def test_wrong_arguments_are_explained(self, hub: Hub, channel: str) -> None:
        await hub.publish(channel, b"one")
        read = Broadcaster(hub.config).async_history
        for text in ("", "no position", "A" * 55, (await hub.position(channel))[:-1], "é" * 43):
            with pytest.raises(PositionError, match="received `position`") as caught:
                await read(channel, since=text)
            assert not text or text not in str(caught.value)
        for since in (7, b"A" * 54):
            with pytest.raises(PositionError):
                await read(channel, since=since)  # type: ignore[arg-type]
        for limit in (0, -1, 10_001, True, 1.0, "1", None):
            with pytest.raises(ConfigurationError, match="whole number from 1 to 10000"):
                await read(channel, limit=limit)  # type: ignore[arg-type]
        for name in ("", "kept:*", "kept:\n", "kept:" + "x" * 300):
            with pytest.raises(ChannelError):
                await read(name)
            with pytest.raises(ChannelError):
                await hub.position([channel, name])
        with pytest.raises(ChannelError, match="name one channel"):
            await read([channel])  # type: ignore[arg-type]
        with pytest.raises(ChannelError, match=r"setting 'history'.*'room:'"):
            await read("room:1")
        with pytest.raises(ChannelError, match="setting 'history'"):
            await hub.position([channel, "room:1"])
        with pytest.raises(ChannelError, match="control"):
            await hub.position("\x01control")

    async def test_a_closed_hub_says_so(self, config: Any, channel: str) -> None:
        async with open_hub(config) as hub:
            pass
        with pytest.raises(BrokerClosed):
            await hub.history(channel)
        with pytest.raises(BrokerClosed):
            await hub.position([channel])


class TestMemory(HistoryCalls):
    url = "memory://history-calls"


class TestFakeredis(HistoryCalls):
    url = "fakeredis://history-calls"


class TestValkey(HistoryCalls):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return valkey_server.url


class TestValkeyCluster(HistoryCalls):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return valkey_cluster.url


class TestThreeHosts(HistoryCalls):
    url = " ".join(f"fakeredis://history-calls-{number}" for number in range(3))


def test_a_plain_call_without_an_event_loop() -> None:
    broadcaster = Broadcaster({"url": "memory://plain-history", "history": RULES})
    position = broadcaster.position("kept:1")
    broadcaster.broadcast("kept:1", {"id": 1})
    broadcaster.broadcast("kept:7", {"id": 7})
    (message,) = broadcaster.history("kept:1", since=position).messages
    assert message.data == {"id": 1}
    assert in_thread(lambda: broadcaster.history("kept:1")).messages == (message,)
    with pytest.raises(PositionError):
        broadcaster.history("kept:1", since="nothing")


def test_a_number_is_a_channel() -> None:
    rules = {"": {"messages": 1, "seconds": 60}}
    broadcaster = Broadcaster({"url": "memory://numbers", "history": rules})
    broadcaster.broadcast(7, "seven")
    assert broadcaster.history(7).messages[0].data == "seven"
    assert broadcaster.position(7) == broadcaster.position([7, "8"])["7"]


async def test_a_plain_call_on_an_event_loop_says_what_to_do() -> None:
    """It could not wait for its result there, and None would be taken for one."""
    broadcaster = Broadcaster({"url": "memory://plain-history", "history": RULES})
    with pytest.raises(CallError, match="await the async_ form"):
        broadcaster.history("kept:1")
    with pytest.raises(CallError, match="await the async_ form"):
        broadcaster.position("kept:1")


async def test_a_broker_without_history_says_what_to_use() -> None:
    class Bare:
        def __init__(self, url: BrokerURL, sink: Sink) -> None:
            self.url = url
            self.limits = Limits()

        async def aclose(self) -> None: ...

    loaded = load_config({"url": "memory://bare", "history": RULES})
    config = dataclasses.replace(loaded, open_broker=Bare)  # type: ignore[arg-type]
    async with open_hub(config) as hub:
        with pytest.raises(ConfigurationError, match=r"keeps no history.*redis://"):
            await hub.history("kept:1")
        with pytest.raises(ConfigurationError, match="keeps no history"):
            await hub.position("kept:1")


async def test_a_server_that_does_not_answer_is_an_error_of_the_library() -> None:
    url = f"redis://127.0.0.1:{free_port()}?publish_timeout_seconds=0.5"
    async with open_hub({"url": url, "history": RULES}) as hub:
        with pytest.raises(BrokerError):
            await hub.history("kept:1")
        with pytest.raises(BrokerError):
            await hub.position(["kept:1", "kept:2"])


@pytest.mark.parametrize("damage", ["no envelope", "newer version", "another message"])
async def test_a_history_that_was_changed(valkey_server: CacheServer, damage: str) -> None:
    """Another program wrote into the hash, or a newer version keeps messages already."""
    config = {"url": valkey_server.url, "history": RULES}
    channel = f"kept:{uuid.uuid4().hex}"
    async with open_hub(config) as hub:
        start = await hub.position(channel)
        for payload in (b"one", b"two", b"three"):
            await hub.publish(channel, payload)
        key = f"django_sockets:{{{channel}}}:h"
        envelope: str = valkey_server.execute("HGET", key, "3")
        written = {"no envelope": "x", "newer version": envelope[:3] + "\x02" + envelope[4:]}
        value = written.get(damage, envelope).encode(errors="surrogateescape")
        assert valkey_server.execute("HSET", key, "2", value) == 0
        page = await hub.history(channel)
        assert page.messages[-1].payload == b"three"
        if damage != "another message":
            assert len(page.messages) == 1
        assert page.position == await hub.position(channel)
        resumed = await hub.history(channel, since=start)
        assert (resumed.recovered, resumed.messages) == (False, ())
        first = await hub.history(channel, since=start, limit=1)
        assert [message.payload for message in first.messages] == [b"one"]
        behind = await hub.history(channel, since=first.position)
        assert (behind.recovered, behind.position) == (False, page.position)
