"""The contract under faults, on servers that each test has for itself.

All of it on Valkey; of the others, what their way of connecting could break.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

import pytest

from django_sockets.backends.fakeredis import fake_server
from django_sockets.testing.contract import (
    CacheControl,
    CrashContract,
    NetworkContract,
    ServerContract,
    TroubleContract,
)
from django_sockets.testing.servers import CacheServer


class TestValkey(ServerContract, NetworkContract):
    @pytest.fixture
    def server(self, fresh_valkey_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_valkey_server)


class TestRedis(TroubleContract):
    @pytest.fixture
    def server(self, fresh_redis_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_redis_server)


class TestRedisTLS(CrashContract, NetworkContract):
    @pytest.fixture
    def server(self, fresh_redis_tls_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_redis_tls_server)


class TestUnixSocket(CrashContract):
    @pytest.fixture
    def server(self, fresh_unix_server: CacheServer) -> CacheControl:
        return CacheControl(fresh_unix_server)


class FakeControl:
    """A fake server has no process; it can be there or not."""

    def __init__(self) -> None:
        name = uuid.uuid4().hex
        self.url = f"fakeredis://{name}"
        self._server = fake_server(name)

    async def kill(self) -> None:
        self._server.connected = False

    async def start(self) -> None:
        self._server.connected = True

    async def pause(self) -> None:
        """Nobody can tell the difference: it does nothing unless it is asked."""

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
