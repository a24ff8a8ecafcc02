"""The contract on every broker that comes with the library."""

from __future__ import annotations

from typing import ClassVar

import pytest

from django_sockets.testing.contract import BrokerContract
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
