"""Connections are replaced before they are too old, under load and without a gap."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import to_thread
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from django_sockets import Hub, Message, open_hub
from django_sockets.delivery.events import MISSED
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.contract.faults import eventually, quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.serverless import ServerlessEmulation
from django_sockets.testing.servers import CacheServer, ServerUnavailable
from support.faults.cluster_faults import connections_received
from support.faults.harness import Load, under_load

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

MAX_AGE_SECONDS = 2.0
LOOKS_SECONDS = 0.25
IN_USE = 3
"""The harness has a hub that listens and two that publish, each with one connection in use."""


def clients(nodes: Sequence[CacheServer]) -> dict[str, int]:
    """The users' connections, id -> age in whole seconds, rounded down.

    All of them count, so that the tests need servers without connections of other tests.
    """
    ages = {}
    for number, node in enumerate(nodes):
        for line in node.execute("CLIENT", "LIST").splitlines():
            fields = dict(word.partition("=")[::2] for word in line.split())
            ours = fields["flags"] in ("N", "P") and "client|list" not in line
            if ours and fields["name"] != "django_sockets.testing":
                ages[f"{number}:{fields['id']}"] = int(fields["age"])
    return ages


async def replaced(load: Load, nodes: Sequence[CacheServer], seconds: float) -> None:
    """Look at the servers' clients for a while: all are replaced, none gets too old, none is lost.

    Raises:
        AssertionError: not so.
    """
    began = load.moment("the first look")
    first = await to_thread(clients, nodes)
    assert len(first) >= IN_USE
    seen: dict[str, float] = {}
    while began.seconds < seconds:
        now = await to_thread(clients, nodes)
        for client, age in now.items():
            known = began.seconds - seen.setdefault(client, began.seconds)
            # The server counts the beginnings of seconds.
            assert known < MAX_AGE_SECONDS, f"a connection of {known:.2f} s is still there"
            assert age <= MAX_AGE_SECONDS, f"a connection of {age} s is still there"
        await asyncio.sleep(LOOKS_SECONDS)
    print(
        f"{len(first)} connections at first, {len(seen)} within {seconds:g} s, {len(now)} at last"
    )
    assert not first.keys() & now.keys(), "connections that were not replaced"
    assert len(now) <= len(first) + IN_USE
    unharmed(load)


def unharmed(load: Load) -> None:
    """Check that there was no gap, failed publish or warning. Raises AssertionError."""
    load.may_replay = True  # Both connections receive messages while one takes over from the other.
    assert load.gaps() == []
    assert load.traffic.failures == []
    assert load.watch.records == []


async def test_connections_are_replaced_before_their_greatest_age(
    fresh_valkey_server: CacheServer,
) -> None:
    url = quick(fresh_valkey_server.url, connection_max_age_seconds=MAX_AGE_SECONDS)
    async with under_load(url) as load:
        await replaced(load, [fresh_valkey_server], 3)


async def test_a_service_that_ends_old_connections_never_gets_to_do_it(
    missing: Callable[[str], NoReturn],
) -> None:
    with contextlib.ExitStack() as stack:
        try:
            cache = ServerlessEmulation(max_connection_age_seconds=MAX_AGE_SECONDS + 1)
            await to_thread(stack.enter_context, cache)
        except ServerUnavailable as exc:
            missing(str(exc))
        url = quick(cache.url, connection_max_age_seconds=MAX_AGE_SECONDS)
        async with under_load(url) as load:
            await asyncio.sleep(3)
            unharmed(load)


async def test_every_node_of_a_cluster(fresh_valkey_cluster: CacheCluster) -> None:
    url = quick(fresh_valkey_cluster.url, connection_max_age_seconds=MAX_AGE_SECONDS)
    nodes = await to_thread(fresh_valkey_cluster.primaries)
    async with under_load(url) as load:
        await replaced(load, nodes, 2.5)


@pytest.fixture
def password_file(tmp_path: Path, valkey_server: CacheServer) -> Iterator[Path]:
    """Holds user name and password of a user that the server has."""
    path = tmp_path / "secret"
    path.write_text("rotating\nfirst")
    rules = ("on", ">first", "~*", "&*", "+@all")
    valkey_server.execute("ACL", "SETUSER", "rotating", *rules)
    yield path
    valkey_server.execute("ACL", "DELUSER", "rotating")


async def test_a_password_that_is_exchanged_in_a_file_and_on_the_server(
    valkey_server: CacheServer, password_file: Path
) -> None:
    age = 1.2
    options = {"auth": "file", "auth_file": password_file, "connection_max_age_seconds": age}
    async with under_load(quick(valkey_server.url, **options)) as load:
        await to_thread(valkey_server.execute, "ACL", "SETUSER", "rotating", ">second")
        await to_thread(password_file.write_text, "rotating\nsecond")
        first = await to_thread(clients, [valkey_server])
        await asyncio.sleep(age)
        await to_thread(valkey_server.execute, "ACL", "SETUSER", "rotating", "<first")
        second = await to_thread(clients, [valkey_server])
        await asyncio.sleep(age)
        third = await to_thread(clients, [valkey_server])
        assert not first.keys() & second.keys()
        assert not second.keys() & third.keys()
        unharmed(load)


async def test_a_server_that_takes_no_new_connections_for_a_while(
    valkey_server: CacheServer,
) -> None:
    """The old connections stay in use, and are replaced when that is possible."""
    async with FaultProxy(HOST, valkey_server.port) as proxy:
        url = quick(valkey_server.url_at(proxy.port), connection_max_age_seconds=3)
        async with under_load(url) as load:  # It ran for 1 s.
            before = set(await to_thread(clients, [valkey_server]))
            proxy.refuse()
            await asyncio.sleep(2)
            refused = load.watch.logged("cannot renew a connection")
            assert refused, "no attempt was made"
            assert set(await to_thread(clients, [valkey_server])) == before
            proxy.accept()
            await asyncio.sleep(0.7)
            assert not before & set(await to_thread(clients, [valkey_server]))
            assert len(load.watch.records) == len(refused)
            load.watch.records.clear()
            unharmed(load)


async def test_the_last_call_decides_when_subscriptions_change_during_a_rotation(
    valkey_server: CacheServer,
) -> None:
    """With a delay in between, so that a rotation takes most of the time."""
    async with FaultProxy(HOST, valkey_server.port) as proxy:
        proxy.delay_seconds = 0.005
        url = with_options(valkey_server.url_at(proxy.port), connection_max_age_seconds=0.1)
        rooms = [f"rotation:{number}" for number in range(20)]
        before = await to_thread(connections_received, [valkey_server])
        async with (
            open_hub(url) as hub,
            open_hub(valkey_server.url) as other,
            listening(hub, "stays") as stays,
        ):
            await asyncio.gather(*(_visits(hub, other, room) for room in rooms))
            await other.publish("stays", b"the end")
            await stays.until_payload(b"the end")
            assert stays.gaps == []
            await eventually(lambda: to_thread(subscribed, valkey_server), 1)
        after = await to_thread(connections_received, [valkey_server])
        print(f"{after - before} connections")
        assert after - before > 6


def subscribed(server: CacheServer) -> int:
    """How many of the users' channels have a subscription."""
    return len(server.execute("PUBSUB", "CHANNELS", "*:{*"))


async def _visits(hub: Hub, other: Hub, room: str) -> None:
    for number in range(60):
        async with listening(hub, room) as heard:
            payload = b"%d" % number
            await other.publish(room, payload)
            await heard.until_payload(payload)
            assert heard.messages == [Message(channel=room, payload=payload)]
            # A message on its way for longer than the subscription is old is taken for a hole.
            assert {gap.reason for gap in heard.gaps} <= {MISSED}
