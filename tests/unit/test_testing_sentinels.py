"""The sentinel set of the test kit promotes a replica, and is restored for the next test."""

from __future__ import annotations

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerURL


@pytest.fixture
def trio(restored_valkey_sentinels: SentinelTrio) -> SentinelTrio:
    return restored_valkey_sentinels


def is_whole(trio: SentinelTrio) -> bool:
    primary = trio.primary()
    return primary.execute("ROLE")[0] == "master" and set(trio.replicas()) == {
        node for node in trio.nodes if node is not primary
    }


def test_a_primary_that_is_gone_is_replaced(trio: SentinelTrio) -> None:
    for fault in (CacheServer.kill, CacheServer.pause):
        assert is_whole(trio)
        gone = trio.primary()
        fault(gone)
        promoted = trio.wait_promoted(gone)
        assert promoted is trio.primary() is not gone
        assert promoted not in trio.replicas()
        trio.restore()
        assert is_whole(trio)
        assert trio.primary() is promoted


def test_an_administrator_and_an_impostor(trio: SentinelTrio) -> None:
    old = trio.primary()
    assert trio.failover() is trio.primary() is not old
    trio.restore()
    old.kill()
    with trio.impostor_at(old, password="other") as impostor:
        assert impostor.url.endswith(f"@127.0.0.1:{old.port}")
        assert impostor.execute("ROLE")[0] == "master"
    trio.primary().execute("REPLICAOF", "127.0.0.1", "1")
    trio.restore()
    assert is_whole(trio)


def test_all_of_them_come_back_with_the_same_url(trio: SentinelTrio) -> None:
    url, primary = trio.url, trio.primary()
    trio.kill_all()
    with pytest.raises(LookupError):
        trio.primary()
    trio.restore()
    assert trio.url == url
    assert trio.primary() is primary
    assert is_whole(trio)


def test_their_own_connections_and_channels_are_not_counted(trio: SentinelTrio) -> None:
    before = trio.connections()
    with redis.Redis(port=trio.primary().port) as client, client.pubsub() as heard:
        heard.subscribe("p:{room}", "private")
        assert heard.get_message(timeout=5) is not None
        assert (trio.channels(), trio.connections()) == (1, before + 1)
    assert before == 0


def test_both_kinds_of_credentials_are_asked_for_and_stand_in_the_url(
    redis_sentinels: SentinelTrio,
) -> None:
    url = BrokerURL.parse(redis_sentinels.url)
    assert (url.scheme, url.path) == ("redis+sentinel", "main/0")
    assert (url.username, url.password) == ("alice", "p@ss:w%rd")
    assert dict(url.extra) == {"sentinel_username": "bob", "sentinel_password": "s/cr:t"}
    assert [address.port for address in url.addresses] == [
        sentinel.port for sentinel in redis_sentinels.sentinels
    ]
    for server in (*redis_sentinels.nodes, *redis_sentinels.sentinels):
        stranger = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.execute_command("ROLE")
    gone = redis_sentinels.primary()
    gone.kill()
    redis_sentinels.wait_promoted(gone)
    redis_sentinels.sentinels[0].kill()
    redis_sentinels.restore()
    assert is_whole(redis_sentinels)
