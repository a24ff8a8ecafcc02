"""The contract of the history on every broker that comes with the library."""

from __future__ import annotations

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import BrokerContract, HistoryContract, QueueContract
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer


class TestMemory(HistoryContract):
    url = "memory://history"


class TestFakeredis(HistoryContract):
    url = "fakeredis://history"


class TestValkey(HistoryContract):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return valkey_server.url


class TestRedisTLS(HistoryContract):
    @pytest.fixture
    def broker_url(self, redis_tls_server: CacheServer) -> str:
        return redis_tls_server.url


class TestUnixSocket(HistoryContract):
    @pytest.fixture
    def broker_url(self, redis_unix_server: CacheServer) -> str:
        return redis_unix_server.url


class TestValkeySentinels(HistoryContract):
    @pytest.fixture
    def broker_url(self, valkey_sentinels: SentinelTrio) -> str:
        return valkey_sentinels.url


class TestValkeyCluster(HistoryContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return valkey_cluster.url


class TestServerless(HistoryContract):
    @pytest.fixture
    def broker_url(self, serverless: ServerlessEmulation) -> str:
        return serverless.url


class TestThreeHosts(HistoryContract):
    @pytest.fixture
    def broker_url(
        self, valkey_server: CacheServer, redis_server: CacheServer, redis_tls_server: CacheServer
    ) -> str:
        return f"{valkey_server.url} {redis_server.url} {redis_tls_server.url}"


class TestGlide(HistoryContract):
    @pytest.fixture
    def broker_url(self, valkey_server: CacheServer) -> str:
        return with_options(valkey_server.url, driver="glide")


class TestGlideCluster(HistoryContract):
    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return with_options(valkey_cluster.url, driver="glide")


class TestPromises(BrokerContract):
    """All promises of a broker also hold with history rules, where scripts publish."""

    waivers = dict.fromkeys(
        (
            "test_a_lost_message_is_signalled_before_the_next_one",
            "test_a_lost_link_is_signalled_in_its_place_with_its_channels",
            "test_a_repeated_or_late_message_is_never_delivered",
        ),
        "a hub that fails to heal signals one gap of a channel, and it covers later messages, too",
    )

    @pytest.fixture
    def broker_url(self, valkey_cluster: CacheCluster) -> str:
        return with_options(valkey_cluster.url, history_messages=100, history_seconds=60)


RULE = "history_messages=10&history_seconds=60"


class TestQueuesOfMemory(QueueContract):
    """Queues and kept messages share one bus."""

    url = f"memory://queues?{RULE}"


class TestQueuesOfFakeredis(QueueContract):
    """With history, a connection of its own runs all scripts, those of queues too."""

    url = f"fakeredis://queues?{RULE}"


class TestQueuesOfThreeHosts(QueueContract):
    @pytest.fixture
    def broker_url(self) -> str:
        names = ("one", "two", "three")
        return " ".join(f"fakeredis://queues-{name}?{RULE}" for name in names)
