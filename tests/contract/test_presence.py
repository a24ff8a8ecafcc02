"""The contract of presence on every broker that comes with the library."""

from __future__ import annotations

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import LeaseContract, PresenceContract
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer


class TestMemory(PresenceContract, LeaseContract):
    url = "memory://presence"


class TestFakeredis(PresenceContract, LeaseContract):
    url = "fakeredis://presence"


class TestValkey(PresenceContract, LeaseContract):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return valkey_server.url


class TestRedis(PresenceContract, LeaseContract):
    @pytest.fixture
    def broker_url(self, redis_server: CacheServer) -> str:
        return redis_server.url


class TestValkeySentinels(PresenceContract):
    @pytest.fixture
    def broker_url(self, valkey_sentinels: SentinelTrio) -> str:
        return valkey_sentinels.url


class TestValkeyCluster(PresenceContract, LeaseContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return valkey_cluster.url


class TestServerless(PresenceContract, LeaseContract):
    @pytest.fixture
    def broker_url(self, serverless: ServerlessEmulation) -> str:
        return serverless.url


class TestThreeHosts(PresenceContract, LeaseContract):
    @pytest.fixture
    def broker_url(
        self, valkey_server: CacheServer, redis_server: CacheServer, redis_unix_server: CacheServer
    ) -> str:
        return f"{valkey_server.url} {redis_server.url} {redis_unix_server.url}"


class TestGlideCluster(PresenceContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return with_options(valkey_cluster.url, driver="glide")


class TestWithHistory(PresenceContract):
    """Kept messages share the connections and the reads with presence."""

    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return with_options(valkey_server.url, history_messages=10, history_seconds=60)
