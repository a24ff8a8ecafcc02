"""The controls of the fault tests act on several servers as on one.

These tests count all connections, so that they need servers of their own: brokers of earlier tests
may still connect again to shared ones.
"""

from __future__ import annotations

import socket

import redis

from django_sockets.testing.census import count_connections
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import (
    ClusterControl,
    SentinelControl,
    ServerControl,
    ServerlessControl,
)
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer, ValkeyServer


async def check_cuts(control: ServerControl, server: CacheServer) -> None:
    """Both kinds of connections are counted and cut, the other kind is spared."""
    user = {"username": server.username, "password": server.password}
    before = await control.connections()
    with redis.Redis(port=server.port, **user) as client, client.pubsub() as heard:
        client.ping()
        heard.subscribe("p:{room}")
        assert heard.get_message(timeout=5) is not None
        numbers = client.client_id()
        assert (await control.connections(), await control.channels()) == (before + 2, 1)
        await control.cut_publishers()
        assert (await control.connections(), await control.channels()) == (before + 1, 1)
        assert client.client_id() != numbers
        await control.cut_subscribers()
        assert await control.channels() == 0
    await control.add_user("eve", "secret")
    with redis.Redis(port=server.port, username="eve", password="secret") as client:
        assert client.ping()


async def check_freeze_and_crash(control: ServerControl, *servers: CacheServer) -> None:
    await control.pause()
    assert all(server.paused for server in servers)
    await control.resume()
    assert not any(server.paused for server in servers)
    await control.kill()
    assert not any(server.running for server in servers)
    await control.start()
    assert all(server.execute("PING") == "PONG" for server in servers)


async def test_a_cluster(fresh_valkey_cluster: CacheCluster) -> None:
    cluster = fresh_valkey_cluster
    control = ClusterControl(cluster)
    assert (control.url, control.nodes) == (cluster.url, 6)
    await check_cuts(control, cluster.nodes[4])
    await control.demote()
    assert cluster.primaries() == cluster.nodes[3:]
    await control.promote()
    assert cluster.primaries() == cluster.nodes[:3]
    await check_freeze_and_crash(control, *cluster.nodes)


async def test_a_sentinel_set(fresh_valkey_sentinels: SentinelTrio) -> None:
    trio = fresh_valkey_sentinels
    control = SentinelControl(trio)
    await check_cuts(control, trio.primary())
    await control.demote()
    await control.promote()
    assert trio.primary().execute("ROLE")[0] == "master"
    await check_freeze_and_crash(control, *trio.nodes)


def test_a_connection_that_sent_nothing_is_not_counted() -> None:
    with ValkeyServer() as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address), socket.create_connection(address) as user:
            user.sendall(b"PING\r\n")
            assert user.recv(16) == b"+PONG\r\n"
            assert count_connections([server]) == 1


async def test_a_serverless_cache(fresh_serverless: ServerlessEmulation) -> None:
    control = ServerlessControl(fresh_serverless)
    assert (control.url, control.nodes) == (fresh_serverless.url, 1)
    await check_cuts(control, fresh_serverless.node)
    await check_freeze_and_crash(control, fresh_serverless.node)
