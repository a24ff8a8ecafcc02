"""Clusters whose servers announce no address, or an address that cannot be reached."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from django_sockets import PublishError, SubscribeError, open_broker, open_hub
from django_sockets.testing.census import until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST
from django_sockets.testing.servers import CacheServer

FRONT = "127.0.0.9"
"""Where a load balancer stands before the cluster."""
NOWHERE = "127.0.0.77"


class Endpoints:
    """How the servers of a cluster are announced; restored afterwards."""

    def __init__(self, cluster: CacheCluster) -> None:
        self.cluster = cluster

    def prefer(self, kind: str) -> None:
        self.cluster.execute_on_all("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)

    def announce(self, names: dict[CacheServer, str]) -> None:
        """Returns when every server knows it."""
        for node, name in names.items():
            node.execute("CONFIG", "SET", "cluster-announce-hostname", name)

        def known() -> bool:
            told = [str(node.execute("CLUSTER", "NODES")) for node in self.cluster.nodes]
            return all(text.count(f",{name}") == count for text in told for name, count in counts)

        counts = collections.Counter(names.values()).items()
        until(known, 10, "the host names are not known everywhere")

    def reset(self) -> None:
        self.prefer("ip")
        self.cluster.execute_on_all("CONFIG", "SET", "cluster-announce-hostname", "")


@pytest.fixture(params=["valkey_cluster", "redis_cluster"])
def endpoints(request: pytest.FixtureRequest) -> Iterator[Endpoints]:
    cluster: CacheCluster = request.getfixturevalue(request.param)
    cluster.restore()
    endpoints = Endpoints(cluster)
    yield endpoints
    endpoints.reset()
    cluster.restore()


@pytest.fixture
async def front(endpoints: Endpoints) -> AsyncIterator[str]:
    """Another address at which each server can be reached at its port; the host."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        answers, requests = await asyncio.open_connection(HOST, port)
        await asyncio.gather(carry(reader, requests), carry(answers, writer))

    async with contextlib.AsyncExitStack() as stack:
        for node in endpoints.cluster.nodes:
            listener = await asyncio.start_server(serve, FRONT, node.port)
            stack.callback(listener.close)
        yield FRONT


async def nodes_of(url: str) -> set[str]:
    broker = open_broker(url)
    try:
        report = await broker.inspect()  # type: ignore[attr-defined]
        assert report.problem is None
        return set(report.nodes)
    finally:
        await broker.aclose()


async def all_slots_work(url: str) -> None:
    """Publish and receive on channels of every server."""
    rooms = [f"room:{n}" for n in range(12)]
    async with open_hub(quick(url)) as hub, contextlib.AsyncExitStack() as stack:
        heard = [await stack.enter_async_context(listening(hub, room)) for room in rooms]
        await hub.publish(rooms, b"x")
        for one in heard:
            await one.until_payload(b"x")


async def test_host_names_on_some_servers_only(endpoints: Endpoints, front: str) -> None:
    """The others are announced as "?": they are not at the host that was asked."""
    cluster = endpoints.cluster
    first, *others = cluster.primaries()
    endpoints.prefer("hostname")
    endpoints.announce({first: "localhost"})
    url = f"redis+cluster://{front}:{first.port}"
    named = {f"localhost:{first.port}", *(f"{HOST}:{node.port}" for node in others)}
    assert await nodes_of(url) == named
    await all_slots_work(url)


async def test_endpoints_that_are_unknown(endpoints: Endpoints, front: str) -> None:
    """They are at the host that was asked: so it is behind a load balancer."""
    endpoints.prefer("unknown-endpoint")
    ports = [node.port for node in endpoints.cluster.primaries()]
    url = f"redis+cluster://{front}:{ports[0]}"
    assert await nodes_of(url) == {f"{front}:{port}" for port in ports}
    await all_slots_work(url)
    # A name is replaced by the address that answered, which does not change with the server asked.
    assert await nodes_of(f"redis+cluster://localhost:{ports[0]}") == {
        f"{HOST}:{port}" for port in ports
    }


async def test_a_redirection_without_a_host(endpoints: Endpoints) -> None:
    """MOVED 1234 :6381 names another port of the server that sent it."""
    cluster = endpoints.cluster
    endpoints.prefer("unknown-endpoint")
    room = "django_sockets:{room}"
    source = cluster.primary_of(cluster.slot_of(room))
    target = next(node for node in cluster.primaries() if node is not source)
    async with open_hub(quick(cluster.url)) as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"before")
        await heard.until_payload(b"before")
        slot = cluster.slot_of(room)
        await asyncio.to_thread(cluster.move_slots, [slot], source, target)
        await hub.publish("room", b"after")
        # It may have come before the subscription was made again: the gap covers it then.
        await heard.until_gap()
        await hub.publish("room", b"again")
        await heard.until_payload(b"again")
    await asyncio.to_thread(cluster.move_slots, [slot], target, source)


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
async def test_a_server_that_cannot_be_reached_is_named(
    endpoints: Endpoints, caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    cluster = endpoints.cluster
    slot = cluster.slot_of("django_sockets:{room}")
    lost = cluster.primary_of(slot)
    endpoints.prefer("hostname")
    names = {node: NOWHERE if node is lost else HOST for node in cluster.nodes}
    endpoints.announce(names)
    reachable = next(node for node in cluster.primaries() if node is not lost)
    url = quick(
        f"redis+cluster://{HOST}:{reachable.port}",
        connect_timeout_seconds=0.5,
        publish_timeout_seconds=1,
        subscribe_timeout_seconds=1,
    )
    caplog.set_level(logging.WARNING, "django_sockets")
    with contextlib.ExitStack() as stack:
        if silent:
            stack.enter_context(socket.create_server((NOWHERE, lost.port)))
        async with open_hub(url) as hub:
            with pytest.raises(PublishError, match=f"{NOWHERE}:{lost.port}"):
                await hub.publish("room", b"x")
            with pytest.raises(SubscribeError, match=f"{NOWHERE}:{lost.port}"):
                async with hub.subscribe("room"):
                    pass
    logged = [record.getMessage() for record in caplog.records]
    assert any(f"{NOWHERE}:{lost.port}" in line for line in logged), logged
