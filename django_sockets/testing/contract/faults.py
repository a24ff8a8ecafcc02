"""The base of the fault tests: short deadlines, traffic during faults, waiting for recovery."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ...delivery.events import Message
from ...errors import PublishError
from ...hub.hub import Hub
from ..ledger import Ledger, Listener
from .base import ContractTests, with_options
from .control import ServerControl

__all__ = [
    "DEAD_PEER_SECONDS",
    "FaultTests",
    "eventually",
    "flow",
    "is_message",
    "quick",
    "traffic",
]

DEAD_PEER_SECONDS = 1.0


def quick(url: str, **options: object) -> str:
    """The URL with deadlines short enough for tests."""
    return with_options(
        url,
        **{
            "dead_peer_seconds": DEAD_PEER_SECONDS,
            "probe_interval_seconds": 0.2,
            "connect_timeout_seconds": 1,
            "publish_timeout_seconds": 1,
            "subscribe_timeout_seconds": 1.5,
            **options,
        },
    )


@contextlib.asynccontextmanager
async def traffic(hub: Hub, ledger: Ledger, *rooms: str) -> AsyncIterator[None]:
    """Publish to the rooms repeatedly while the block runs, also after errors."""
    leaving = False

    async def publish() -> None:
        while not leaving:
            with contextlib.suppress(PublishError):
                await asyncio.gather(*(hub.publish(room, ledger.write(room)) for room in rooms))
            await asyncio.sleep(0.002)

    publishing = asyncio.create_task(publish(), name="traffic")
    try:
        yield
    finally:
        leaving = True
        await publishing


async def flow(
    hub: Hub, ledger: Ledger, heard: Listener, *rooms: str, within_seconds: float = 5.0
) -> None:
    """Publish until a message has been received in each room.

    Raises:
        AssertionError: this did not happen within `within_seconds`.
    """
    give_up = time.monotonic() + within_seconds
    for room in rooms:
        while True:
            payload = ledger.write(room)
            try:
                await hub.publish(room, payload)
                await heard.until_payload(payload, within_seconds=0.2)
                break
            except (PublishError, AssertionError):
                if time.monotonic() > give_up:
                    raise AssertionError(f"nothing flows after {within_seconds:g} s") from None
                await asyncio.sleep(0.01)


async def eventually(
    reach: Callable[[], Awaitable[int]], wanted: int, *, within_seconds: float = 5.0
) -> None:
    """Ask a server until it gives the wanted answer: servers send no events about themselves."""
    give_up = time.monotonic() + within_seconds
    while (answer := await reach()) != wanted:
        if time.monotonic() > give_up:
            raise AssertionError(f"{answer} and not {wanted} after {within_seconds:g} s")
        await asyncio.sleep(0.01)


def is_message(event: object) -> bool:
    """Whether an event is a message rather than a gap."""
    return isinstance(event, Message)


class FaultTests(ContractTests):
    """Base of tests that make a server fail; override the fixture `server`."""

    @pytest.fixture
    def server(self) -> ServerControl:
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `server`")

    @pytest.fixture
    def broker_url(self, server: ServerControl) -> str:
        return server.url
