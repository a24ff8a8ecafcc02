"""Clusters that are too old, servers that are not in a cluster, and URLs with unreachable nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import pytest

from django_sockets import PublishError, SubscribeError, open_hub
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import PATIENT, with_options
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST, free_port
from django_sockets.testing.servers import CacheServer


async def both_fail(url: str, words: str) -> None:
    async with open_hub(quick(url, subscribe_timeout_seconds=0.5)) as hub:
        with pytest.raises(PublishError, match=words):
            await hub.publish("room", b"x")
        with pytest.raises(SubscribeError, match=words):
            async with hub.subscribe("room"):
                pass


async def heard_without_a_timeout(url: str) -> None:
    """Publish and receive a message, before any deadline of a connection has passed."""
    began = time.monotonic()
    async with open_hub(with_options(url, **PATIENT)) as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"x")
        await heard.until_payload(b"x")
    assert time.monotonic() - began < PATIENT["connect_timeout_seconds"] / 2


async def test_servers_without_sharded_channels_are_mentioned_once(
    old_cluster: CacheCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """There, every message goes to every node. A warning is enough."""
    caplog.set_level(logging.WARNING, "django_sockets")
    async with open_hub(quick(old_cluster.url)) as hub, contextlib.AsyncExitStack() as stack:
        # A subscriber that the server cuts makes the broker look at the cluster again.
        for number in range(3):
            room = f"room:{number}"
            heard = await stack.enter_async_context(listening(hub, room))
            await hub.publish(room, b"x")
            await heard.until_payload(b"x")
            for node in old_cluster.nodes:
                await asyncio.to_thread(node.execute, "CLIENT", "KILL", "TYPE", "PUBSUB")
            await heard.until_gap()
    told = [r.getMessage() for r in caplog.records if "no sharded pub/sub" in r.getMessage()]
    assert len(told) == 1
    assert "every message goes to every node" in told[0]


async def test_a_server_that_is_no_cluster(valkey_server: CacheServer) -> None:
    url = valkey_server.url.replace("redis://", "redis+cluster://")
    await both_fail(url, f"{HOST}:{valkey_server.port} is no cluster: write redis://")


@pytest.fixture
async def web_server() -> AsyncIterator[int]:
    """The port of a server that answers as a web server does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_server_that_is_no_cache_at_all(web_server: int, scheme: str) -> None:
    await both_fail(f"{scheme}://{HOST}:{web_server}", 'cannot connect: .*"H"')


async def test_seeds_that_are_all_dead() -> None:
    dead = [free_port(), free_port()]
    url = f"redis+cluster://{HOST}:{dead[0]},{HOST}:{dead[1]}"
    await both_fail(url, f"cannot connect: .*{HOST}:({dead[0]}|{dead[1]})")


async def test_a_first_seed_that_is_dead_or_no_cluster_is_passed_over(
    valkey_cluster: CacheCluster, valkey_server: CacheServer
) -> None:
    live = f"{HOST}:{valkey_cluster.nodes[0].port}"
    for other in (free_port(), valkey_server.port):
        await heard_without_a_timeout(f"redis+cluster://{HOST}:{other},{live}")


async def test_a_first_seed_that_says_nothing_is_passed_over(valkey_cluster: CacheCluster) -> None:
    live = f"{HOST}:{valkey_cluster.nodes[0].port}"
    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: held.append(writer), HOST, 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        await heard_without_a_timeout(f"redis+cluster://{HOST}:{port},{live}")
        for writer in held:
            writer.close()
