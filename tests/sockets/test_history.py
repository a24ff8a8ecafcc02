"""A client that was away, or a page that was rendered before, gets what it missed, once.

If one of these fails, a client shows a wrong state for good, or the same message twice.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from django_sockets import (
    CallError,
    ConfigurationError,
    Gap,
    NotAllowed,
    PositionError,
    Recovery,
    SubscribeError,
)
from django_sockets.broadcaster import Broadcaster
from django_sockets.delivery.hold import Hold
from django_sockets.runtime import background_loop, close_shared_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import Faults, override_broker
from django_sockets.testing.client import SocketClient

RULES = {"kept:": {"messages": 10, "seconds": 60}}


@pytest.fixture(params=["memory", "fakeredis", "valkey_server", "valkey_cluster"])
async def config(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A broker of each kind, with channels of its own."""
    name = f"history-{random.getrandbits(48):x}"
    if request.param.startswith("valkey"):
        url = f"{request.getfixturevalue(request.param).url}?prefix={name}"
    else:
        url = f"{request.param}://{name}"
    yield {"url": url, "history": RULES}
    await close_all_hubs()


async def close_all_hubs() -> None:
    """Those of this event loop, and those of broadcasters without one."""
    await close_shared_hubs()
    closing = asyncio.run_coroutine_threadsafe(close_shared_hubs(), background_loop())
    await asyncio.wrap_future(closing)


@pytest.fixture
def memory() -> Any:
    return {"url": f"memory://history-{random.getrandbits(48):x}", "history": RULES}


class Resuming(BaseSocketServer):
    """The client names channels and positions; the answer is the result of the subscription."""

    async def start(self, channels: Any, arguments: Any) -> Any:
        return await self.async_subscribe(channels, **arguments)

    async def receive(self, data: Any) -> None:
        channels, arguments = data
        await self.async_send({"result": shown(await self.start(channels, arguments))})

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"gap": list(channels), "reason": reason})


class PlainResuming(Resuming):
    def receive(self, data: Any) -> None:  # type: ignore[override]
        channels, arguments = data
        self.send({"result": shown(self.subscribe(channels, **arguments))})


class AskedFor(Resuming):
    def may_subscribe(self, channel: str) -> bool:
        return channel.startswith("kept:")

    async def start(self, channels: Any, arguments: Any) -> Any:
        return await self.async_subscribe_for_client(channels, **arguments)


class PlainAskedFor(AskedFor):
    def receive(self, data: Any) -> None:  # type: ignore[override]
        channels, arguments = data
        self.send({"result": shown(self.subscribe_for_client(channels, **arguments))})


class Handling(Resuming):
    async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
        await self.async_send(data)


class Encoding(Resuming):
    ws_encoder = staticmethod(lambda data: json.dumps(data))


KINDS = [Resuming, PlainResuming, AskedFor, PlainAskedFor, Handling, Encoding]


def shown(result: Any) -> Any:
    if isinstance(result, dict):
        return {name: shown(one) for name, one in result.items()}
    if isinstance(result, Recovery):
        return [result.recovered, result.position, result.count]
    return result


async def received(client: SocketClient, count: int) -> tuple[Any, list[Any]]:
    """The result, and the other messages in their order."""
    frames = [await client.receive_json() for _ in range(count + 1)]
    (result,) = [frame["result"] for frame in frames if "result" in as_dict(frame)]
    return result, [frame for frame in frames if "result" not in as_dict(frame)]


def as_dict(frame: Any) -> Any:
    return frame if isinstance(frame, dict) else {}


def app(kind: type[BaseSocketServer], config: Any) -> Any:
    return type(kind.__name__, (kind,), {"config": config}).as_asgi  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_missed_messages_come_first_and_then_the_live_ones(
    kind: type[BaseSocketServer], config: Any
) -> None:
    broadcaster = Broadcaster(config)
    await broadcaster.async_broadcast("kept:1", "before")
    since = await broadcaster.async_position("kept:1")
    for number in range(5):
        await broadcaster.async_broadcast("kept:1", number)
    newest = await broadcaster.async_position("kept:1")
    async with SocketClient(app(kind, config)) as client:
        await client.send_json(["kept:1", {"since": since}])
        result, missed = await received(client, 5)
        assert missed == [0, 1, 2, 3, 4]
        assert result == [True, newest, 5]
        await broadcaster.async_broadcast("kept:1", "live")
        assert await client.receive_json() == "live"
        assert await client.receive_nothing()


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_that_are_not_kept_any_more_are_a_gap_first(
    kind: type[BaseSocketServer], memory: Any
) -> None:
    broadcaster = Broadcaster(memory)
    since = await broadcaster.async_position("kept:1")
    for number in range(20):
        await broadcaster.async_broadcast("kept:1", number)
    newest = await broadcaster.async_position("kept:1")
    async with SocketClient(app(kind, memory)) as client:
        await client.send_json(["kept:1", {"since": since}])
        result, others = await received(client, 1)
        assert result == [False, newest, 0]
        assert others == [{"gap": ["kept:1"], "reason": "history"}]
        await broadcaster.async_broadcast("kept:1", "live")
        assert await client.receive_json() == "live"


@pytest.mark.parametrize("kind", [Resuming, PlainResuming])
async def test_the_last_messages_for_a_new_client(
    kind: type[BaseSocketServer], config: Any
) -> None:
    broadcaster = Broadcaster(config)
    for number in range(5):
        await broadcaster.async_broadcast("kept:1", number)
    newest = await broadcaster.async_position("kept:1")
    for count in (1, 3, 100):
        async with SocketClient(app(kind, config)) as client:
            await client.send_json(["kept:1", {"replay": count}])
            result, others = await received(client, min(count, 5))
            assert others == [0, 1, 2, 3, 4][-count:]
            assert result[1:] == [newest, min(count, 5)]
            assert await client.receive_nothing()


async def test_several_channels_have_a_position_each(config: Any) -> None:
    broadcaster = Broadcaster(config)
    names = ["kept:1", "kept:2", "kept:3"]
    since = await broadcaster.async_position(names)
    for name in names:
        await broadcaster.async_broadcast(name, f"missed on {name}")
    newest = await broadcaster.async_position(names)
    given = {"kept:1": since["kept:1"], "kept:2": since["kept:1"]}
    async with SocketClient(app(Resuming, config)) as client:
        await client.send_json([names, {"since": given}])
        result, others = await received(client, 2)
        assert sorted(others, key=str) == [
            "missed on kept:1",
            {"gap": ["kept:2"], "reason": "history"},
        ]
        assert {name: one[0] for name, one in result.items()} == {
            "kept:1": True,
            "kept:2": False,
            "kept:3": False,
        }
        assert {name: one[1] for name, one in result.items()} == newest
        assert await client.receive_nothing()


async def test_without_since_and_replay_the_result_is_none(memory: Any) -> None:
    broadcaster = Broadcaster(memory)
    await broadcaster.async_broadcast("kept:1", "before")
    for kind in (Resuming, PlainResuming, AskedFor, PlainAskedFor):
        async with SocketClient(app(kind, memory)) as client:
            await client.send_json(["kept:1", {}])
            assert await client.receive_json() == {"result": None}
            await client.send_json([["kept:2", "kept:3"], {}])
            assert await client.receive_json() == {"result": None}
            assert await client.receive_nothing()


async def test_a_client_without_a_position_learns_the_present_one(config: Any) -> None:
    """Otherwise a client that gets no message before its connection ends could not resume."""
    broadcaster = Broadcaster(config)
    await broadcaster.async_broadcast("kept:1", "before")
    newest = await broadcaster.async_position("kept:1")
    async with SocketClient(app(Resuming, config)) as client:
        await client.send_json(["kept:1", {"since": None}])
        assert await client.receive_json() == {"result": [False, newest, 0]}
        async with SocketClient(app(PlainResuming, config)) as second:
            await second.send_json([["kept:1"], {"since": {"kept:1": None}}])
            result = await second.receive_json()
            assert result == {"result": {"kept:1": [False, newest, 0]}}
        assert await client.receive_nothing()


async def test_wrong_arguments_subscribe_to_nothing(memory: Any) -> None:
    broadcaster = Broadcaster(memory)
    position = await broadcaster.async_position("kept:1")

    class Asking(Resuming):
        async def receive(self, data: Any) -> None:
            (channels, arguments), kind = data, type(self)
            try:
                await self.async_subscribe(channels, **arguments)
            except Exception as exc:
                await self.async_send(f"{type(exc).__name__}: {exc}")
            else:
                raise AssertionError(kind)

    wrong: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        ("kept:1", {"since": "no position"}, PositionError),
        ("kept:1", {"since": 7}, PositionError),
        ("kept:1", {"since": {"kept:1": "x"}}, PositionError),
        (["kept:1", "kept:2"], {"since": position}, ConfigurationError),
        ("kept:1", {"replay": -1}, ValueError),
        ("kept:1", {"replay": "3"}, ValueError),
    ]
    async with SocketClient(app(Asking, memory)) as client:
        for channels, arguments, error in wrong:
            await client.send_json([channels, arguments])
            assert (await client.receive_json()).startswith(f"{error.__name__}: ")
        await broadcaster.async_broadcast(["kept:1", "kept:2"], "live")
        assert await client.receive_nothing()


@pytest.mark.parametrize("kind", [AskedFor, PlainAskedFor])
@pytest.mark.parametrize("since", ["no position", 7, ["x"], {"kept:1": 7}, {"kept:1": "x"}])
async def test_a_wrong_position_of_a_client_closes_only_that_client(
    kind: type[BaseSocketServer], since: Any, memory: Any
) -> None:
    class Noting(kind):  # type: ignore[misc, valid-type]
        def error(self, exc: Exception) -> Any:
            assert isinstance(exc, NotAllowed)
            return super().error(exc)

    async with SocketClient(app(Noting, memory)) as client:
        await client.send_json(["kept:1", {"since": since}])
        assert await client.receive_close() == 1008
    async with SocketClient(app(kind, memory)) as client:
        await client.send_json(["secret", {"since": None}])
        assert await client.receive_close() == 1008


class Page(Resuming):
    """Subscribes in `connect` with the position of the page, and then sends the state."""

    async def connect(self) -> None:
        since = self.scope["query_string"].decode().partition("since=")[2] or None
        recovery = await self.async_subscribe("kept:1", since=since)
        await asyncio.sleep(0)
        await self.async_send({"state": recovery.recovered})


class PlainPage(Resuming):
    def connect(self) -> None:
        since = self.scope["query_string"].decode().partition("since=")[2] or None
        recovery = self.subscribe("kept:1", since=since)
        self.send({"state": recovery.recovered})


@pytest.mark.parametrize("kind", [Page, PlainPage])
async def test_what_is_replayed_in_connect_follows_the_state(
    kind: type[BaseSocketServer], config: Any
) -> None:
    broadcaster = Broadcaster(config)
    since = await broadcaster.async_position("kept:1")
    for number in range(3):
        await broadcaster.async_broadcast("kept:1", number)
    async with SocketClient(app(kind, config), f"/?since={since}") as client:
        await broadcaster.async_broadcast("kept:1", "live")
        frames = [await client.receive_json() for _ in range(5)]
        assert frames == [{"state": True}, 0, 1, 2, "live"]
        assert await client.receive_nothing()


@pytest.mark.parametrize("kind", [Page, PlainPage])
async def test_in_connect_the_result_tells_what_is_missing_and_no_gap(
    kind: type[BaseSocketServer], memory: Any
) -> None:
    broadcaster = Broadcaster(memory)
    since = await broadcaster.async_position("kept:1")
    for number in range(20):
        await broadcaster.async_broadcast("kept:1", number)
    async with SocketClient(app(kind, memory), f"/?since={since}") as client:
        assert await client.receive_json() == {"state": False}
        await broadcaster.async_broadcast("kept:1", "live")
        assert await client.receive_json() == "live"


async def test_a_later_gap_in_connect_is_told(memory: Any) -> None:
    """Only the gap that the result has told already is left out."""

    class Twice(Resuming):
        async def connect(self) -> None:
            recovery = await self.async_subscribe("kept:1", since=OLD)
            other = await self.async_subscribe("kept:2", since=None)
            self._connection.delivery.on_gap(["kept:1", "kept:2"], "history")
            await self.async_send([recovery.recovered, other.recovered])

    async with SocketClient(app(Twice, memory)) as client:
        assert await client.receive_json() == [False, False]
        assert await client.receive_json() == {"gap": ["kept:1", "kept:2"], "reason": "history"}
        assert await client.receive_nothing()


async def test_a_gap_that_comes_while_messages_are_replayed_is_told(memory: Any) -> None:
    """The result says that nothing is missing behind the position, and something is now."""

    class Losing(Resuming):
        async def connect(self) -> None:
            since = await Broadcaster(memory).async_position("kept:1")
            subscribing = asyncio.create_task(self.async_subscribe("kept:1", since=since))
            await asyncio.sleep(0)
            self._connection.delivery.on_gap(["kept:1"], "history")
            await self.async_send((await subscribing).recovered)

    async with SocketClient(app(Losing, memory)) as client:
        assert await client.receive_json() is True
        assert await client.receive_json() == {"gap": ["kept:1"], "reason": "history"}


def test_only_the_first_gap_of_each_channel_is_forgotten() -> None:
    class Owner:
        outbox_bytes = outbox_messages = 100

    hold = Hold(Owner())  # type: ignore[arg-type]
    hold.on_gap(["a", "b"], "history")
    hold.on_gap(["a"], "lost")
    hold.on_gap(["a", "c"], "history")
    hold.forget_gap(["a", "c"], "history")
    left = [(event.channels, event.reason) for event in hold.take(10) if isinstance(event, Gap)]
    assert left == [(("b",), "history"), (("a",), "lost"), (("a",), "history")]


OLD = "A" * 54
"""The text of a position that no history has."""


@pytest.mark.parametrize("kind", [Page, PlainPage])
@pytest.mark.parametrize("server", ["memory", "valkey_server"])
async def test_pages_that_were_rendered_during_a_storm_miss_nothing(
    kind: type[BaseSocketServer], server: str, request: pytest.FixtureRequest
) -> None:
    """The position is read before the state; what follows comes once, in order."""
    name = f"storm-{random.getrandbits(48):x}"
    url = f"memory://{name}"
    if server != "memory":
        url = f"{request.getfixturevalue(server).url}?prefix={name}"
    config = {"url": url, "history": {"kept:": {"messages": 10_000, "seconds": 60}}}
    broadcaster = Broadcaster(config)
    published = 0

    async def storm() -> None:
        nonlocal published
        while True:
            published += 1  # The state changes first, and the broadcast follows.
            await broadcaster.async_broadcast("kept:1", published)
            await asyncio.sleep(0.001)

    async def page(number: int) -> None:
        await asyncio.sleep(number * 0.005)
        since, state = await broadcaster.async_position("kept:1"), published
        await asyncio.sleep(number % 7 * 0.01)
        async with SocketClient(app(kind, config), f"/?since={since}") as client:
            assert await client.receive_json() == {"state": True}
            numbers = [await client.receive_json() for _ in range(30)]
        # A change between the two reads is in the state and comes again, but none is missing.
        assert numbers[0] <= state + 1
        assert numbers == list(range(numbers[0], numbers[0] + 30))

    publishing = asyncio.create_task(storm())
    await asyncio.gather(*(page(number) for number in range(60)))
    publishing.cancel()
    await asyncio.wait([publishing])
    await close_all_hubs()


async def test_the_hook_for_broadcasts_gets_positions_if_it_takes_them(config: Any) -> None:
    class Positions(Resuming):
        async def async_handle_received_broadcast(
            self, channel: str, data: Any, *, position: str | None = None
        ) -> None:
            await self.async_send([channel, data, position])

    broadcaster = Broadcaster(config)
    since = await broadcaster.async_position("kept:1")
    await broadcaster.async_broadcast("kept:1", "missed")
    async with SocketClient(app(Positions, config)) as client:
        await client.send_json(["kept:1", {"since": since}])
        await client.send_json(["free", {}])
        (result, *_), others = [[None], []]
        frames = [await client.receive_json() for _ in range(3)]
        others = [frame for frame in frames if isinstance(frame, list)]
        await broadcaster.async_broadcast("kept:1", "live")
        others.append(await client.receive_json())
        await broadcaster.async_broadcast("free", "free")
        assert await client.receive_json() == ["free", "free", None]
    assert result is None
    page = await broadcaster.async_history("kept:1", since)
    assert others == [["kept:1", one.data, one.position] for one in page.messages]


async def test_a_socket_is_left_out_of_its_own_replayed_broadcasts(memory: Any) -> None:
    class Leaving(Resuming):
        async def receive(self, data: Any) -> None:
            since = await Broadcaster(memory).async_position("kept:1")
            await self.async_broadcast("kept:1", "own", exclude_self=True)
            await self.async_broadcast("kept:1", "for all")
            recovery = await self.async_subscribe("kept:1", since=since)
            await self.async_send({"result": recovery.recovered})

    async with SocketClient(app(Leaving, memory)) as client:
        await client.send_json("go")
        assert await received(client, 1) == (True, ["for all"])
        assert await client.receive_nothing()


async def test_a_plain_call_on_an_event_loop_says_what_to_do(memory: Any) -> None:
    class Wrong(Resuming):
        async def receive(self, data: Any) -> None:
            for call in (self.subscribe, self.subscribe_for_client):
                with pytest.raises(CallError, match="await the async_ form"):
                    call("kept:1", since=None)
            with pytest.raises(CallError, match="await the async_ form"):
                self.subscribe("kept:1", replay=1)
            self.subscribe("kept:1")
            await self.async_send("done")

    async with SocketClient(app(Wrong, memory)) as client:
        await client.send_json("go")
        assert await client.receive_json() == "done"


async def test_a_channel_without_a_rule_has_nothing_to_replay(memory: Any) -> None:
    async with SocketClient(app(Resuming, memory)) as client:
        await client.send_json(["free", {"since": OLD}])
        result, others = await received(client, 1)
        assert (result, others) == ([False, None, 0], [{"gap": ["free"], "reason": "history"}])
        await client.send_json(["free2", {"replay": 5}])
        assert await client.receive_json() == {"result": [False, None, 0]}
        await Broadcaster(memory).async_broadcast("free", "live")
        assert await client.receive_json() == "live"


async def test_too_many_channels_are_refused_with_positions_too(memory: Any) -> None:
    class Few(Resuming):
        max_subscriptions = 1

        async def receive(self, data: Any) -> None:
            with pytest.raises(SubscribeError, match="max_subscriptions"):
                await self.async_subscribe(["kept:1", "kept:2"], replay=1)
            await self.async_send("refused")

    async with SocketClient(app(Few, memory)) as client:
        await client.send_json("go")
        assert await client.receive_json() == "refused"


async def test_a_broadcaster_resumes_like_a_socket(config: Any) -> None:
    publisher, reader = Broadcaster(config), Broadcaster(config)
    since = await publisher.async_position("kept:1")
    for number in range(3):
        await publisher.async_broadcast("kept:1", number)
    recovery = await reader.async_subscribe("kept:1", since=since)
    assert (recovery.recovered, recovery.count) == (True, 3)
    await publisher.async_broadcast("kept:1", "live")
    for data in (0, 1, 2, "live"):
        assert await asyncio.wait_for(reader.async_receive_broadcast(), 5) == ("kept:1", data)
    await reader.aclose()


async def test_a_broadcaster_resumes_on_a_plain_thread(memory: Any) -> None:
    def resume() -> tuple[Any, Any, Any]:
        reader = Broadcaster(memory)
        before = reader.position("kept:1")
        reader.broadcast("kept:1", "missed")
        several = reader.subscribe(["kept:1", "kept:2"], since={"kept:1": before, "kept:2": None})
        return several, asyncio.run(reader.async_receive_broadcast()), reader.subscribe("kept:3")

    several, received, nothing = await asyncio.to_thread(resume)
    assert {name: (one.recovered, one.count) for name, one in several.items()} == {
        "kept:1": (True, 1),
        "kept:2": (False, 0),
    }
    assert received == ("kept:1", "missed")
    assert nothing is None


@pytest.mark.parametrize("kind", [Resuming, Handling, Encoding])
async def test_what_the_broker_lost_reaches_each_socket_once_and_without_a_gap(
    kind: type[BaseSocketServer], memory: Any
) -> None:
    faults = Faults()
    with override_broker(faults.around(memory)):
        broadcaster = Broadcaster()
        async with SocketClient(kind.as_asgi) as one, SocketClient(kind.as_asgi) as other:  # type: ignore[attr-defined]
            for client in (one, other):
                await client.send_json(["kept:1", {}])
                assert await client.receive_json() == {"result": None}
            for lose in (faults.drop, faults.disconnect):
                lose(2)
                for number in range(4):
                    await broadcaster.async_broadcast("kept:1", number)
                for client in (one, other):
                    assert [await client.receive_json() for _ in range(4)] == [0, 1, 2, 3]
            faults.heals = False
            faults.disconnect()
            await broadcaster.async_broadcast("kept:1", "lost")
            for client in (one, other):
                assert (await client.receive_json())["gap"] == ["kept:1"]
        await close_all_hubs()


async def test_a_socket_without_a_server_resumes(memory: Any) -> None:
    broadcaster = Broadcaster(memory)
    since = await broadcaster.async_position("kept:1")
    await broadcaster.async_broadcast("kept:1", "missed")
    socket = Resuming({}, config=memory)
    recovery = await socket.async_subscribe("kept:1", since=since)
    assert (recovery.recovered, recovery.count) == (True, 1)
    await broadcaster.async_broadcast("kept:1", "live")
    for data in ("missed", "live"):
        assert await asyncio.wait_for(socket.async_receive_broadcast(), 5) == ("kept:1", data)
    await close_all_hubs()


@pytest.mark.parametrize("since_is_old", [False, True])
async def test_a_socket_resumes_in_authorize(since_is_old: bool, memory: Any) -> None:
    broadcaster = Broadcaster(memory)
    since = OLD if since_is_old else await broadcaster.async_position("kept:1")
    await broadcaster.async_broadcast("kept:1", "missed")

    class Early(Resuming):
        async def authorize(self) -> bool:
            self.scope["recovery"] = await self.async_subscribe("kept:1", since=since)
            return True

        async def connect(self) -> None:
            await self.async_send(self.scope["recovery"].recovered)

    async with SocketClient(app(Early, memory)) as client:
        assert await client.receive_json() is not since_is_old
        first = {"gap": ["kept:1"], "reason": "history"} if since_is_old else "missed"
        assert await client.receive_json() == first
        await broadcaster.async_broadcast("kept:1", "live")
        assert await client.receive_json() == "live"


async def test_a_connection_that_has_ended_subscribes_to_nothing(memory: Any) -> None:
    made: list[Resuming] = []

    class Kept(Resuming):
        async def connect(self) -> None:
            made.append(self)

    async with SocketClient(app(Kept, memory)):
        pass
    assert await made[0].async_subscribe("kept:1", since=None) == Recovery()
    assert await made[0].async_subscribe(["kept:1"], replay=1) == {"kept:1": Recovery()}
