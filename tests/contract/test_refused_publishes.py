"""An operator sees in the log that the server refuses to publish, and not only its callers."""

from __future__ import annotations

import asyncio
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator

import pytest

from django_sockets import PublishError, open_hub
from django_sockets.hub.hub import Hub
from django_sockets.testing.contract.base import with_options, with_password
from django_sockets.testing.servers import CacheServer

TEMPLATE = "%s: the server refused a publish: %s"
NEVER_AGAIN = {"log_interval_seconds": 3600}
KEPT = {"history_messages": 10, "history_seconds": 60}


@pytest.fixture
def url(valkey_server: CacheServer) -> Iterator[str]:
    """The URL of a user that may not publish."""
    valkey_server.execute(
        "ACL", "SETUSER", "mute", "reset", "on", ">s3cret", "~*", "&*", "+@all", "-publish"
    )
    yield with_password(valkey_server.url, "mute", "s3cret")
    valkey_server.execute("ACL", "DELUSER", "mute")


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [one for one in caplog.records if getattr(one, "template", one.msg) == TEMPLATE]
    assert all(one.levelname == "WARNING" for one in records)
    return [one.getMessage() for one in records]


async def publishing(hub: Hub) -> AsyncIterator[str]:
    """The errors of many publishes."""
    for _ in range(10):
        with pytest.raises(PublishError) as refused:
            await hub.publish(["room", "hall"], b"x")
        yield str(refused.value)


@pytest.mark.parametrize("options", [{}, KEPT], ids=["plain", "kept"])
async def test_a_refused_publish_is_logged_once_per_interval(
    url: str, options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hub(with_options(url, **NEVER_AGAIN, **options)) as hub:
        errors = [error async for error in publishing(hub)]
    # A script may have kept the message before it was refused to publish it.
    problem = "the server answered: " if options else "the server refused it: "
    assert all(problem in error for error in errors)
    (line,) = logged(caplog)
    assert line.startswith("redis://")
    assert "has no permissions to run the 'publish' command" in line
    assert "s3cret" not in line


async def test_a_refused_publish_of_a_thread_is_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hub(with_options(url, **NEVER_AGAIN)) as hub:
        assert hub.threads is not None
        hub.threads.lend_soon()

        def publish() -> bool:
            return hub.publish_on_thread(["room"], b"x", False, 20)

        async def until_lent() -> None:
            # The connection is lent when a reply has come, and nothing else is under way.
            while not hub.threads.lent:
                with pytest.raises(PublishError):
                    await hub.publish("room", b"x")
                hub.threads.lend_soon()
                await asyncio.sleep(0)

        await asyncio.wait_for(until_lent(), 20)
        caplog.clear()
        with pytest.raises(PublishError, match="NOPERM"):
            await to_thread(publish)
    (line,) = logged(caplog)
    assert "NOPERM" in line


async def test_a_server_that_is_gone_is_no_refusal(
    fresh_valkey_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hub(fresh_valkey_server.url) as hub:
        await hub.publish("room", b"x")
        await to_thread(fresh_valkey_server.kill)
        # The first one may end as unknown: the connection is lost while it waits.
        for _ in range(2):
            with pytest.raises(PublishError):
                await hub.publish("room", b"x")
    assert logged(caplog) == []
