"""A network that loses bytes, cuts connections and delays, while the server works."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import urlsplit

import pytest

from ...errors import PublishError
from ...hub.hub import open_hub
from ..ledger import Ledger, listening
from ..proxy import FaultProxy
from .control import ServerControl
from .faults import DEAD_PEER_SECONDS, FaultTests, flow, is_message, quick, traffic

__all__ = ["NetworkContract"]


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy in front of the server of a URL with one host, and the URL through the proxy."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise pytest.UsageError(f"{parts.scheme}: a proxy needs a URL with host and port")
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy, url.replace(f":{parts.port}", f":{proxy.port}", 1)


class NetworkContract(FaultTests):
    """The promises of a backend whose network fails."""

    async def test_subscribed_means_that_the_server_said_so(
        self, server: ServerControl, room: str
    ) -> None:
        async with (
            proxied(server.url) as (proxy, url),
            open_hub(server.url) as publisher,
            open_hub(url) as reader,
        ):
            proxy.delay_seconds = 0.05
            for i in range(3):
                async with listening(reader, f"{room}:{i}") as heard:
                    await publisher.publish(f"{room}:{i}", b"x")
                    await heard.until_payload(b"x")

    @pytest.mark.parametrize("direction", ["both", "reads", "writes"])
    async def test_a_silent_link_is_noticed_and_replaced_in_time(
        self, server: ServerControl, room: str, direction: Literal["both", "reads", "writes"]
    ) -> None:
        ledger = Ledger()
        async with (
            proxied(quick(server.url)) as (proxy, url),
            open_hub(server.url) as publisher,
            open_hub(url) as reader,
            listening(reader, room) as heard,
        ):
            async with traffic(publisher, ledger, room):
                await heard.until(lambda _: len(heard.messages) >= 20)
                proxy.blackhole(direction)
                silent = time.monotonic()
                gap = await heard.until_gap(within_seconds=DEAD_PEER_SECONDS + 1)
                left = DEAD_PEER_SECONDS + 1 - (time.monotonic() - silent)
                await heard.until(is_message, start=gap, within_seconds=left)
            await flow(publisher, ledger, heard, room)
            assert len(heard.gaps) == 1
            heard.check(ledger)

    @pytest.mark.parametrize("direction", ["both", "reads", "writes"])
    async def test_a_publisher_on_a_silent_link_fails_and_goes_on(
        self, server: ServerControl, room: str, direction: Literal["both", "reads", "writes"]
    ) -> None:
        ledger = Ledger()
        async with (
            proxied(quick(server.url, publish_timeout_seconds=30)) as (proxy, url),
            open_hub(url) as publisher,
            open_hub(server.url) as reader,
            listening(reader, room) as heard,
        ):
            await publisher.publish(room, ledger.write(room))
            proxy.blackhole(direction)
            silent = time.monotonic()
            with pytest.raises(PublishError) as caught:
                await publisher.publish(room, ledger.write(room))
            assert caught.value.unknown == (room,)
            await publisher.publish(room, ledger.write(room))
            # It has not waited for `publish_timeout_seconds`.
            assert time.monotonic() - silent < 15
            await flow(publisher, ledger, heard, room)
            heard.check(ledger)

    async def test_a_link_that_is_cut_again_and_again_loses_nothing_silently(
        self, server: ServerControl, room: str
    ) -> None:
        ledgers = [Ledger("a"), Ledger("b")]
        rooms = [room, f"{room}:2"]
        async with (
            proxied(quick(server.url)) as (proxy, url),
            open_hub(server.url) as publisher,
            open_hub(url) as hub,
            listening(hub, *rooms) as heard,
        ):
            async with traffic(publisher, ledgers[0], *rooms), traffic(hub, ledgers[1], *rooms):
                for _ in range(20):
                    await heard.until(is_message, start=len(heard.events))
                    proxy.drop()
            await flow(publisher, ledgers[0], heard, *rooms)
            await flow(hub, ledgers[1], heard, *rooms)
            heard.check(*ledgers)

    async def test_a_link_cut_inside_a_large_message_delivers_no_half_of_it(
        self, server: ServerControl, room: str
    ) -> None:
        ledger = Ledger()
        size = 2 * 1024 * 1024
        async with (
            proxied(quick(server.url)) as (proxy, url),
            open_hub(server.url) as publisher,
            open_hub(url) as reader,
            listening(reader, room) as heard,
        ):
            await publisher.publish(room, ledger.write(room))
            proxy.delay_seconds = 0.01
            await publisher.publish(room, ledger.write(room, pad_bytes=size))
            await asyncio.sleep(0.1)
            proxy.drop()
            proxy.delay_seconds = 0
            await heard.until_gap()
            await flow(publisher, ledger, heard, room)
            assert heard.check(ledger) == [("publisher", room, 2)]

    async def test_a_large_message_on_a_slow_link_is_not_taken_for_a_dead_peer(
        self, server: ServerControl, room: str
    ) -> None:
        ledger = Ledger()
        async with (
            proxied(quick(server.url, dead_peer_seconds=0.5)) as (proxy, url),
            open_hub(url) as hub,
            open_hub(server.url) as direct,
            listening(hub, room) as heard,
            listening(direct, room) as control,
        ):
            await hub.publish(room, ledger.write(room))
            await heard.until_payload(b"publisher 1 ")
            proxy.delay_seconds = 0.05
            started = time.monotonic()
            payload = ledger.write(room, pad_bytes=1024 * 1024)
            await hub.publish(room, payload)
            await heard.until_payload(payload)
            assert time.monotonic() - started > 1
            assert heard.gaps == []
            assert control.check(ledger) == []
