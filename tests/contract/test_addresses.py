"""Connects to names with several addresses, one of them silent, refusing or unreachable."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_sockets import open_hub
from django_sockets.backends.client.connector import Connector
from django_sockets.errors import AuthError, ConnectError
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerURL

NAME = "localhost"
"""The name that the tests give several addresses; a certificate of the test kit is for it."""
OTHER = "127.0.0.2"
NOWHERE = "2001:db8::1"
"""For documentation: no machine has it."""
DEADLINE_SECONDS = 5.0
WELL_WITHIN_SECONDS = 2.5


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of `NAME`; empty for no change."""
    chosen: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != NAME or not chosen:
            return real(host, port, *args, **kwargs)
        return [entry for address in chosen for entry in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return chosen


@contextlib.contextmanager
def silent(port: int) -> Iterator[None]:
    """Accepts connections at another address and sends nothing, like a frozen server."""
    with socket.create_server((OTHER, port), backlog=100):
        yield


@contextlib.contextmanager
def blackhole(port: int) -> Iterator[None]:
    """Does not even answer a SYN: the queue of connections to accept is full."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind((OTHER, port))
        listener.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((OTHER, port))
        yield


@contextlib.contextmanager
def refusing(_: int) -> Iterator[None]:
    """No server listens there."""
    yield


def ipv6_nowhere(_: int) -> contextlib.AbstractContextManager[None]:
    """An unreachable IPv6 address first."""
    return contextlib.nullcontext()


TROUBLES: list[tuple[Callable[[int], contextlib.AbstractContextManager[None]], list[str]]] = [
    (silent, [OTHER, HOST]),
    (blackhole, [OTHER, HOST]),
    (refusing, [OTHER, HOST]),
    (ipv6_nowhere, [NOWHERE, HOST]),
    (silent, [NOWHERE, "::1", OTHER, HOST]),
]


@pytest.mark.parametrize(("trouble", "order"), TROUBLES)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_one_address_that_does_not_answer_costs_little_time(
    addresses: list[str],
    valkey_server: CacheServer,
    redis_tls_server: CacheServer,
    scheme: str,
    trouble: Callable[[int], contextlib.AbstractContextManager[None]],
    order: list[str],
) -> None:
    server = valkey_server if scheme == "redis" else redis_tls_server
    text = f"{scheme}://{NAME}:{server.port}?connect_timeout_seconds={DEADLINE_SECONDS}"
    if scheme == "rediss":
        text += f"&tls_ca_file={server.tls_ca_file}"
    url = BrokerURL.parse(text)
    connector = Connector(url)
    addresses[:] = order
    with trouble(server.port):
        began = time.monotonic()
        link = await connector.open(url.addresses[0], need_primary=True)
        assert time.monotonic() - began < WELL_WITHIN_SECONDS
    assert link.identity.role == "master"
    assert link.identity.peer == HOST
    link.abort()


async def test_sentinels_and_the_primary_by_a_name_with_several_addresses(
    addresses: list[str], valkey_sentinels: SentinelTrio
) -> None:
    addresses[:] = [OTHER, HOST]
    sentinel = valkey_sentinels.sentinels[0]
    path = valkey_sentinels.url.partition("://")[2].partition("/")[2]
    with silent(sentinel.port):
        took = await heard_after(f"redis+sentinel://{NAME}:{sentinel.port}/{path}")
    assert took < WELL_WITHIN_SECONDS


async def test_seeds_of_a_cluster_by_a_name_with_several_addresses(
    addresses: list[str], valkey_cluster: CacheCluster
) -> None:
    addresses[:] = [OTHER, HOST]
    node = valkey_cluster.nodes[0]
    with silent(node.port):
        took = await heard_after(f"redis+cluster://{NAME}:{node.port}")
    assert took < WELL_WITHIN_SECONDS


@pytest.fixture(scope="module")
def named_cluster(valkey_cluster: CacheCluster) -> Iterator[CacheCluster]:
    """A cluster whose nodes are announced by a name with several addresses."""
    for node in valkey_cluster.nodes:
        node.execute("CONFIG", "SET", "cluster-announce-hostname", NAME)
        node.execute("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
    yield valkey_cluster
    for node in valkey_cluster.nodes:
        node.execute("CONFIG", "SET", "cluster-announce-hostname", "")
        node.execute("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


async def test_nodes_of_a_cluster_by_a_name_with_several_addresses(
    addresses: list[str], named_cluster: CacheCluster
) -> None:
    with contextlib.ExitStack() as stack:
        for node in named_cluster.nodes:
            stack.enter_context(silent(node.port))
        addresses[:] = [OTHER, HOST]
        took = await heard_after(f"redis+cluster://{HOST}:{named_cluster.nodes[0].port}")
    assert took < WELL_WITHIN_SECONDS


async def heard_after(text: str) -> float:
    """Seconds until a message of a new hub was received."""
    url = with_options(text, connect_timeout_seconds=DEADLINE_SECONDS)
    began = time.monotonic()
    async with open_hub(url) as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"x")
        await heard.until_payload(b"x")
        return time.monotonic() - began


async def test_when_no_address_answers_the_error_comes_in_time_and_names_the_place(
    addresses: list[str], valkey_server: CacheServer
) -> None:
    addresses[:] = [OTHER, "127.0.0.3"]
    url = BrokerURL.parse(f"redis://{NAME}:{valkey_server.port}?connect_timeout_seconds=0.5")
    with silent(valkey_server.port):
        began = time.monotonic()
        with pytest.raises(ConnectError, match=rf"{NAME}:{valkey_server.port}: no answer in 0\.5"):
            await Connector(url).open(url.addresses[0])
        assert time.monotonic() - began < WELL_WITHIN_SECONDS
    with pytest.raises(ConnectError, match=rf"{NAME}:{valkey_server.port}: Connection refused"):
        await Connector(url).open(url.addresses[0])


async def test_wrong_credentials_at_one_address_are_not_tried_at_the_others(
    addresses: list[str], valkey_server: CacheServer
) -> None:
    addresses[:] = [HOST, OTHER]
    asked = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    async with await asyncio.start_server(serve, OTHER, valkey_server.port):
        url = BrokerURL.parse(f"redis://nobody:wrong@{NAME}:{valkey_server.port}")
        with pytest.raises(AuthError):
            await Connector(url).open(url.addresses[0])
    assert not asked.is_set()


async def test_nothing_is_left_of_the_attempts_that_lost(
    addresses: list[str], valkey_server: CacheServer
) -> None:
    """Otherwise each would keep a connection to the server."""
    gone = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                pass
        gone.set()
        writer.close()

    addresses[:] = [OTHER, HOST]
    async with await asyncio.start_server(late, OTHER, valkey_server.port):
        url = BrokerURL.parse(f"redis://{NAME}:{valkey_server.port}")
        link = await Connector(url).open(url.addresses[0])
        await asyncio.wait_for(gone.wait(), 5)
        link.abort()
