"""Broadcasts on a server with prepared frames: one write for each client, nothing lost or twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import pytest

from django_sockets import ConfigurationError
from django_sockets.conf import load_config
from django_sockets.delivery import run as runs
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.fanout import TURN_DELIVERIES
from django_sockets.delivery.run import RUN_BYTES
from django_sockets.hub.hub import Hub
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from support.frame_server import FrameConnection

URL = "memory://frame-delivery"
LONG = "x" * 600


class Member(BaseSocketServer):
    """On three channels."""

    config = URL

    async def connect(self) -> None:
        await self.async_subscribe(["a", "b", "c"])


class Telling(Member):
    """Sends the present state at a gap."""

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"state": list(channels)})


def batch(*messages: tuple[str, str], publisher: Publisher | None = None) -> list[Any]:
    """Messages that arrive together: pairs of channel and JSON text."""
    source = publisher or Publisher()
    return [(name, source.headers([name], True)[0] + text.encode()) for name, text in messages]


def hub_of(cls: type[BaseSocketServer] = Member) -> Hub:
    return shared_hub(load_config(cls.config))


@contextlib.asynccontextmanager
async def clients(
    cls: type[BaseSocketServer], count: int, **options: Any
) -> AsyncIterator[list[FrameConnection]]:
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(FrameConnection(cls.as_asgi, **options))
            for _ in range(count)
        ]
        await until(lambda: len(hub_of(cls).subscriptions.subscribers) == count)
        await until(lambda: all(_ready(cls, client) for client in made))
        yield made


def _ready(cls: type[BaseSocketServer], _: FrameConnection) -> bool:
    channels = hub_of(cls).subscriptions.channels.values()
    return all(
        recipient.write is None or recipient.direct
        for channel in channels
        for recipient in channel.current_recipients()
    )


async def until(true: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not true():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), 20)


async def test_all_messages_of_a_batch_reach_a_client_with_one_write() -> None:
    async with clients(Member, 3) as members:
        await hub_of().deliver(batch(*[(name, str(n)) for n in range(5) for name in "abc"]))
        expected = [n for n in range(5) for _ in "abc"]
        assert [member.got for member in members] == [expected] * 3
        assert [member.writes for member in members] == [[15]] * 3
        assert hub_of().stats()["delivered"] == 45


@pytest.mark.parametrize("kind", [Member, Telling])
async def test_the_delivery_is_over_within_the_call_without_a_task(kind: Any) -> None:
    async with clients(kind, 3) as members:
        assert hub_of().deliver_now(batch(("a", "1"), ("b", "2"))) is None
        assert [member.got for member in members] == [[1, 2]] * 3


async def test_exclude_self_leaves_one_out_and_stays_one_write() -> None:
    made: list[Member] = []

    class Known(Member):
        def configure(self) -> None:
            made.append(self)

    async with clients(Known, 3) as members:
        origin = made[1]._connection.own_id()
        source = Publisher()
        messages = batch(("a", "1"), publisher=source)
        messages += [("a", source.headers(["a"], True, origin)[0] + b"2")]
        messages += batch(("a", "3"), publisher=source)
        assert hub_of().deliver_now(messages) is None
        assert [member.got for member in members] == [[1, 2, 3], [1, 3], [1, 2, 3]]
        assert [member.writes for member in members] == [[3], [2], [3]]
        assert hub_of().stats()["delivered"] == 8


async def test_a_gap_stands_in_the_stream_and_its_state_precedes_later_messages() -> None:
    async with clients(Telling, 2) as members:
        source = Publisher()
        first, _lost, third, fourth = batch(*[("a", str(n)) for n in range(4)], publisher=source)
        await hub_of().deliver([first, *batch(("b", "10")), third, fourth])
        expected = [0, 10, {"state": ["a"]}, 2, 3]
        await until(lambda: all(member.got == expected for member in members))
        # After the gap, the messages are written together again.
        before = [len(member.writes) for member in members]
        assert hub_of().deliver_now(batch(("b", "11"), ("c", "12"))) is None
        assert [len(member.writes) - n for member, n in zip(members, before, strict=True)] == [1, 1]


async def test_what_arrives_while_gap_runs_follows_the_state() -> None:
    go_on = asyncio.Event()

    class Slow(Member):
        async def gap(self, channels: Sequence[str], reason: str) -> None:
            await go_on.wait()
            await self.async_send("state")

    async with clients(Slow, 1) as (member,):
        hub_of().lost(["a"], "link lost")
        await hub_of().deliver(batch(("a", "1"), ("b", "2")))
        assert member.got == []
        go_on.set()
        await until(lambda: len(member.got) == 3)
        assert member.got == ["state", 1, 2]


async def test_what_a_slow_client_has_to_wait_for_is_written_together_when_it_reads() -> None:
    async with clients(Member, 2) as (slow, fast):
        slow.stop_reading()
        source = Publisher()
        for number in range(200):
            await hub_of().deliver(batch(("abc"[number % 3], str(number)), publisher=source))
        assert slow.got == []
        assert fast.got == list(range(200))
        slow.go_on_reading()
        await until(lambda: len(slow.got) == 200)
        assert slow.got == list(range(200))
        assert len(slow.writes) <= 2  # The first one waited by itself.


async def test_a_slow_client_gets_at_most_32_kib_with_a_write() -> None:
    async with clients(Member, 1) as (slow,):
        slow.stop_reading()
        source = Publisher()
        for number in range(120):
            text = f'"{number}{LONG}"'
            await hub_of().deliver(batch(("a", text), publisher=source))
        slow.go_on_reading()
        await until(lambda: len(slow.got) == 120)
        assert [int(text[: -len(LONG)]) for text in slow.got] == list(range(120))
        assert max(slow.sizes) < RUN_BYTES + 1024


@pytest.mark.parametrize("kind", [Member, Telling])
@pytest.mark.parametrize("policy", ["close", "drop_oldest", "drop_newest"])
async def test_a_client_that_does_not_read_meets_the_policy_and_no_other_notices(
    kind: Any, policy: str
) -> None:
    class Small(kind):  # type: ignore[misc, valid-type]
        config = f"memory://frames-{policy}-{kind.__name__}"
        outbox_messages = 20
        overflow = policy

    async with clients(Small, 2) as (slow, fast):
        hub = hub_of(Small)
        slow.stop_reading()
        source = Publisher()
        for start in range(0, 300, 30):
            texts = [("abc"[n % 3], str(n)) for n in range(start, start + 30)]
            await asyncio.wait_for(hub.deliver(batch(*texts, publisher=source)), 20)
        assert fast.got == list(range(300))
        slow.go_on_reading()
        if policy == "close":
            await until(lambda: slow.close_code is not None)
            assert slow.close_code == 1013
            assert hub.stats()["closed_overflow"] == 1
            return
        await until(lambda: hub.stats()["dropped_overflow"] + _numbers(slow) == 300)
        kept = [one for one in slow.got if isinstance(one, int)]
        assert kept == sorted(set(kept))
        assert (299 in kept) == (policy == "drop_oldest")
        assert any(isinstance(one, dict) for one in slow.got) == (kind is Telling)
        await hub.deliver(batch(("a", "300"), publisher=source))
        await until(lambda: 300 in slow.got)


def _numbers(client: FrameConnection) -> int:
    return sum(isinstance(one, int) for one in client.got)


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("surprise")], ids=repr)
async def test_a_write_that_fails_ends_that_client_alone(error: Exception) -> None:
    async with clients(Member, 3) as (first, second, third):
        second.error = error
        await hub_of().deliver(batch(("a", "1"), ("b", "2")))
        assert (first.got, third.got) == ([1, 2], [1, 2])
        await asyncio.wait_for(second.task, 10)
        await hub_of().deliver(batch(("a", "3")))
        assert (first.got, second.got, third.got) == ([1, 2, 3], [], [1, 2, 3])
        assert hub_of().stats()["discarded"] == 2


async def test_nothing_is_written_after_the_close_frame() -> None:
    made: list[Member] = []

    class Known(Member):
        def configure(self) -> None:
            made.append(self)

    async with clients(Known, 2) as (first, second):
        await made[0].async_send("last")
        await made[0].async_close(4000)
        await hub_of().deliver(batch(("a", "1")))
        await made[0].async_send("too late")
        assert (first.got, first.close_code) == (["last"], 4000)
        assert second.got == [1]


async def test_more_clients_than_one_turn_and_one_that_leaves_between() -> None:
    count = TURN_DELIVERIES + 50
    async with clients(Member, count) as members:
        delivery = asyncio.ensure_future(hub_of().deliver(batch(("a", "1"), ("b", "2"))))
        await asyncio.sleep(0)
        written = sum(bool(member.got) for member in members)
        assert 0 < written < count
        members[-1].leave()
        await delivery
        for member in members[:-1]:
            assert member.got == [1, 2]


async def test_own_sends_keep_their_order_with_broadcasts_that_wait() -> None:
    made: list[Member] = []

    class Known(Member):
        def configure(self) -> None:
            made.append(self)

    async with clients(Known, 1) as (member,):
        member.stop_reading()
        await hub_of().deliver(batch(("a", "1")))
        sending = [asyncio.ensure_future(made[0].async_send(f"own {n}")) for n in range(3)]
        await asyncio.sleep(0)
        await hub_of().deliver(batch(("a", "2")))
        member.go_on_reading()
        await asyncio.gather(*sending)
        await until(lambda: 2 in member.got)
        assert member.got == [1, "own 0", "own 1", "own 2", 2]
        assert member.events == 0


# Which way is taken


def wrapping(application: Any) -> Any:
    """Middleware that wraps `send`."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def traced(event: Any) -> None:
            await send(event)

        await application(scope, receive, traced)

    return wrapped


@pytest.mark.parametrize(
    ("option", "wrapped", "as_frames"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("always", True, True),
        ("never", False, False),
    ],
)
async def test_a_wrapped_send_sees_the_messages_unless_the_class_asks_for_frames(
    option: str, wrapped: bool, as_frames: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Choosing(Member):
        frames = option

    application = wrapping(Choosing.as_asgi) if wrapped else Choosing.as_asgi
    with caplog.at_level(logging.INFO, "django_sockets"):
        async with FrameConnection(application) as client:
            await until(lambda: bool(hub_of().subscriptions.channels))
            await hub_of().deliver(batch(("a", "1")))
            await until(lambda: client.got == [1])
            assert bool(client.writes) == as_frames
            assert bool(client.events) != as_frames
            stats = hub_of().stats()
            assert stats["sockets_with_frames"] == as_frames
            named = [name for name in stats if name.startswith("wrapped_send ")]
            assert bool(named) == (wrapped and option == "auto")
            assert all(name.endswith("wrapped.<locals>.traced") for name in named)
    named = "test_frame_delivery.wrapping.<locals>.wrapped.<locals>.traced wraps" in caplog.text
    assert named == (wrapped and option == "auto")


def test_a_wrong_option_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match="valid: always, auto, never"):

        class Wrong(BaseSocketServer):
            frames = "sometimes"


# Compression


def counting(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The payloads that are compressed from now on."""
    compressed: list[bytes] = []
    original = runs.deflate

    def deflate(payload: bytes, window_bits: int) -> bytes:
        compressed.append(payload)
        return original(payload, window_bits)

    monkeypatch.setattr(runs, "deflate", deflate)
    return compressed


async def test_a_long_broadcast_is_compressed_once_for_all_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressed = counting(monkeypatch)
    async with clients(Member, 20, deflate=12) as members, clients_without() as plain:
        await hub_of().deliver(batch(("a", f'"{LONG}"'), ("a", '"short"')))
        assert [member.got for member in [*members, plain]] == [[LONG, "short"]] * 21
        assert compressed == [f'"{LONG}"'.encode()]
        assert {member.sizes[0] for member in members} != {plain.sizes[0]}


@contextlib.asynccontextmanager
async def clients_without() -> AsyncIterator[FrameConnection]:
    """A client that does not read compressed frames, beside others."""
    async with FrameConnection(Member.as_asgi) as client:
        await until(lambda: len(hub_of().subscriptions.subscribers) == 21)
        await asyncio.sleep(0)
        yield client


async def test_compress_is_off_for_a_class_for_a_broadcast_and_for_a_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressed = counting(monkeypatch)
    made: list[Member] = []

    class Known(Member):
        def configure(self) -> None:
            made.append(self)

    class Off(Known):
        compress = False

    async def through(client: FrameConnection, calls: Iterable[Any]) -> None:
        before = len(client.got)
        for call in calls:
            await call
        await until(lambda: len(client.got) == before + 2)

    async with FrameConnection(Off.as_asgi, deflate=12) as client:
        await until(lambda: len(hub_of().subscriptions.channels) == 3)
        socket = made[-1]
        await through(client, [socket.async_send(LONG), socket.async_broadcast("a", LONG)])
    assert compressed == []
    async with FrameConnection(Known.as_asgi, deflate=12) as client:
        await until(lambda: len(hub_of().subscriptions.channels) == 3)
        socket = made[-1]
        off = [
            socket.async_send(LONG, compress=False),
            socket.async_broadcast("a", LONG, compress=False),
        ]
        await through(client, off)
        assert compressed == []
        await through(client, [socket.async_send(LONG), socket.async_broadcast("a", LONG)])
    assert len(compressed) == 2


async def test_overrides_from_before_the_option_compress_are_still_called() -> None:
    called: list[str] = []

    class Older(Member):
        async def async_send(self, data: Any, raw: bool = False) -> None:  # type: ignore[override]
            called.append("send")
            await super().async_send(data, raw)

        async def async_broadcast(  # type: ignore[override]
            self, channel: Any, data: Any, *, exclude_self: bool = False
        ) -> None:
            called.append("broadcast")
            await super().async_broadcast(channel, data, exclude_self=exclude_self)

        async def receive(self, data: Any) -> None:
            self.send("own")
            self.broadcast("a", "all")
            self.broadcast_many(["b"], "many")

    async with FrameConnection(Older.as_asgi) as client:
        client.say({"type": "websocket.receive", "text": "{}"})
        await until(lambda: len(client.got) == 3)
    assert sorted(called) == ["broadcast", "broadcast", "send"]
