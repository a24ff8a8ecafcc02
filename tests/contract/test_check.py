"""`check` reports the risks of every topology before an application is deployed."""

from __future__ import annotations

import re

import pytest

from django_sockets.check import Findings, check
from django_sockets.conf import load_config
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options, with_password
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer, ValkeyServer, free_port


async def findings(url: str) -> Findings:
    return await check(load_config(url), "argument")


def slots(found: Findings) -> list[int]:
    return [
        int(found[1]) for what in found.nodes.values() if (found := re.search(r"(\d+) slots", what))
    ]


async def test_a_cluster(valkey_cluster: CacheCluster) -> None:
    found = await findings(valkey_cluster.url)
    assert (found.ok, found.problem, found.warnings) == (True, None, [])
    assert found.topology == ("cluster of 3 primaries and 3 replicas, 16384 of 16384 slots covered")
    assert found.server is not None
    assert found.server.startswith("valkey 9")
    assert len(found.nodes) == 3
    for what in found.nodes.values():
        assert re.fullmatch(r"primary, valkey 9\S+, \d+\.\d\d ms, \d+ slots", what)
    assert sum(slots(found)) == 16384
    assert found.features["sharded pub/sub"] == "yes"
    assert found.features["protocol"] == "RESP3"
    assert found.features["auth"] == "none"
    assert found.limits["output buffer for a subscriber"] == (
        "33554432 bytes, 8388608 bytes for 60 s"
    )
    assert found.round_trip_ms is not None


async def test_a_cluster_that_costs_and_that_no_replica_saves(old_cluster: CacheCluster) -> None:
    found = await findings(old_cluster.url)
    assert found.ok
    assert found.features["sharded pub/sub"] == "no"
    assert found.features["protocol"] == "RESP2"
    assert sum("has no replica" in warning for warning in found.warnings) == 3
    assert sum("no sharded pub/sub" in warning for warning in found.warnings) == 1


async def test_a_tls_cluster_with_credentials(redis_tls_cluster: CacheCluster) -> None:
    found = await findings(redis_tls_cluster.url)
    assert found.ok
    assert re.fullmatch(
        r"TLSv1\.3, certificate verified, valid until \d{4}-\d\d-\d\d", found.features["tls"]
    )
    assert found.features["auth"] == "password of user 'alice'"
    found = await findings(with_options(redis_tls_cluster.url, tls_verify="none"))
    assert found.features["tls"] == "TLSv1.3, certificate not verified"
    assert any("remove tls_verify=none" in warning for warning in found.warnings)


async def test_one_node_of_a_cluster_is_pointed_to_the_cluster(
    valkey_cluster: CacheCluster,
) -> None:
    found = await findings(valkey_cluster.nodes[0].url)
    assert any("write redis+cluster://" in warning for warning in found.warnings)


async def test_one_server_is_no_cluster(valkey_server: CacheServer) -> None:
    found = await findings(valkey_server.url.replace("redis://", "redis+cluster://"))
    assert not found.ok
    assert found.problem is not None
    assert found.problem.endswith("is no cluster: write redis://")


async def test_sentinels(redis_sentinels: SentinelTrio) -> None:
    found = await findings(redis_sentinels.url)
    assert (found.ok, found.problem, found.warnings) == (True, None, [])
    assert found.topology == ("primary of 'main' with 2 replicas, named by 3 of 3 sentinels")
    assert list(found.nodes) == [f"127.0.0.1:{redis_sentinels.primary().port}"]


async def test_sentinels_that_do_not_answer_are_counted(valkey_sentinels: SentinelTrio) -> None:
    sentinels = [*valkey_sentinels.sentinels[:1]]
    url = f"redis+sentinel://127.0.0.1:{sentinels[0].port},127.0.0.1:{free_port()}/main"
    found = await findings(with_options(url, connect_timeout_seconds=1))
    assert found.ok
    assert any("1 of 2 sentinels do not answer" in warning for warning in found.warnings)
    assert any("fewer than three" in warning for warning in found.warnings)


async def test_a_serverless_cache(serverless: ServerlessEmulation) -> None:
    found = await findings(serverless.url)
    assert (found.ok, found.problem) == (True, None)
    assert found.topology == "one serverless endpoint"
    assert found.features["tls"].startswith("TLSv1.3, certificate verified")
    # CONFIG is refused there, and that is no problem.
    assert "output buffer for a subscriber" not in found.limits


async def test_several_hosts_one_of_them_down(valkey_server: CacheServer) -> None:
    dead = f"redis://127.0.0.1:{free_port()}"
    found = await findings(f"{valkey_server.url} {dead}")
    assert not found.ok
    assert found.topology == "2 independent hosts"
    assert found.problem is not None
    assert dead in found.problem
    assert valkey_server.url not in found.problem


RULE = {"history_messages": 5, "history_seconds": 60}


@pytest.mark.parametrize(
    "fixture", ["valkey_server", "redis_server", "valkey_cluster", "serverless", "valkey_sentinels"]
)
async def test_a_history_that_works(fixture: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(fixture).url
    assert "history" not in (await findings(url)).features
    found = await findings(with_options(url, **RULE))
    assert (found.ok, found.warnings) == (True, [])
    assert found.features["history"] == "works"
    assert found.features["maxmemory-policy"] in ("noeviction", "unknown")


@pytest.mark.parametrize("url", ["memory://check", "fakeredis://check"])
async def test_a_history_inside_the_process(url: str) -> None:
    found = await findings(with_options(url, **RULE))
    assert found.ok
    assert found.features["history"].startswith("works")


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (["+info"], "evalsha"),
        (["+info", "+evalsha", "+script|load"], "hmget"),
        (["+info", "+evalsha", "+script|load", "+hset", "+hmget", "+hdel", "+del"], "pexpire"),
    ],
)
async def test_a_user_who_may_not_keep_messages(
    valkey_server: CacheServer, rules: list[str], problem: str
) -> None:
    base = ["on", ">s3cret", "~*", "&*", "-@all", "+@connection", "+@pubsub", "+role"]
    valkey_server.execute("ACL", "SETUSER", "check", "reset", *base, *rules)
    try:
        url = with_password(valkey_server.url, "check", "s3cret")
        found = await findings(with_options(url, **RULE))
    finally:
        valkey_server.execute("ACL", "DELUSER", "check")
    assert not found.ok
    assert found.problem is not None
    assert "did not keep a message" in found.problem
    assert problem in found.problem.lower()
    assert "docs/history.md" in found.problem


async def test_a_server_that_hides_the_id_of_its_data(valkey_server: CacheServer) -> None:
    valkey_server.execute("ACL", "SETUSER", "check", "reset", "on", ">s3cret", "~*", "&*", "+@all")
    valkey_server.execute("ACL", "SETUSER", "check", "-info")
    try:
        url = with_password(valkey_server.url, "check", "s3cret")
        found = await findings(with_options(url, **RULE))
    finally:
        valkey_server.execute("ACL", "DELUSER", "check")
    assert found.ok
    assert found.features["history"] == "works, without the id of the data set"
    assert found.features["maxmemory-policy"] == "unknown"
    (warning,) = found.warnings
    assert "hides its master_replid" in warning


async def test_what_happens_when_the_memory_is_full() -> None:
    texts = {"allkeys-lru": "evicted", "volatile-lru": "", "noeviction": "published and not kept"}
    with ValkeyServer(config={"maxmemory": "100mb"}) as server:
        for policy, text in texts.items():
            server.execute("CONFIG", "SET", "maxmemory-policy", policy)
            found = await findings(with_options(server.url, **RULE))
            assert found.features["maxmemory-policy"] == policy
            assert [text in warning for warning in found.warnings] == ([True] if text else [])
            assert not (await findings(server.url)).warnings
        server.execute("CONFIG", "SET", "maxmemory", "1")
        full = await findings(with_options(server.url, **RULE))
        assert (full.ok, full.features["history"]) == (True, "not kept")
        assert any("no memory for the history" in warning for warning in full.warnings)


async def test_a_memory_that_is_full_but_for_a_small_message() -> None:
    """One kept message does not show that the history works."""
    with ValkeyServer(config={"maxmemory-policy": "noeviction"}) as server:
        assert server.execute("SET", "filler", "x" * 40_000_000) == "OK"
        facts = dict(
            line.split(":", 1)
            for line in server.execute("INFO", "memory").splitlines()
            if ":" in line
        )
        used = int(facts["used_memory"])
        server.execute("CONFIG", "SET", "maxmemory", used * 2)
        roomy = await findings(with_options(server.url, **RULE))
        assert roomy.features["history"] == "works"
        assert "memory" not in roomy.features
        # The check takes far less than the 800 kB that are left.
        server.execute("CONFIG", "SET", "maxmemory", used + used // 50)
        full = await findings(with_options(server.url, **RULE))
        assert full.features["history"] == "works now, but the memory is nearly full"
        for found in (full, await findings(server.url)):
            assert found.features["memory"] == "nearly full"
            assert any("writes fail with OOM" in warning for warning in found.warnings)
        # A cache that evicts is always full.
        server.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "memory" not in (await findings(server.url)).features


async def test_a_server_that_is_almost_full() -> None:
    with ValkeyServer(config={"maxclients": "4"}) as server:
        found = await findings(server.url)
        assert not any("maxclients" in warning for warning in found.warnings)
        server.execute("CONFIG", "SET", "maxclients", "1")
        found = await findings(server.url)
    assert any("1 of at most 1 clients" in warning for warning in found.warnings)


@pytest.mark.parametrize("limit", ["pubsub 1mb 0 0", "pubsub 0 0 0"])
async def test_a_buffer_that_is_too_small(limit: str) -> None:
    with ValkeyServer(config={"client-output-buffer-limit": limit}) as server:
        found = await findings(server.url)
    small = any("a payload over 1048576 bytes" in warning for warning in found.warnings)
    assert small == limit.startswith("pubsub 1mb")
