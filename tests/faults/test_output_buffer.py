"""A subscriber that the server disconnects for its full output buffer gets a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from django_sockets import Hub, open_hub
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import Ledger, listening
from django_sockets.testing.servers import CacheServer
from support.loop_thread import LoopThread

LIMIT = "pubsub 262144 0 0"
"""256 KiB of replies that wait for one subscriber, and it is cut at once."""
MOST_BYTES = 512 * 1024 * 1024
"""No server takes so much: the kernel buffers some MiB, and Valkey counts long replies late."""
ROOMS = ("slow:1", "slow:2", "slow:3")


@pytest.fixture
def elsewhere() -> Iterator[LoopThread]:
    with LoopThread() as loop:
        yield loop


@contextlib.asynccontextmanager
async def opened(elsewhere: LoopThread, url: str) -> AsyncIterator[Hub]:
    """A hub that belongs to another loop."""

    async def make() -> Hub:
        return open_hub(url)

    hub = await asyncio.wrap_future(elsewhere.start(make()))
    try:
        yield hub
    finally:
        await asyncio.wrap_future(elsewhere.start(hub.aclose()))


def cuts(server: CacheServer) -> int:
    """How many clients the server has disconnected for a full output buffer, by its log."""
    log = (server.directory / "server.log").read_text(errors="replace")
    return log.count("overcoming of output buffer limits")


async def publish_until_the_cut(
    server: CacheServer, hub: Hub, ledger: Ledger, pad_bytes: int
) -> None:
    """Publish until the server disconnects the subscriber, and some more messages afterwards."""
    batch = max(1, 1024 * 1024 // pad_bytes)

    async def publish() -> None:
        messages = [(room, ledger.write(room, pad_bytes=pad_bytes)) for room in ROOMS * batch]
        await asyncio.gather(*(hub.publish(room, payload) for room, payload in messages))

    published_bytes = 0
    while not cuts(server):
        assert published_bytes < MOST_BYTES, "the server never cut its slow subscriber"
        await publish()
        published_bytes += pad_bytes * batch * len(ROOMS)
    await publish()


@pytest.mark.parametrize("server_name", ["fresh_valkey_server", "fresh_redis_server"])
@pytest.mark.parametrize("size_bytes", [1024, 64 * 1024])
async def test_what_a_cut_subscriber_missed_is_inside_a_gap_and_traffic_comes_again(
    server_name: str, size_bytes: int, elsewhere: LoopThread, request: pytest.FixtureRequest
) -> None:
    server: CacheServer = request.getfixturevalue(server_name)
    server.execute("CONFIG", "SET", "client-output-buffer-limit", LIMIT)
    # Its own queue of events must not overflow: that would be a gap, too.
    reader_url = quick(server.url, events_queue_size=1 << 20)
    ledger = Ledger()
    async with (
        opened(elsewhere, server.url) as publisher,
        open_hub(reader_url) as reader,
        listening(reader, *ROOMS) as heard,
    ):
        # Nothing runs on this loop meanwhile: it is the slow subscriber.
        elsewhere.run(publish_until_the_cut(server, publisher, ledger, size_bytes))

        # Nothing is published now: the lost connection causes the gap, not a later hole.
        gap = await heard.until_gap()
        assert sorted(heard.gaps[0].channels) == sorted(ROOMS)

        last = {room: ledger.write(room) for room in ROOMS}
        for room, payload in last.items():
            await asyncio.wrap_future(elsewhere.start(publisher.publish(room, payload)))
        for room, payload in last.items():
            await heard.until_payload(payload, channel=room)
        missing = heard.check(ledger)
        print(f"{gap} messages heard, {len(missing)} missed, {cuts(server)} cut", flush=True)
        assert missing, "it was cut off and missed nothing: it was not slow"
