"""A server that freezes, cuts connections or is demoted; the load of many subscribers on it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from ...deadlines import with_deadline
from ...errors import BrokerClosed, PublishError, SubscribeError
from ...hub.hub import open_hub
from ..ledger import Ledger, Listener, listening
from .base import PATIENT, with_options
from .control import ServerControl
from .faults import (
    DEAD_PEER_SECONDS,
    FaultTests,
    eventually,
    flow,
    is_message,
    quick,
    traffic,
)

__all__ = ["TroubleContract"]


class TroubleContract(FaultTests):
    """The promises of a backend whose server runs and fails."""

    # Frozen

    async def test_a_publish_without_an_answer_is_unknown_and_never_repeated(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url, dead_peer_seconds=30), Ledger()
        async with open_hub(url) as hub, listening(hub, room) as heard:
            # Both channels are used, so that both have a connection.
            await hub.publish([room, f"{room}:2"], ledger.write(room))
            await server.pause()
            started = time.monotonic()
            with pytest.raises(PublishError) as caught:
                await hub.publish([room, f"{room}:2"], ledger.write(room))
            # It has not waited for `dead_peer_seconds`.
            assert time.monotonic() - started < 15
            assert caught.value.unknown == (room, f"{room}:2")
            assert caught.value.failed == ()
            assert "outcome unknown" in str(caught.value)
            await server.resume()
            await flow(hub, ledger, heard, room)
            heard.check(ledger)

    @pytest.mark.parametrize("dead_peer_seconds", [DEAD_PEER_SECONDS, 30])
    async def test_what_a_frozen_server_kept_is_not_delivered_late_or_twice(
        self, server: ServerControl, room: str, dead_peer_seconds: float
    ) -> None:
        ledger = Ledger()
        async with (
            open_hub(quick(server.url)) as publisher,
            open_hub(quick(server.url, dead_peer_seconds=dead_peer_seconds)) as reader,
            listening(reader, room) as heard,
        ):
            await publisher.publish(room, ledger.write(room))
            await server.pause()
            kept = [publisher.publish(room, ledger.write(room)) for _ in range(20)]
            outcomes = await asyncio.gather(*kept, return_exceptions=True)
            assert all(isinstance(outcome, PublishError) for outcome in outcomes)
            # The publisher has opened another connection for these messages.
            new = asyncio.gather(
                *(publisher.publish(room, ledger.write(room)) for _ in range(20)),
                return_exceptions=True,
            )
            await asyncio.sleep(0.1)
            await server.resume()
            await new
            await flow(publisher, ledger, heard, room)
            heard.check(ledger)

    async def test_a_frozen_server_fails_a_subscribe_as_a_whole(
        self, server: ServerControl, room: str
    ) -> None:
        async with open_hub(quick(server.url)) as hub, listening(hub, room) as heard:
            await server.pause()
            started = time.monotonic()
            with pytest.raises(SubscribeError) as caught:
                async with hub.subscribe(f"{room}:2", f"{room}:3", room):
                    pass
            assert time.monotonic() - started < 3
            assert caught.value.channels == (f"{room}:2", f"{room}:3", room)
            assert hub.stats()["channels"] == 1
            await server.resume()
            await flow(hub, Ledger(), heard, room)
            await eventually(server.channels, 1)

    async def test_aclose_does_not_wait_for_a_frozen_server(
        self, server: ServerControl, room: str
    ) -> None:
        tasks = asyncio.all_tasks()
        hub = open_hub(with_options(server.url, **PATIENT))
        async with hub.subscribe(room):
            await hub.publish(room, b"x")
            await server.pause()
            publishing = asyncio.create_task(hub.publish(room, b"y"))
            subscribing = asyncio.create_task(hub.subscribe(f"{room}:2").__aenter__())
            await asyncio.sleep(0.05)
            await with_deadline(10, hub.aclose())
            with pytest.raises(PublishError) as caught:
                await with_deadline(10, publishing)
            assert caught.value.unknown == (room,)
            with pytest.raises(BrokerClosed):
                await with_deadline(10, subscribing)
        assert asyncio.all_tasks() == tasks

    # Cut off and demoted

    async def test_a_server_that_cuts_subscribers_causes_one_gap_and_no_more(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url), Ledger()
        rooms = [room, f"{room}:2"]
        async with (
            open_hub(url) as publisher,
            open_hub(url) as reader,
            listening(reader, *rooms) as heard,
            traffic(publisher, ledger, *rooms),
        ):
            for i in range(1, 4):
                await heard.until(is_message, start=len(heard.events))
                await server.cut_subscribers()
                # One gap names both rooms, or each has its own gap if their servers differ.
                place = await heard.until(lambda _, i=i: _named(heard) == sorted(rooms * i))  # type: ignore[misc]
                await heard.until(is_message, start=place)
            await heard.until(lambda _: len(heard.events) > place + 100)
            assert _named(heard) == sorted(rooms * 3)
            heard.check(ledger, to_the_end=False)

    async def test_a_server_that_cuts_publishers_loses_nothing_silently(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url), Ledger()
        async with (
            open_hub(url) as publisher,
            open_hub(url) as reader,
            listening(reader, room) as heard,
        ):
            async with traffic(publisher, ledger, room):
                for _ in range(10):
                    await heard.until(is_message, start=len(heard.events))
                    await server.cut_publishers()
            await flow(publisher, ledger, heard, room)
            heard.check(ledger)
            assert {gap.reason for gap in heard.gaps} <= {"missed"}

    async def test_a_demoted_server_is_noticed(self, server: ServerControl, room: str) -> None:
        ledger = Ledger()
        async with open_hub(quick(server.url)) as hub, listening(hub, room) as heard:
            await hub.publish(room, ledger.write(room))
            await server.demote()
            await heard.until_gap(within_seconds=0.2 + DEAD_PEER_SECONDS + 1)
            await server.promote()
            await flow(hub, ledger, heard, room)
            place = len(heard.events)
            # The hub reports no more gaps: it does not take the primary for a replica.
            async with traffic(hub, ledger, room):
                await heard.until(lambda _: len(heard.events) > place + 200)
            assert all(map(is_message, heard.events[place:]))

    # Load

    async def test_many_callers_and_subscribers_share_a_few_connections(
        self, server: ServerControl, room: str
    ) -> None:
        before = await server.connections()
        async with open_hub(server.url) as hub, contextlib.AsyncExitStack() as stack:
            for i in range(500):
                await stack.enter_async_context(hub.subscribe(f"{room}:{i % 50}"))
            assert await server.channels() == 50
            calls = asyncio.gather(*(hub.publish(f"{room}:x", b"%d" % i) for i in range(1000)))
            assert await server.connections() - before <= 2 * server.nodes
            await calls
            assert await server.connections() - before <= 2 * server.nodes
            await stack.aclose()
            await eventually(server.channels, 0)
        await eventually(server.connections, before)

    async def test_aclose_leaves_the_server_nothing(self, server: ServerControl, room: str) -> None:
        before = await server.connections()
        hub = open_hub(with_options(server.url))
        async with hub.subscribe(room):
            await hub.publish(room, b"x")
            assert await server.connections() > before
            await hub.aclose()
            await eventually(server.connections, before)
            assert await server.channels() == 0


def _named(heard: Listener) -> list[str]:
    """The channels of all gaps so far, once for each gap."""
    return sorted(channel for gap in heard.gaps for channel in gap.channels)
