"""A server that is down or crashes."""

from __future__ import annotations

import asyncio
import time
import traceback

import pytest

from ...deadlines import with_deadline
from ...errors import AuthError, PublishError, SubscribeError
from ...hub.hub import open_hub
from ..ledger import Ledger, listening
from .base import PATIENT, with_options, with_password
from .control import ServerControl
from .faults import FaultTests, flow, is_message, quick, traffic

__all__ = ["CrashContract"]

RESTART_SECONDS = 2.0
"""The longest time after the restart of a server until messages flow again."""


class CrashContract(FaultTests):
    """The promises of a backend whose server stops and starts."""

    # Down

    async def test_a_publish_to_a_dead_server_fails_at_once_and_says_where(
        self, server: ServerControl, room: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await server.kill()
        url = with_password(with_options(server.url, **PATIENT), "someone", "s3cr3t")
        tasks = asyncio.all_tasks()
        async with open_hub(url) as hub:
            started = time.monotonic()
            with pytest.raises(PublishError) as caught:
                await hub.publish([room, f"{room}:2"], b"x")
            assert time.monotonic() - started < 15  # It has not waited for a deadline.
            assert caught.value.failed == (room, f"{room}:2")
            assert caught.value.unknown == ()
            assert f"not published to {room!r}" in str(caught.value)
            assert caught.value.url == str(hub.config.url)
            shown = "".join(traceback.format_exception(caught.value)) + caplog.text
            assert "someone:***@" in shown
            assert "s3cr3t" not in shown
        assert asyncio.all_tasks() == tasks

    async def test_a_subscribe_waits_for_a_server_that_is_about_to_come(
        self, server: ServerControl, room: str
    ) -> None:
        await server.kill()
        url = quick(server.url, subscribe_timeout_seconds=10)
        async with open_hub(url) as hub:
            subscription = hub.subscribe(room)
            entering = asyncio.create_task(subscription.__aenter__())
            await asyncio.sleep(0.2)
            assert not entering.done()
            await server.start()
            events = await with_deadline(RESTART_SECONDS, entering)
            await hub.publish(room, b"hello")
            event = await with_deadline(5, anext(events))
            assert is_message(event)
            await subscription.__aexit__(None, None, None)

    async def test_a_subscribe_gives_up_in_time_and_wants_nothing(
        self, server: ServerControl, room: str
    ) -> None:
        before = await server.connections()
        await server.kill()
        async with open_hub(quick(server.url)) as hub:
            started = time.monotonic()
            with pytest.raises(SubscribeError, match=r"within 1\.5 s") as caught:
                async with hub.subscribe(room, f"{room}:2"):
                    pass
            assert 1.4 < time.monotonic() - started < 2.5
            assert caught.value.channels == (room, f"{room}:2")
            assert caught.value.__cause__ is not None
            assert hub.stats()["channels"] == 0
            await server.start()
            await asyncio.sleep(1.1)  # More than the longest pause between two attempts.
            if server.nodes == 1:  # A client keeps connections to several servers.
                assert await server.connections() == before
            assert await server.channels() == 0
            async with listening(hub, f"{room}:3") as heard:
                await flow(hub, Ledger(), heard, f"{room}:3")
                assert await server.channels() == 1

    async def test_a_wrong_password_is_named_as_such_and_never_shown(
        self, server: ServerControl, room: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await server.add_user("someone", "right")
        started = time.monotonic()
        wrong = with_password(with_options(server.url, **PATIENT), "someone", "s3cr3t")
        async with open_hub(wrong) as hub:
            with pytest.raises(PublishError) as publishing:
                await hub.publish(room, b"x")
            with pytest.raises(SubscribeError) as subscribing:
                async with hub.subscribe(room):
                    pass
        # Neither call waited for a timeout, because another attempt cannot succeed.
        assert time.monotonic() - started < 15
        for caught in (publishing, subscribing):
            assert isinstance(caught.value.__cause__, AuthError)
            assert "credentials" in str(caught.value)
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert "s3cr3t" not in shown
        assert publishing.value.failed == (room,)
        assert "credentials" in caplog.text
        assert "s3cr3t" not in caplog.text
        url = with_password(server.url, "someone", "right")
        async with open_hub(url) as hub, listening(hub, room) as heard:
            await flow(hub, Ledger(), heard, room)

    # Killed

    async def test_after_a_crash_traffic_flows_again_and_what_is_missing_is_signalled(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url), Ledger()
        rooms = [room, f"{room}:2", f"{room}:3"]
        async with (
            open_hub(url) as publisher,
            open_hub(url) as reader,
            listening(reader, *rooms) as heard,
        ):
            async with reader.subscribe(f"{room}:left"):
                pass
            async with traffic(publisher, ledger, *rooms):
                await heard.until(lambda _: len(heard.messages) >= 100)
                await server.kill()
                await asyncio.sleep(0.5)
                down = len(heard.events)
                await server.start()
                back = await heard.until_gap(start=down, within_seconds=RESTART_SECONDS)
                await heard.until(is_message, start=back, within_seconds=RESTART_SECONDS)
                await heard.until(lambda _: len(heard.events) >= back + 100)
            await flow(publisher, ledger, heard, *rooms)
            heard.check(ledger)
            # Each lost link causes one gap on exactly its channels. Other gaps stand for publishes
            # that failed, each on its own channel.
            of_links = [gap for gap in heard.gaps if gap.reason not in ("missed", "late")]
            assert {channel for gap in of_links for channel in gap.channels} == set(rooms)
            if server.nodes == 1:
                assert len(of_links) == 1

    async def test_a_reader_that_only_listens_comes_back_too(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url), Ledger()
        async with open_hub(url) as reader, listening(reader, room) as heard:
            for _ in range(3):
                gaps = len(heard.gaps)
                await server.kill()
                await server.start()
                await heard.until(lambda _, n=gaps: len(heard.gaps) > n)  # type: ignore[misc]
                async with open_hub(url) as publisher:
                    await flow(publisher, ledger, heard, room)
            assert [gap.channels for gap in heard.gaps] == [(room,)] * 3

    async def test_subscribing_while_the_server_is_away_takes_effect_when_it_is_back(
        self, server: ServerControl, room: str
    ) -> None:
        url, ledger = quick(server.url, subscribe_timeout_seconds=10), Ledger()
        async with open_hub(url) as hub, listening(hub, room) as heard:
            async with hub.subscribe(f"{room}:dropped"):
                await server.pause()  # The server does not receive the unsubscribe.
            await server.kill()
            subscription = hub.subscribe(f"{room}:new")
            entering = asyncio.create_task(subscription.__aenter__())
            await asyncio.sleep(0.1)
            await server.start()
            events = await with_deadline(RESTART_SECONDS, entering)
            await hub.publish(f"{room}:new", b"hello")
            assert is_message(await with_deadline(5, anext(events)))
            await flow(hub, ledger, heard, room)
            assert [gap.channels for gap in heard.gaps] == [(room,)]
            assert await server.channels() == 2
            await subscription.__aexit__(None, None, None)
