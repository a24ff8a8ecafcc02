"""Real servers for the suite. A missing one is a visible skip for a user and a failure in CI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from django_sockets.runtime import background_loop, close_shared_hubs, local_hubs
from django_sockets.testing.clusters import SHARDED_COMMANDS, CacheCluster
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer, RedisServer, ServerUnavailable, ValkeyServer
from support import node_packages

# Failed assertions of the public suites explain themselves.
pytest.register_assert_rewrite("django_sockets.testing.contract")

ROOT = Path(__file__).resolve().parent.parent
# A shell starts background jobs with SIGINT ignored, and their children inherit that. The tests of
# Ctrl-C would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRED = "CI" in os.environ or "DJANGO_SOCKETS_REQUIRE_SERVERS" in os.environ


def skip_or_fail(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Skip the test because something is missing, or fail it where nothing may be missing."""
    return skip_or_fail


@pytest.fixture(scope="module", autouse=True)
def no_hub_of_plain_code_outlives_its_module() -> Iterator[None]:
    """Else its connections are counted by tests of other modules on the same servers."""
    yield
    if any(not hub.closed for hub in local_hubs()):
        closing = asyncio.run_coroutine_threadsafe(close_shared_hubs(), background_loop())
        closing.result(60)


_T = TypeVar("_T", bound=contextlib.AbstractContextManager[object])


def running(make: Callable[[], _T]) -> Iterator[_T]:
    with contextlib.ExitStack() as stack:
        try:
            server = make()
            stack.enter_context(server)
        except ServerUnavailable as exc:
            skip_or_fail(str(exc))
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
    """A server for one test, which may kill and stop it."""
    yield from running(ValkeyServer)


@pytest.fixture
def fresh_redis_server() -> Iterator[CacheServer]:
    yield from running(RedisServer)


@pytest.fixture
def fresh_redis_tls_server() -> Iterator[CacheServer]:
    yield from running(lambda: RedisServer(tls=True))


@pytest.fixture
def fresh_unix_server() -> Iterator[CacheServer]:
    yield from running(lambda: ValkeyServer(unix=True))


# Several servers that belong together. A test that breaks one of them calls `restore`.


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[CacheCluster]:
    yield from running(CacheCluster)


@pytest.fixture
def fresh_valkey_cluster() -> Iterator[CacheCluster]:
    """A cluster that no other test has connected to."""
    yield from running(CacheCluster)


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[CacheCluster]:
    yield from running(lambda: CacheCluster(RedisServer))


@pytest.fixture(scope="session")
def redis_tls_cluster() -> Iterator[CacheCluster]:
    yield from running(
        lambda: CacheCluster(RedisServer, tls=True, username="alice", password="p@ss wörd")
    )


@pytest.fixture(scope="session")
def old_cluster() -> Iterator[CacheCluster]:
    """A cluster without sharded channels and without HELLO, as before Redis 7."""
    yield from running(lambda: CacheCluster(replicas=0, without=(*SHARDED_COMMANDS, "HELLO")))


@pytest.fixture(scope="session")
def valkey_sentinels() -> Iterator[SentinelTrio]:
    yield from running(SentinelTrio)


@pytest.fixture
def fresh_valkey_sentinels() -> Iterator[SentinelTrio]:
    yield from running(SentinelTrio)


@pytest.fixture(scope="session")
def redis_sentinels() -> Iterator[SentinelTrio]:
    yield from running(
        lambda: SentinelTrio(
            RedisServer,
            username="alice",
            password="p@ss:w%rd",
            sentinel_username="bob",
            sentinel_password="s/cr:t",
        )
    )


@pytest.fixture(scope="session")
def serverless() -> Iterator[ServerlessEmulation]:
    yield from running(lambda: ServerlessEmulation(username="alice", password="p@ss wörd"))


@pytest.fixture
def fresh_serverless() -> Iterator[ServerlessEmulation]:
    yield from running(lambda: ServerlessEmulation(username="alice", password="p@ss wörd"))


# The same for tests that break them.


@pytest.fixture
def restored_valkey_cluster(valkey_cluster: CacheCluster) -> Iterator[CacheCluster]:
    yield valkey_cluster
    valkey_cluster.restore()


@pytest.fixture
def restored_redis_cluster(redis_cluster: CacheCluster) -> Iterator[CacheCluster]:
    yield redis_cluster
    redis_cluster.restore()


@pytest.fixture
def restored_redis_tls_cluster(redis_tls_cluster: CacheCluster) -> Iterator[CacheCluster]:
    yield redis_tls_cluster
    redis_tls_cluster.restore()


@pytest.fixture
def restored_valkey_sentinels(valkey_sentinels: SentinelTrio) -> Iterator[SentinelTrio]:
    yield valkey_sentinels
    valkey_sentinels.restore()


@pytest.fixture
def restored_redis_sentinels(redis_sentinels: SentinelTrio) -> Iterator[SentinelTrio]:
    yield redis_sentinels
    redis_sentinels.restore()


@pytest.fixture
def restored_serverless(serverless: ServerlessEmulation) -> Iterator[ServerlessEmulation]:
    yield serverless
    serverless.restore()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as users install it."""
    # Built from a copy, because setuptools leaves temporary files next to pyproject.toml, and
    # without isolation, because that needs no network.
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "node_modules", "*.egg-info"
    )
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "tree"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def node(
    missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory
) -> node_packages.Run:
    """Run a command in `client/`, with its development dependencies."""
    # The processes of pytest-xdist share the parent of their temporary folders.
    node_packages.prepare(missing, tmp_path_factory.getbasetemp().parent / "npm.lock")
    return node_packages.run
