"""Presence while servers fail, fail over, forget scripts, fill up, or give slots away."""

from __future__ import annotations

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract import (
    CacheControl,
    ClusterControl,
    PresenceFaultContract,
    SentinelControl,
)
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer


class TestValkey(PresenceFaultContract):
    @pytest.fixture
    def server(self, fresh_valkey_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_valkey_server)


class TestSentinels(PresenceFaultContract):
    @pytest.fixture
    def server(self, restored_valkey_sentinels: SentinelTrio) -> SentinelControl:
        return SentinelControl(restored_valkey_sentinels)


class TestCluster(PresenceFaultContract):
    @pytest.fixture
    def server(self, restored_valkey_cluster: CacheCluster) -> ClusterControl:
        return ClusterControl(restored_valkey_cluster)
