"""Refusals and counts that only a Redis or Valkey server can show."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_sockets import (
    Message,
    PublishError,
    Recovery,
    SubscribeError,
    open_broker,
    open_hub,
)
from django_sockets.testing.contract import BrokerContract
from django_sockets.testing.contract.base import with_options, with_password
from django_sockets.testing.ledger import listening
from django_sockets.testing.servers import CacheServer, ValkeyServer


@pytest.fixture
def room() -> str:
    return f"room:{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def old_server(
    valkey_server: CacheServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CacheServer]:
    """A server that knows no HELLO, and so no RESP3."""
    config = tmp_path_factory.mktemp("old") / "old.conf"
    config.write_text('rename-command HELLO ""\n', encoding="utf-8")
    with ValkeyServer(config={"include": str(config)}) as server:
        yield server


class TestServerWithoutRESP3(BrokerContract):
    @pytest.fixture
    def broker_url(self, old_server: CacheServer) -> str:
        return old_server.url


async def test_a_thousand_channels_cost_one_round_trip(
    valkey_server: CacheServer, room: str
) -> None:
    def reads() -> int:
        stats = valkey_server.execute("INFO", "stats")
        lines = dict(line.split(":", 1) for line in stats.splitlines() if ":" in line)
        return int(lines["total_reads_processed"])

    broker = open_broker(valkey_server.url)
    await broker.publish([room], b"connect")
    before = reads()
    await broker.publish([f"{room}:{i}" for i in range(1000)], b"x")
    # The server reads 16 KiB at a time; one round trip for each channel would be 1000 reads.
    assert reads() - before < 30
    await broker.aclose()


class Recorder:
    """A subscriber that only counts."""

    heard = 0

    def on_delivery(self, delivery: object) -> None:
        self.heard += 1

    def on_gap(self, channels: object, reason: str) -> None:
        self.heard += 1


@pytest.fixture
def user(valkey_server: CacheServer, room: str) -> Iterator[Callable[..., str]]:
    """Adds a user with these channel patterns and returns the URL for it."""
    name = uuid.uuid4().hex

    def add(*patterns: str) -> str:
        rules = ["on", ">secret", "~*", "+@all", "resetchannels", *patterns]
        valkey_server.execute("ACL", "SETUSER", name, *rules)
        return with_password(valkey_server.url, name, "secret")

    yield add
    valkey_server.execute("ACL", "DELUSER", name)


async def test_channels_that_the_server_forbids_are_named(
    user: Callable[..., str], room: str
) -> None:
    url = user("&django_sockets:{*allowed}", "&django_sockets:probe:*")
    allowed, forbidden = f"{room}:allowed", f"{room}:forbidden"
    async with open_hub(url) as hub, listening(hub, allowed) as heard:
        with pytest.raises(PublishError, match="refused") as publishing:
            await hub.publish([forbidden, allowed], b"x")
        assert publishing.value.failed == (forbidden,)
        assert publishing.value.unknown == ()
        with pytest.raises(SubscribeError, match="refused") as subscribing:
            async with hub.subscribe(f"{room}:2:allowed", forbidden):
                pass
        assert subscribing.value.channels == (f"{room}:2:allowed", forbidden)
        assert hub.stats()["channels"] == 1
        # Whoever asks at the same time gets what is allowed.
        sides = [hub.add(Recorder(), [forbidden]), hub.add(Recorder(), [f"{room}:3:allowed"])]
        refused, granted = await asyncio.gather(*sides, return_exceptions=True)
        assert isinstance(refused, SubscribeError)
        assert granted == {f"{room}:3:allowed": Recovery()}
        # The others are none the worse for it.
        await hub.publish([allowed, f"{room}:2:allowed"], b"y")
        await heard.until_payload(b"y")
        assert heard.events == [
            Message(channel=allowed, payload=b"x"),
            Message(channel=allowed, payload=b"y"),
        ]


async def test_a_forbidden_probe_is_said_and_does_not_stop_anything(
    user: Callable[..., str], room: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = with_options(user("&django_sockets:{*"), probe_interval_seconds=0.05)
    async with open_hub(url) as hub, listening(hub, room) as heard:
        for i in range(20):
            await hub.publish(room, b"%d" % i)
            await heard.until_payload(b"%d" % i)
        assert heard.gaps == []
    warnings = [r.message for r in caplog.records if "delivery probe" in r.message]
    assert len(warnings) == 1
    assert "'django_sockets:*'" in warnings[0]


async def test_a_file_that_is_not_there_is_named(tmp_path: Path, room: str) -> None:
    async with open_hub(f"redis+unix://{tmp_path}/no.sock") as hub:
        with pytest.raises(PublishError, match=r"no\.sock: cannot connect.*No such file"):
            await hub.publish(room, b"x")
