"""The contract under faults, on servers of the test's own or servers that the test restores.

All of it on Valkey and on every topology; of the others, what their way of connecting could break.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import ClassVar

import pytest

from django_sockets.backends.fakeredis import fake_server
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import (
    CacheControl,
    ClusterControl,
    CrashContract,
    HostsControl,
    NetworkContract,
    SentinelControl,
    ServerContract,
    ServerlessControl,
    TroubleContract,
)
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer, ValkeyServer


class TestValkey(ServerContract, NetworkContract):
    @pytest.fixture
    def server(self, fresh_valkey_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_valkey_server)


class TestRedis(TroubleContract):
    @pytest.fixture
    def server(self, fresh_redis_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_redis_server)


class TestRedisTLS(CrashContract, NetworkContract):
    waivers: ClassVar = {
        "test_a_large_message_on_a_slow_link_is_not_taken_for_a_dead_peer": (
            "with TLS, redis 7.0 cuts readers it has much to write to (SSL 'bad length'): a gap"
        )
    }

    @pytest.fixture
    def server(self, fresh_redis_tls_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_redis_tls_server)


class TestUnixSocket(CrashContract):
    @pytest.fixture
    def server(self, fresh_unix_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_unix_server)


class FakeControl:
    """A fake server has no process. It is either up or down."""

    nodes = 1

    def __init__(self) -> None:
        name = uuid.uuid4().hex
        self.url = f"fakeredis://{name}"
        self._server = fake_server(name)

    async def kill(self) -> None:
        self._server.connected = False

    async def start(self) -> None:
        self._server.connected = True

    async def pause(self) -> None:
        """It is the same as `kill`, because the fake server does nothing by itself."""

    async def channels(self) -> int:
        subscribers = self._server.subscribers
        return sum(b":{" in name for name in subscribers if subscribers[name])

    async def connections(self) -> int:
        return len(self._server.sockets)


class TestFakeredis(CrashContract):
    waivers: ClassVar = {
        "test_a_wrong_password_is_named_as_such_and_never_shown": "the fake asks for no password",
        "test_a_reader_that_only_listens_comes_back_too": "an absence of no length goes unnoticed",
    }

    @pytest.fixture
    def server(self) -> FakeControl:
        return FakeControl()


class TestCluster(ServerContract):
    """All nodes fail together. `test_cluster_faults` lets single nodes fail."""

    @pytest.fixture
    def server(self, restored_valkey_cluster: CacheCluster) -> ClusterControl:
        return ClusterControl(restored_valkey_cluster)


class TestSentinels(ServerContract):
    waivers: ClassVar = {
        "test_a_demoted_server_is_noticed": (
            "the gap comes with the next primary: see test_sentinel_faults"
        )
    }

    @pytest.fixture
    def server(self, restored_valkey_sentinels: SentinelTrio) -> SentinelControl:
        return SentinelControl(restored_valkey_sentinels)


class TestServerless(ServerContract, NetworkContract):
    waivers: ClassVar = {"test_a_demoted_server_is_noticed": "one node has nobody to follow"}

    @pytest.fixture
    def server(self, restored_serverless: ServerlessEmulation) -> ServerlessControl:
        return ServerlessControl(restored_serverless)


class TestThreeHosts(ServerContract):
    @pytest.fixture
    def server(self) -> Iterator[HostsControl]:
        with contextlib.ExitStack() as stack:
            yield HostsControl([stack.enter_context(ValkeyServer()) for _ in range(3)])


SILENT = "valkey-glide notices a silent server when a publish is overdue, not before"


class TestGlide(ServerContract, NetworkContract):
    waivers: ClassVar = {"test_a_publisher_on_a_silent_link_fails_and_goes_on": SILENT}

    @pytest.fixture
    def server(self, fresh_valkey_server: CacheServer) -> CacheControl:
        control = CacheControl(fresh_valkey_server)
        control.url = with_options(control.url, driver="glide")
        return control


class TestGlideCluster(ServerContract):
    waivers: ClassVar = {
        "test_many_callers_and_subscribers_share_a_few_connections": (
            "valkey-glide has two connections of its own to each node"
        )
    }

    @pytest.fixture
    def server(self, restored_valkey_cluster: CacheCluster) -> ClusterControl:
        control = ClusterControl(restored_valkey_cluster)
        control.url = with_options(control.url, driver="glide")
        return control
