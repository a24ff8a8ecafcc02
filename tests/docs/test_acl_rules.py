"""The ACL rules of docs/deploy.md are accepted by the servers, and they are sufficient."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from django_sockets import open_broker, open_hub
from django_sockets.broker import SupportsHistory
from django_sockets.delivery.envelope import Publisher
from django_sockets.presence import LeaseAction
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options, with_password
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.contract.history import HistoryRecorder
from django_sockets.testing.contract.presence_room import PresenceRoom
from django_sockets.testing.ledger import listening
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer

TEXT = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## The least a user may do")[2]
SOCKETS, WATCHER = re.findall(r"```text\nACL SETUSER (.*?)```", SECTION, re.DOTALL)
ADDITIONS = {
    title: rules.replace("\\|", "|").split()
    for title, rules in re.findall(r"^\| (\S.*?) \| `(\+.*?)` \|$", SECTION, re.MULTILINE)
}

PRESENCE = "presence"
QUEUES = "normal channels of the [channel layer](channels.md#channels-of-each-kind)"


def test_the_document_has_the_rules() -> None:
    assert set(ADDITIONS) == {
        "cluster, serverless",
        "[history](history.md)",
        PRESENCE,
        "a database number",
        QUEUES,
        "the driver option `client_name`",
        "`driver=glide`, Redis 7.0",
        "`driver=glide`, Redis 7.2 or Valkey",
    }


@contextlib.contextmanager
def user(servers: Sequence[CacheServer], line: str, *more: str) -> Iterator[str]:
    """Create the user of a line of the document; the servers must refuse none of its commands."""
    name, *rules = line.replace("PASSWORD", "s3cret").split()
    for server in servers:
        server.execute("ACL", "SETUSER", name, "reset", *rules, *more)
        server.execute("ACL", "LOG", "RESET")
    yield name
    refusals = [str(server.execute("ACL", "LOG")) for server in servers]
    for server in servers:
        server.execute("ACL", "DELUSER", name)
    assert [text for text in refusals if name in text] == []


@contextlib.asynccontextmanager
async def nothing_to_complain(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    caplog.set_level(logging.WARNING, "django_sockets")
    yield
    assert [record.getMessage() for record in caplog.records] == []


async def everything_works(url: str) -> None:
    """Publish, receive, probe and check."""
    url = quick(url, probe_interval_seconds=0.05)
    async with open_hub(url) as hub, listening(hub, "room") as heard:
        for number in range(5):
            await hub.publish("room", b"%d" % number)
            await heard.until_payload(b"%d" % number)
    broker = open_broker(url)
    try:
        report = await broker.inspect()  # type: ignore[attr-defined]
    finally:
        await broker.aclose()
    assert report.problem is None
    assert not any("not allowed" in warning for warning in report.warnings)


SERVERS = ["valkey_server", "redis_server"]
CLUSTERS = ["valkey_cluster", "redis_cluster"]


def for_glide(kind: str) -> list[str]:
    version = "Redis 7.0" if kind.startswith("redis") else "Redis 7.2 or Valkey"
    return ADDITIONS[f"`driver=glide`, {version}"]


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("case", ["alone", "a database number", "glide"])
async def test_one_node(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str, case: str
) -> None:
    server: CacheServer = request.getfixturevalue(kind)
    more = for_glide(kind) if case == "glide" else ADDITIONS.get(case, [])
    if case == "glide":
        pytest.importorskip("glide")
    with user([server], SOCKETS, *more) as name:
        url = with_password(server.url, name, "s3cret")
        if case == "a database number":
            url += "/1"
        if case == "glide":
            url = with_options(url, driver="glide")
        async with nothing_to_complain(caplog):
            await everything_works(url)


@pytest.mark.parametrize("kind", CLUSTERS)
@pytest.mark.parametrize("driver", ["redis", "glide"])
async def test_a_cluster(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str, driver: str
) -> None:
    cluster: CacheCluster = request.getfixturevalue(kind)
    more = ADDITIONS["cluster, serverless"]
    if driver == "glide":
        pytest.importorskip("glide")
        more = [*more, *for_glide(kind)]
    with user(cluster.nodes, SOCKETS, *more) as name:
        url = with_options(with_password(cluster.url, name, "s3cret"), driver=driver)
        async with nothing_to_complain(caplog):
            await everything_works(url)


@pytest.mark.parametrize("kind", [*SERVERS, "valkey_cluster"])
async def test_history(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    found = request.getfixturevalue(kind)
    more = ADDITIONS["[history](history.md)"]
    servers = [found]
    if kind == "valkey_cluster":
        servers = found.nodes
        more = [*more, *ADDITIONS["cluster, serverless"]]
    with user(servers, SOCKETS, *more) as name:
        url = with_options(
            with_password(found.url, name, "s3cret"), history_messages=3, history_seconds=60
        )
        async with nothing_to_complain(caplog):
            await everything_works(url)
            sink = HistoryRecorder()
            broker = open_broker(url, sink)
            assert isinstance(broker, SupportsHistory)
            (header,) = Publisher().headers(["room:2"], is_text=True)
            await broker.publish(["room:2"], b"kept", [header])
            await broker.subscribe_with_history({"room:2": 1})
            (reply,) = await sink.replies("room:2")
            assert reply.position is not None
            assert len(reply.position.history_id) == 8
            assert (await broker.read_history({"room:2": 1}))["room:2"] == reply
            await broker.aclose()


@pytest.mark.parametrize("kind", [*SERVERS, "valkey_cluster"])
async def test_presence(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    found: CacheServer | CacheCluster = request.getfixturevalue(kind)
    servers = found.nodes if isinstance(found, CacheCluster) else [found]
    more = ADDITIONS["cluster, serverless"] if isinstance(found, CacheCluster) else []
    with user(servers, SOCKETS, *more, *ADDITIONS[PRESENCE]) as name:
        async with nothing_to_complain(caplog):
            room = PresenceRoom(with_password(found.url, name, "s3cret"), f"acl:{kind}")
            await room.watch()
            await room.change(a=b"x", b=b"x")
            made = await room.change(a=None)
            await room.sink.version(room.channel, made.version)
            assert (await room.read()).version == made.version
            for action in LeaseAction:
                await room.lease("acl", action)
            await room.broker.aclose()


async def test_a_name_for_the_client(valkey_server: CacheServer) -> None:
    more = ADDITIONS["the driver option `client_name`"]
    with user([valkey_server], SOCKETS, *more) as name:
        url = with_password(valkey_server.url, name, "s3cret")
        async with open_hub([{"address": url, "client_name": "web"}]) as hub:
            await hub.publish("room", b"x")


async def test_sentinels(valkey_sentinels: SentinelTrio, caplog: pytest.LogCaptureFixture) -> None:
    with user(valkey_sentinels.sentinels, WATCHER) as name:
        url = with_options(valkey_sentinels.url, sentinel_username=name, sentinel_password="s3cret")
        async with nothing_to_complain(caplog):
            await everything_works(url)


async def test_sentinels_of_redis(
    redis_sentinels: SentinelTrio, caplog: pytest.LogCaptureFixture
) -> None:
    with user(redis_sentinels.sentinels, WATCHER) as name:
        bare = redis_sentinels.url.partition("?")[0]
        url = with_options(bare, sentinel_username=name, sentinel_password="s3cret")
        async with nothing_to_complain(caplog):
            await everything_works(url)


@pytest.mark.parametrize("kind", [*SERVERS, *CLUSTERS])
async def test_queues(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    server: CacheServer | CacheCluster = request.getfixturevalue(kind)
    nodes = server.nodes if isinstance(server, CacheCluster) else [server]
    more = ADDITIONS["cluster, serverless"] if kind in CLUSTERS else []
    with user(nodes, SOCKETS, *more, *ADDITIONS[QUEUES]) as name:
        async with (
            nothing_to_complain(caplog),
            open_hub(with_password(server.url, name, "s3cret")) as hub,
            hub.subscribe("jobs") as events,
        ):
            assert hub.queues is not None
            await hub.queues.push("jobs", b"x", capacity=5, expiry_seconds=60, once=b"1")
            await anext(events)
            entry, _ = await hub.queues.pop("jobs")
            assert entry is not None
            await hub.queues.give_back("jobs", entry)
            await hub.queues.clear("jobs")
            assert await hub.queues.pop("jobs") == (None, 0)
