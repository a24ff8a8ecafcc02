"""Errors name the problem: wrong sentinels, wrong credentials, or a wrong name of the service."""

from __future__ import annotations

import asyncio
import logging
from asyncio import to_thread

import pytest

from django_sockets import PublishError, SubscribeError, open_hub
from django_sockets.errors import AuthError
from django_sockets.observer import ConnectFailed, LinkLost, LinkRestored
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.recording import recording


async def both_fail(url: str, words: str) -> list[BaseException | None]:
    """Publish and subscribe; both errors contain these words. Returns the causes."""
    async with open_hub(quick(url, subscribe_timeout_seconds=0.5)) as hub:
        with pytest.raises(PublishError, match=words) as publishing:
            await hub.publish("room", b"x")
        with pytest.raises(SubscribeError, match=words) as subscribing:
            async with hub.subscribe("room"):
                pass
        for error in (publishing.value, subscribing.value):
            assert "s/cr:t" not in str(error)
            assert "wrong" not in str(error)
    return [publishing.value.__cause__, subscribing.value.__cause__]


async def test_sentinels_and_data_may_have_credentials_of_their_own(
    redis_sentinels: SentinelTrio,
) -> None:
    async with open_hub(redis_sentinels.url) as hub, listening(hub, "room") as heard:
        await hub.publish("room", b"x")
        await heard.until_payload(b"x")


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_password_for_the_sentinels_that_is_missing_or_wrong(
    redis_sentinels: SentinelTrio, password: str | None
) -> None:
    bare = redis_sentinels.url.partition("?")[0]
    given = {"sentinel_username": "bob", "sentinel_password": password} if password else {}
    causes = await both_fail(
        with_options(bare, **given), "sentinels refused the credentials: set .* sentinel_password"
    )
    assert all(isinstance(cause, AuthError) for cause in causes)


async def test_a_wrong_password_for_the_data_is_not_blamed_on_the_sentinels(
    redis_sentinels: SentinelTrio,
) -> None:
    _, _, rest = redis_sentinels.url.partition("@")
    await both_fail(f"redis+sentinel://alice:wrong@{rest}", "the server refused the credentials")


async def test_a_service_that_nobody_knows(valkey_sentinels: SentinelTrio) -> None:
    url = valkey_sentinels.url.replace("/main/", "/mian/")
    await both_fail(url, "do not know the service 'mian'")


async def test_a_data_server_in_the_place_of_sentinels(valkey_server: CacheServer) -> None:
    url = valkey_server.url.replace("redis://", "redis+sentinel://") + "/main"
    await both_fail(url, "the URL has to name sentinels, and this server is none")


async def test_a_sentinel_in_the_place_of_a_data_server(valkey_sentinels: SentinelTrio) -> None:
    """It would accept subscriptions, and no message would ever arrive."""
    url = valkey_sentinels.sentinels[0].url
    await both_fail(url, r"the server is a sentinel: write redis\+sentinel://")
    url = url.replace("redis://", "redis+cluster://")
    await both_fail(url, r"the server is a sentinel: write redis\+sentinel://")


async def test_dead_sentinels_are_no_lost_connection_of_messages(
    valkey_sentinels: SentinelTrio, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages flow without them, so nobody on call must be woken for the broker."""
    caplog.set_level(logging.WARNING, "django_sockets")
    trio = valkey_sentinels
    try:
        with recording() as recorder:
            async with open_hub(quick(trio.url)) as hub, listening(hub, "room") as heard:
                await hub.publish("room", b"before")
                await heard.until_payload(b"before")
                await asyncio.gather(*(to_thread(one.kill) for one in trio.sentinels))
                await recorder.until(lambda: len(recorder.of(LinkLost)) >= 6)
                await recorder.until(lambda: len(recorder.of(ConnectFailed)) >= 9)
                await hub.publish("room", b"after")
                await heard.until_payload(b"after")
                assert heard.gaps == []
        assert {event.link for event in recorder.of(LinkLost)} == {"sentinel"}
        assert {event.link for event in recorder.of(ConnectFailed)} == {"sentinel"}
        assert recorder.of(LinkRestored) == []
    finally:
        await to_thread(trio.restore)
    logged = [record.getMessage() for record in caplog.records]
    assert not [line for line in logged if "publishing" in line or "subscribing" in line]
    for sentinel in trio.sentinels:
        address = f"127.0.0.1:{sentinel.port}"
        assert any(f"connection to the sentinel {address} lost: " in line for line in logged)
        assert any(f"cannot reach the sentinel {address}: " in line for line in logged)
