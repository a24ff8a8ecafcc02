"""Real servers for the suite. A missing one is a visible skip for a user and a failure in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from django_sockets.testing.servers import (
    CacheServer,
    RedisServer,
    ServerUnavailable,
    ValkeyServer,
)

REQUIRED = "CI" in os.environ or "DJANGO_SOCKETS_REQUIRE_SERVERS" in os.environ


def missing(what: str) -> None:
    """Skip, or fail where nothing may be missing."""
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


def running(make: Callable[[], CacheServer]) -> Iterator[CacheServer]:
    try:
        server = make()
    except ServerUnavailable as exc:
        missing(str(exc))
        raise
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[CacheServer]:
    yield from running(ValkeyServer)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[CacheServer]:
    yield from running(RedisServer)


@pytest.fixture(scope="session")
def redis_tls_server() -> Iterator[CacheServer]:
    yield from running(lambda: RedisServer(tls=True))


@pytest.fixture(scope="session")
def redis_unix_server() -> Iterator[CacheServer]:
    yield from running(lambda: ValkeyServer(unix=True))


@pytest.fixture
def fresh_valkey_server() -> Iterator[CacheServer]:
    """A server for one test, to be killed and stopped at will."""
    yield from running(ValkeyServer)
