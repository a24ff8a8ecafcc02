"""Long-lived tasks continue after an unexpected exception."""

from __future__ import annotations

import asyncio
import logging

import pytest

from django_sockets import PublishError
from django_sockets.backends.client.connection import Connection
from django_sockets.backends.client.supervision import Supervisor
from django_sockets.backends.redis import SingleNodeBroker
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.url import BrokerURL
from unit.test_subscriber import PROBE, ScriptedConnection, ack

URL = BrokerURL.parse("redis://h?log_interval_seconds=1000")


async def test_work_that_raises_begins_again_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = [TypeError("first"), ValueError("second"), None]
    supervisor = Supervisor(URL)

    async def work() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    await asyncio.wait_for(supervisor.keep("the work", work), 5)
    assert outcomes == []
    assert supervisor.failures == 2
    (record,) = caplog.records  # The second one came within the interval.
    assert record.levelno == logging.ERROR
    assert "the work failed unexpectedly" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TypeError)


async def test_work_that_is_cancelled_ends() -> None:
    supervisor = Supervisor(URL)
    task = asyncio.create_task(supervisor.keep("the work", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert supervisor.failures == 0


async def test_an_age_that_cannot_be_had_does_not_end_the_rotation() -> None:
    """A credential provider of an application may raise anything."""
    ages: list[float | None] = [0.01, None]
    links: asyncio.Queue[ScriptedConnection] = asyncio.Queue()

    async def connect() -> Connection:
        link = ScriptedConnection()
        links.put_nowait(link)
        return link

    def age() -> float:
        known = ages.pop(0) if ages else 0.01
        if known is None:
            raise TypeError("no age")
        return known

    broker = SingleNodeBroker(URL, RecordingSink(), open_connection=connect, max_age_seconds=age)
    publishing = asyncio.create_task(broker.publish(["a"], b"x"))
    for _ in range(4):  # Of which the second one came with an error.
        link = await asyncio.wait_for(links.get(), 5)
        if not publishing.done():
            await link.commands(1)
            link.chunks.put_nowait([1])
            await publishing
    await broker.aclose()


async def test_a_connection_that_fails_unexpectedly_is_tried_again() -> None:
    failures = [TypeError("subscribing"), ValueError("and again"), None, TypeError("publishing")]
    links: asyncio.Queue[ScriptedConnection] = asyncio.Queue()

    async def connect() -> Connection:
        failure = failures.pop(0) if failures else None
        if failure is not None:
            raise failure
        link = ScriptedConnection()
        links.put_nowait(link)
        return link

    broker = SingleNodeBroker(URL, RecordingSink(), open_connection=connect)
    subscribing = asyncio.create_task(broker.subscribe(["a"]))
    link = await asyncio.wait_for(links.get(), 5)
    assert await link.commands(1) == [["SUBSCRIBE", "a", PROBE]]
    link.say(*ack("a", PROBE))
    await subscribing
    with pytest.raises(PublishError, match="TypeError"):
        await broker.publish(["a"], b"x")
    publishing = asyncio.create_task(broker.publish(["a"], b"x"))
    link = await asyncio.wait_for(links.get(), 5)
    await link.commands(1)
    link.chunks.put_nowait([1])
    await publishing
    await broker.aclose()
