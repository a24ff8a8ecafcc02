"""The clusters of the test kit fail as real clusters do, and are restored for the next test."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from django_sockets.url import BrokerURL


@pytest.fixture
def cluster(restored_valkey_cluster: CacheCluster) -> CacheCluster:
    return restored_valkey_cluster


def shape(cluster: CacheCluster) -> list[Any]:
    """The slots of every node, and the primary that it replicates."""
    followed = {
        replica.port: primary.port
        for primary in cluster.primaries()
        for replica in cluster.replicas_of(primary)
    }
    return [(node.port, cluster.slots_of(node), followed.get(node.port)) for node in cluster.nodes]


def client_of(node: CacheServer, **options: Any) -> redis.Redis:
    return redis.Redis(port=node.port, decode_responses=True, **options)


def test_a_cluster_has_an_even_shape_that_all_nodes_agree_on(cluster: CacheCluster) -> None:
    a, b, c, *replicas = (node.port for node in cluster.nodes)
    assert shape(cluster) == [
        (a, [(0, 5460)], None),
        (b, [(5461, 10921)], None),
        (c, [(10922, 16383)], None),
        *((replica, [], primary) for replica, primary in zip(replicas, (a, b, c), strict=True)),
    ]
    for node in cluster.nodes:
        assert "cluster_state:ok" in node.execute("CLUSTER", "INFO")
    started = time.monotonic()
    cluster.restore()
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("name", ["room", "a{b}c", "{}x", "{", "a{}{b}", "a{b", "ä", "{{x}}"])
def test_the_slot_of_a_name_is_the_servers(cluster: CacheCluster, name: str) -> None:
    assert slot_of(name) == slot_of(name.encode()) == cluster.slot_of(name)
    assert slot_of(name) == cluster.nodes[0].execute("CLUSTER", "KEYSLOT", name)


def test_a_killed_primary_is_replaced_and_gets_its_slots_back(cluster: CacheCluster) -> None:
    before = shape(cluster)
    for fault in (CacheServer.kill, CacheServer.pause):
        gone = cluster.primary_of(slot_of("room"))
        fault(gone)
        promoted = cluster.wait_promoted(gone, 10)
        cluster.wait_ok()
        assert promoted is not gone
        assert cluster.primary_of(slot_of("room")) is promoted
        assert gone not in cluster.primaries()
        cluster.restore()
        assert shape(cluster) == before
        assert not gone.paused


def test_what_an_administrator_does_is_undone(cluster: CacheCluster) -> None:
    before = shape(cluster)
    a, b, c, a2, b2, _ = cluster.nodes
    cluster.move_slots([*range(1000), 5000], a, b)
    assert cluster.slots_of(b) == [(0, 999), (5000, 5000), (5461, 10921)]
    with pytest.raises(redis.ResponseError, match=r"^0 127"):  # MOVED
        a.execute("SPUBLISH", "{06S}", "x")  # slot 0
    cluster.failover(b2)
    assert cluster.primary_of(0) is b2
    c.execute("CLUSTER", "DELSLOTSRANGE", 16000, 16383)
    c.execute("CLUSTER", "SETSLOT", 12000, "MIGRATING", a.execute("CLUSTER", "MYID"))
    a2.execute("CLUSTER", "REPLICATE", c.execute("CLUSTER", "MYID"))
    cluster.restore()
    assert shape(cluster) == before
    assert "[" not in c.execute("CLUSTER", "NODES")


def test_a_primary_without_slots_and_one_that_follows_a_stranger_are_put_back(
    cluster: CacheCluster,
) -> None:
    before = shape(cluster)
    a, b, *_ = cluster.nodes
    cluster.move_slots(range(5461), a, b)
    a.execute("CLUSTER", "REPLICATE", b.execute("CLUSTER", "MYID"))
    cluster.restore()
    assert shape(cluster) == before


def test_slots_that_moved_after_a_failover_come_back(cluster: CacheCluster) -> None:
    before = shape(cluster)
    a, b, *_ = cluster.nodes
    a.kill()
    cluster.move_slots(range(10), cluster.wait_promoted(a, 10), b)
    cluster.restore()
    assert shape(cluster) == before


def test_a_replica_that_missed_the_end_of_a_move_is_told(cluster: CacheCluster) -> None:
    a, b, _, a2, *_ = cluster.nodes
    a.execute("CLUSTER", "SETSLOT", 100, "MIGRATING", b.execute("CLUSTER", "MYID"))
    assert "[100->-" in a2.execute("CLUSTER", "NODES")
    a2.kill()
    a.execute("CLUSTER", "SETSLOT", 100, "STABLE")
    cluster.start_all()
    cluster.restore()
    assert "[" not in a2.execute("CLUSTER", "NODES")


def test_every_node_names_every_replica_to_clients_once_faults_are_undone(
    cluster: CacheCluster,
) -> None:
    for hurt in [[node] for node in cluster.nodes[3:]] + [cluster.nodes] * 2:
        for node in hurt:
            node.kill()
        cluster.restore()
        for node in cluster.nodes:
            named = [len(servers) for _, _, *servers in node.execute("CLUSTER", "SLOTS")]
            assert named == [2, 2, 2]


def test_a_whole_cluster_comes_back_with_the_same_url(cluster: CacheCluster) -> None:
    url = cluster.url
    cluster.kill_all()
    assert cluster.primaries() == []
    with pytest.raises(LookupError):
        cluster.primary_of(0)
    cluster.start_all()
    assert len(cluster.primaries()) == 3
    assert cluster.url == url


def test_only_clients_and_the_channels_of_users_are_counted(cluster: CacheCluster) -> None:
    before = cluster.connections()
    name = "p:{room}"
    with (
        client_of(cluster.primary_of(slot_of(name)), protocol=3) as client,
        client.pubsub() as heard,
    ):
        heard.ssubscribe(name)
        heard.subscribe("p:{room}:2", "p:{room}", "private")
        for _ in range(4):
            assert heard.get_message(timeout=5) is not None
        assert cluster.channels() == 2
        assert cluster.connections() == before + 1
    with pytest.raises(TimeoutError):
        cluster.wait_promoted(cluster.nodes[0], 0.05)


def test_a_tls_cluster_shares_one_authority(restored_redis_tls_cluster: CacheCluster) -> None:
    cluster = restored_redis_tls_cluster
    url = BrokerURL.parse(cluster.url)
    assert url.scheme == "rediss+cluster"
    assert (url.username, url.password) == ("alice", "p@ss wörd")
    assert [address.port for address in url.addresses] == [node.port for node in cluster.nodes[:3]]
    ((_, ca),) = url.extra
    for node in cluster.nodes:
        options = {"username": url.username, "password": url.password}
        with client_of(node, ssl=True, ssl_ca_certs=ca, **options) as client:
            assert client.ping()
    gone = cluster.nodes[0]
    gone.kill()
    cluster.wait_promoted(gone, 10)
    cluster.move_slots(range(6000, 7000), *cluster.nodes[1:3])
    cluster.restore()
    assert cluster.primary_of(6000) is cluster.nodes[1]


def test_an_old_cluster_knows_no_sharded_channels(old_cluster: CacheCluster) -> None:
    for command in ("SSUBSCRIBE x", "SPUBLISH x y", "SUNSUBSCRIBE", "HELLO 3"):
        with pytest.raises(redis.ResponseError, match="unknown command"):
            old_cluster.nodes[0].execute(*command.split())
    assert len(old_cluster.primaries()) == 3
