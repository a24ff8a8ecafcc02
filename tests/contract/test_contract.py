"""The contract on every broker that comes with the library."""

from __future__ import annotations

from typing import ClassVar

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import BrokerContract
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer

ONE_PROCESS = {
    "test_a_forked_child_publishes_while_its_parent_goes_on_hearing": (
        "the bus lives inside one process"
    )
}


class TestMemory(BrokerContract):
    url = "memory://contract"
    waivers = ONE_PROCESS


class TestFakeredis(BrokerContract):
    url = "fakeredis://contract"
    waivers = ONE_PROCESS


class TestValkey(BrokerContract):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return valkey_server.url


class TestRedis(BrokerContract):
    @pytest.fixture
    def broker_url(self, redis_server: CacheServer) -> str:
        return redis_server.url


class TestRedisTLS(BrokerContract):
    waivers: ClassVar = {
        "test_each_publisher_is_heard_in_the_order_of_its_calls": (
            "with TLS, redis 7.0 cuts readers it has much to write to (SSL 'bad length'): a gap"
        )
    }

    @pytest.fixture
    def broker_url(self, redis_tls_server: CacheServer) -> str:
        return redis_tls_server.url


class TestUnixSocket(BrokerContract):
    @pytest.fixture
    def broker_url(self, redis_unix_server: CacheServer) -> str:
        return redis_unix_server.url


class TestValkeyCluster(BrokerContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return valkey_cluster.url


class TestRedisCluster(BrokerContract):
    @pytest.fixture
    def broker_url(self, redis_cluster: CacheCluster) -> str:
        return redis_cluster.url


class TestTLSCluster(BrokerContract):
    @pytest.fixture
    def broker_url(self, redis_tls_cluster: CacheCluster) -> str:
        return redis_tls_cluster.url


class TestClusterWithoutShardedPubSub(BrokerContract):
    """As before Redis 7.0: no SSUBSCRIBE, and no HELLO either."""

    @pytest.fixture
    def broker_url(self, old_cluster: CacheCluster) -> str:
        return old_cluster.url


class TestValkeySentinels(BrokerContract):
    @pytest.fixture
    def broker_url(self, valkey_sentinels: SentinelTrio) -> str:
        return valkey_sentinels.url


class TestRedisSentinels(BrokerContract):
    """With other credentials for the sentinels than for the data."""

    @pytest.fixture
    def broker_url(self, redis_sentinels: SentinelTrio) -> str:
        return redis_sentinels.url


class TestServerless(BrokerContract):
    @pytest.fixture
    def broker_url(self, serverless: ServerlessEmulation) -> str:
        return serverless.url


class TestThreeHosts(BrokerContract):
    """Independent of each other and of different kinds."""

    @pytest.fixture
    def broker_url(
        self, valkey_server: CacheServer, redis_server: CacheServer, redis_tls_server: CacheServer
    ) -> str:
        return f"{valkey_server.url} {redis_server.url} {redis_tls_server.url}"


class TestGlide(BrokerContract):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return with_options(valkey_server.url, driver="glide")


class TestGlideCluster(BrokerContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return with_options(valkey_cluster.url, driver="glide")


class TestGlideServerless(BrokerContract):
    @pytest.fixture
    def broker_url(self, serverless: ServerlessEmulation) -> str:
        return with_options(serverless.url, driver="glide")
