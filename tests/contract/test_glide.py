"""Publishing through valkey-glide, against a real server.

The driver keeps up to two threads of its own for the life of the process (2.6), and we one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from django_sockets import BrokerClosed, ConfigurationError
from django_sockets.backends.client.connection import Connection, ReplyError
from django_sockets.backends.client.connector import Connector
from django_sockets.backends.client.pipeline import NotSent, OutcomeUnknown
from django_sockets.errors import AuthError, ConnectError
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer, ValkeyServer
from django_sockets.url import Address, BrokerURL

pytest.importorskip("glide", reason="valkey-glide is not installed")

from django_sockets.backends.client.commands import slot_of as slot
from django_sockets.backends.glide.publisher import GlideConnection, GlidePublisher

NAME = b"django_sockets:{room}"
OPTIONS = "?publish_timeout_seconds=1&connect_timeout_seconds=1"


def parsed(url: str, options: str = OPTIONS) -> tuple[BrokerURL, GlideConnection]:
    parsed = BrokerURL.parse(url + options)
    return parsed, GlideConnection(
        parsed.addresses, username=parsed.username, password=parsed.password
    )


def opener(url: BrokerURL) -> Callable[[], Coroutine[Any, Any, Connection]]:
    return partial(Connector(url).open, url.addresses[0])


def publisher(
    server: CacheServer, options: str = OPTIONS, *, sharded: bool = False
) -> GlidePublisher:
    url, connection = parsed(server.url, options)
    return GlidePublisher(url, connection, sharded=sharded, open_connection=opener(url))


@pytest.fixture
def server() -> Iterator[CacheServer]:
    """A server of the test's own, which the test may break."""
    with ValkeyServer() as own:
        yield own


@contextlib.asynccontextmanager
async def hearing(server: CacheServer, *names: bytes, sharded: bool = False) -> AsyncIterator[Any]:
    """Yields a function that waits for messages and returns (name, payload) in their order."""
    async with Redis(port=server.port) as client, client.pubsub() as pubsub:
        for name in names:  # One call of SSUBSCRIBE may name one slot only.
            await (pubsub.ssubscribe(name) if sharded else pubsub.subscribe(name))
        kind = "smessage" if sharded else "message"

        async def until(count: int) -> list[tuple[bytes, bytes]]:
            heard: list[tuple[bytes, bytes]] = []
            while len(heard) < count:
                message = await pubsub.get_message(timeout=10)
                assert message is not None, f"only {len(heard)} of {count} messages came"
                if message["type"] == kind:
                    heard.append((message["channel"], message["data"]))
            return heard

        yield until


def numbered(count: int, start: int = 0) -> list[tuple[bytes, bytes]]:
    return [(NAME, b"%d" % number) for number in range(start, start + count)]


def kinds(outcomes: Sequence[object]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


async def clients(server: CacheServer) -> int:
    listed = await asyncio.to_thread(server.execute, "CLIENT", "LIST", "TYPE", "normal")
    return len([line for line in listed.splitlines() if "lib-name=django_sockets " in line])


@pytest.mark.parametrize("sharded", [False, True])
async def test_the_order_of_the_calls_is_the_order_on_each_channel(
    server: CacheServer, sharded: bool
) -> None:
    names = [b"django_sockets:{%d}" % number for number in range(5)]
    # 10,000 messages one request after the other may take a busy machine longer than a second.
    glide = publisher(server, "?publish_timeout_seconds=20", sharded=sharded)
    async with hearing(server, *names, sharded=sharded) as heard:
        sends, count = [], 0
        for size in [1, 3, 1, 2000, 1, 1, 40] * 5:
            messages = [(names[n % 5], b"%d" % n) for n in range(count, count + size)]
            count += size
            sends.append(glide.send(messages))
            if size == 40:
                await asyncio.sleep(0)
        for outcomes in await asyncio.gather(*sends):
            assert set(outcomes) == {None}
        received = await heard(count)
    for name in names:
        payloads = [int(payload) for channel, payload in received if channel == name]
        assert payloads == sorted(payloads)
    await glide.aclose()


async def test_a_thousand_callers_and_several_publishers_share_one_connection(
    server: CacheServer,
) -> None:
    first, second = publisher(server), publisher(server)
    sends = [glide.send([(NAME, b"x")]) for glide in (first, second) for _ in range(500)]
    for outcomes in await asyncio.gather(*sends):
        assert list(outcomes) == [None]
    assert await clients(server) == 1
    await first.aclose()
    assert list(await second.send([(NAME, b"still open")])) == [None]
    await second.aclose()
    assert await clients(server) == 0


async def test_what_was_under_way_when_the_server_died_is_unknown_and_never_repeated(
    server: CacheServer,
) -> None:
    glide = publisher(server)
    assert list(await glide.send(numbered(1))) == [None]
    server.pause()
    under_way = glide.send(numbered(2, 1))
    await asyncio.sleep(0.1)  # It is in the server's socket now, which no event shows.
    server.kill()
    assert kinds(await under_way) == [OutcomeUnknown] * 2
    refused = await glide.send(numbered(2, 3))
    assert kinds(refused) == [NotSent] * 2
    assert isinstance(refused[0], NotSent)
    assert isinstance(refused[0].__cause__, ConnectError)
    server.start()
    async with hearing(server, NAME) as heard:
        assert list(await glide.send(numbered(1, 5))) == [None]
        assert await heard(1) == numbered(1, 5)
    await glide.aclose()


async def test_a_server_that_does_not_answer_delivers_once_when_it_wakes_up(
    server: CacheServer,
) -> None:
    loop = asyncio.get_running_loop()
    glide = publisher(server)
    async with hearing(server, NAME) as heard:
        assert list(await glide.send(numbered(1))) == [None]
        server.pause()
        started = loop.time()
        under_way = glide.send(numbered(2, 1))
        await asyncio.sleep(0.1)
        behind = glide.send(numbered(1, 3))
        assert kinds(await under_way) == [OutcomeUnknown] * 2
        assert kinds(await behind) == [NotSent]
        assert loop.time() - started < 3
        server.resume()
        assert list(await glide.send(numbered(1, 4))) == [None]
        # What was in the socket came late, and once; what is certain not to be sent never did.
        assert sorted(await heard(4)) == sorted(numbered(3) + numbered(1, 4))
        assert list(await glide.send(numbered(1, 5))) == [None]
        assert await heard(1) == numbered(1, 5)
    await glide.aclose()


async def test_a_reply_that_is_lost_is_no_reason_to_publish_twice(server: CacheServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, hearing(server, NAME) as heard:
        url, connection = parsed(f"redis://127.0.0.1:{proxy.port}")
        glide = GlidePublisher(url, connection, sharded=False)
        for number, ends in ((0, True), (2, False), (4, True)):
            assert list(await glide.send(numbered(1, number))) == [None]
            proxy.blackhole("reads")
            lost = glide.send(numbered(1, number + 1))
            assert await heard(2) == numbered(2, number)
            if ends:
                proxy.drop()
            assert kinds(await lost) == [OutcomeUnknown]
        assert list(await glide.send(numbered(1, 6))) == [None]
        assert await heard(1) == numbered(1, 6)
        await glide.aclose()


async def test_a_publish_works_again_when_its_connection_was_killed(server: CacheServer) -> None:
    glide = publisher(server)
    async with hearing(server, NAME) as heard:
        accepted = 0
        for round_number in range(10):
            outcomes = await glide.send(numbered(1, round_number))
            accepted += outcomes == [None]
            await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "normal")
        assert accepted
        while list(await glide.send(numbered(1, 10))) != [None]:
            pass
        received = [int(payload) for _, payload in await heard(accepted + 1)]
        assert len(received) == len(set(received))
    await glide.aclose()


async def test_channels_that_the_server_forbids_are_told_from_the_others(
    server: CacheServer,
) -> None:
    server.execute("ACL", "SETUSER", "u", "on", ">secret", "+@all", "resetchannels", "&allowed")
    url, connection = parsed(server.url.replace("//", "//u:secret@"))
    glide = GlidePublisher(url, connection, sharded=False, open_connection=opener(url))
    refused, accepted = await glide.send([(b"forbidden", b"x"), (b"allowed", b"x")])
    assert accepted is None
    assert isinstance(refused, ReplyError)
    assert str(refused) == "NOPERM No permissions to access a channel"
    await glide.aclose()


async def test_wrong_credentials_are_named_and_no_secret_is_told(
    server: CacheServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.execute("CONFIG", "SET", "requirepass", "right")
    url, connection = parsed(server.url.replace("//", "//:wr0ng-s3cret@"))
    for link in (opener(url), None):
        glide = GlidePublisher(url, connection, sharded=False, open_connection=link)
        (outcome,) = await glide.send([(NAME, b"x")])
        assert isinstance(outcome, NotSent)
        assert isinstance(outcome.__cause__, AuthError if link else ConnectError)
        output = "".join(capfd.readouterr())
        for text in (str(outcome), repr(glide), repr(connection), str(outcome.__cause__)):
            output += text
        assert "wr0ng-s3cret" not in output + caplog.text
        await glide.aclose()


async def test_sixteen_mebibytes_arrive(server: CacheServer) -> None:
    payload = bytes(range(256)) * 65536
    glide = publisher(server)
    async with hearing(server, NAME) as heard:
        assert list(await glide.send([(NAME, payload), (NAME, b"small")])) == [None, None]
        assert await heard(2) == [(NAME, payload), (NAME, b"small")]
    await glide.aclose()


async def test_closing_ends_what_waits_and_refuses_more(server: CacheServer) -> None:
    glide = publisher(server)
    assert list(await glide.send(numbered(1))) == [None]
    server.pause()
    under_way = glide.send(numbered(1, 1))
    await asyncio.sleep(0)
    behind = glide.send(numbered(1, 2))
    await glide.aclose()
    await glide.aclose()
    assert kinds(await under_way) == [OutcomeUnknown]
    assert kinds(await behind) == [NotSent]
    with pytest.raises(BrokerClosed):
        glide.send(numbered(1, 3))


def test_a_second_event_loop_works_after_the_first_was_closed(server: CacheServer) -> None:
    async def publish() -> None:
        glide = publisher(server)
        assert list(await asyncio.wait_for(glide.send(numbered(1)), 5)) == [None]
        await glide.aclose()

    for _ in range(3):
        asyncio.run(publish())
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("django_sockets glide") == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
async def test_opening_and_closing_again_and_again_leaves_no_more(server: CacheServer) -> None:
    """The driver's two threads, ours and four descriptors stay; their number must not grow."""

    def counted() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(
            list(Path("/proc/self/fd").iterdir())
        )

    counts = []
    for _ in range(20):
        glide = publisher(server)
        assert list(await glide.send(numbered(1))) == [None]
        await glide.aclose()
        counts.append(counted())
    # What belongs to a connection may outlive `aclose` by a moment.
    assert counts[-1][0] <= counts[0][0] + 2
    assert counts[-1][1] <= counts[0][1] + 4


def test_what_the_driver_cannot_do_is_said_at_once() -> None:
    url = BrokerURL.parse("rediss://localhost")
    for wrong, message in (
        ({"tls_verify": "ca"}, "option tls_verify: "),
        ({"tls_ca_file": "/no/such.pem"}, "option tls_ca_file: "),
    ):
        with pytest.raises(ConfigurationError, match=message):
            GlidePublisher(url, GlideConnection(url.addresses, tls=True, **wrong), sharded=False)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "glide", None)
    url = BrokerURL.parse("redis://localhost")
    with pytest.raises(ConfigurationError, match=r"django-sockets\[glide\]"):
        GlidePublisher(url, GlideConnection(url.addresses), sharded=False)


async def test_tls_trusts_the_authority_that_it_is_told(redis_tls_server: CacheServer) -> None:
    url = BrokerURL.parse(f"rediss://127.0.0.1:{redis_tls_server.port}{OPTIONS}")
    trusting = GlideConnection(
        url.addresses, tls=True, tls_ca_file=str(redis_tls_server.tls_ca_file)
    )
    glide = GlidePublisher(url, trusting, sharded=False)
    assert list(await glide.send(numbered(1))) == [None]
    await glide.aclose()
    glide = GlidePublisher(url, GlideConnection(url.addresses, tls=True), sharded=False)
    assert kinds(await glide.send(numbered(1))) == [NotSent]
    await glide.aclose()


# On a cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[CacheServer]]:
    """Three primaries without replicas."""
    config = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "500",
        "cluster-require-full-coverage": "no",
    }
    with contextlib.ExitStack() as stack:
        nodes: list[CacheServer] = [
            stack.enter_context(ValkeyServer(config=config)) for _ in range(3)
        ]
        for number, node in enumerate(nodes):
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.execute("CLUSTER", "ADDSLOTSRANGE", *RANGES[number])
            node.execute("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        give_up = time.monotonic() + 15
        for node in nodes:
            while "cluster_slots_ok:16384" not in node.execute("CLUSTER", "INFO"):
                assert time.monotonic() < give_up, node.execute("CLUSTER", "INFO")
                time.sleep(0.02)
        yield nodes


RANGES = ((0, 5460), (5461, 10921), (10922, 16383))


def names_of(node: int, count: int) -> list[bytes]:
    """Names whose slots are one node's."""
    first, last = RANGES[node]
    names = (b"django_sockets:{%d}" % number for number in itertools.count())
    return list(itertools.islice((n for n in names if first <= slot(n) <= last), count))


def cluster_publisher(nodes: Sequence[CacheServer], options: str = OPTIONS) -> GlidePublisher:
    url = BrokerURL.parse(f"redis://127.0.0.1:{nodes[0].port}{options}")
    addresses = tuple(Address("127.0.0.1", node.port) for node in nodes)
    return GlidePublisher(url, GlideConnection(addresses, cluster=True), sharded=True)


async def test_slots_are_the_servers(nodes: list[CacheServer]) -> None:
    for name in (b"a", b"{}a", b"{a}b", b"x{a}{b}", b"{a", b"a}b", b"{{a}}"):
        assert slot(name) == nodes[0].execute("CLUSTER", "KEYSLOT", name)


async def test_a_silent_node_of_a_cluster_holds_up_no_other_and_repeats_nothing(
    nodes: list[CacheServer],
) -> None:
    alive, silent = names_of(0, 2) + names_of(2, 2), names_of(1, 3)
    # A wait for the silent node must be longer than a busy machine needs for the others.
    patience_seconds, rounds = 2, 150
    patient = f"?publish_timeout_seconds={patience_seconds}&connect_timeout_seconds=1"
    glide = cluster_publisher(nodes, patient)
    async with contextlib.AsyncExitStack() as stack:
        heard = [
            await stack.enter_async_context(hearing(node, *names, sharded=True))
            for node, names in zip(nodes, [alive[:2], silent, alive[2:]], strict=True)
        ]
        assert set(await glide.send([(name, b"0") for name in alive + silent])) == {None}
        nodes[1].pause()
        try:
            under_way = glide.send([(name, b"1") for name in silent])
            for number in range(1, rounds):
                outcomes = await asyncio.wait_for(
                    glide.send([(name, b"%d" % number) for name in alive]), patience_seconds - 0.1
                )
                assert set(outcomes) == {None}
                await asyncio.sleep(0.02)
            assert set(kinds(await under_way)) == {OutcomeUnknown}
            # So do those who connect only now.
            late = cluster_publisher(nodes[:1])
            assert set(await late.send([(name, b"%d" % rounds) for name in alive])) == {None}
            await late.aclose()
        finally:
            nodes[1].resume()
        while set(await glide.send([(name, b"2") for name in silent])) != {None}:
            pass
        for hear, names in (heard[0], alive[:2]), (heard[2], alive[2:]):
            received = await hear((rounds + 1) * len(names))
            for name in names:
                assert [int(p) for n, p in received if n == name] == list(range(rounds + 1))
        received = await heard[1](9)
        for name in silent:
            assert [p for n, p in received if n == name] == [b"0", b"1", b"2"]
    await glide.aclose()


async def test_order_holds_while_a_slot_moves(nodes: list[CacheServer]) -> None:
    (name,) = names_of(0, 1)
    glide = cluster_publisher(nodes)
    source, target = nodes[0], nodes[2]
    ids = [await asyncio.to_thread(n.execute, "CLUSTER", "MYID") for n in (source, target)]
    async with hearing(source, name, sharded=True) as before:
        sends = [glide.send([(name, b"%d" % number)]) for number in range(200)]
        assert {outcome for send in sends for outcome in await send} == {None}
        received = [int(payload) for _, payload in await before(200)]
    for node in (target, source):
        await asyncio.to_thread(node.execute, "CLUSTER", "SETSLOT", slot(name), "NODE", ids[1])
    try:
        async with hearing(target, name, sharded=True) as after:
            # The driver still asks the old node, and is sent on.
            sends = [glide.send([(name, b"%d" % number)]) for number in range(200, 400)]
            assert {outcome for send in sends for outcome in await send} == {None}
            received += [int(payload) for _, payload in await after(200)]
    finally:
        for node in (source, target):
            await asyncio.to_thread(node.execute, "CLUSTER", "SETSLOT", slot(name), "NODE", ids[0])
    assert received == list(range(400))
    await glide.aclose()


SCRIPT = """
import asyncio, os, sys
from django_sockets.backends.glide import GlideConnection, GlidePublisher
from django_sockets.url import BrokerURL

url = BrokerURL.parse(sys.argv[1])

async def publish(close):
    publisher = GlidePublisher(url, GlideConnection(url.addresses), sharded=False)
    assert list(await asyncio.wait_for(publisher.send([(b"c", b"x")]), 10)) == [None]
    if close:
        await publisher.aclose()
    return publisher
"""


# From 3.12 on, Python warns of a fork in a process with threads.
WARNINGS = ("-W", "default", "-W", "ignore:This process:DeprecationWarning")


def run(server: CacheServer, body: str) -> str:
    done = subprocess.run(
        [sys.executable, *WARNINGS, "-c", SCRIPT + body, server.url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_script_that_never_closes_its_broker_exits(server: CacheServer) -> None:
    assert run(server, "kept = asyncio.run(publish(close=False)); print('end')") == "end\n"


def test_both_sides_of_a_fork_publish(server: CacheServer) -> None:
    body = """
publisher = asyncio.run(publish(close=False))
child = os.fork()
if not child:
    asyncio.run(publish(close=True))
    asyncio.run(publisher.aclose())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(publish(close=True))
print("both")
"""
    assert run(server, body) == "both\n"
