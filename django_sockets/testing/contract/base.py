"""The base of the contract tests: waivers, URLs, unique channels, brokers without a hub."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import pytest

from ...broker import Broker
from ...deadlines import with_deadline
from .. import ledger

__all__ = [
    "PATIENT",
    "ContractTests",
    "RecordingSink",
    "fence",
    "patient",
    "with_options",
    "with_password",
]

PATIENT: Mapping[str, float] = dict.fromkeys(
    (
        "connect_timeout_seconds",
        "dead_peer_seconds",
        "publish_timeout_seconds",
        "subscribe_timeout_seconds",
    ),
    30.0,
)
"""Options with deadlines so long that a busy machine reaches none of them in a test. A call that
ends early has not waited for a deadline.
"""

FENCE_CHANNELS = 50
"""The channels of one `fence`. In 1 of 10**8 calls, one of 3 servers has none of them."""


def with_options(url: str, **options: object) -> str:
    """Add options to a URL, or to each of several URLs with spaces between them."""
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
    if not query:
        return url
    return " ".join(f"{one}{'&' if '?' in one else '?'}{query}" for one in url.split())


def patient(url: str) -> str:
    """Add the deadlines `PATIENT` to a URL, for tests that expect no fault."""
    return with_options(url, **PATIENT)


def with_password(url: str, username: str, password: str) -> str:
    """Replace the credentials of a URL, or of each of several URLs with spaces between them."""

    def one(url: str) -> str:
        scheme, _, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        hosts = authority.rpartition("@")[2]
        return f"{scheme}://{username}:{quote(password, safe='')}@{hosts}{slash}{path}"

    return " ".join(map(one, url.split()))


class RecordingSink:
    """Records the calls of a broker: ("message", channel, payload) and ("lost", channels)."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self._changed = asyncio.Event()

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.seen += [("message", *item) for item in batch]
        self._changed.set()

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self.seen.append(("lost", tuple(sorted(channels))))
        self._changed.set()

    async def until(self, *wanted: Any) -> None:
        """Wait until `seen` contains this entry."""

        async def look() -> None:
            while wanted not in self.seen:
                self._changed.clear()
                await self._changed.wait()

        try:
            await with_deadline(ledger.PATIENCE_SECONDS, look())
        except asyncio.TimeoutError:
            raise AssertionError(f"{wanted} not among {self.seen[-5:]}") from None

    async def changed(self, count: int) -> None:
        """Wait until `seen` has more than `count` entries."""
        while len(self.seen) <= count:
            self._changed.clear()
            await self._changed.wait()

    def channels(self) -> set[str]:
        """The channels of all messages so far."""
        return {seen[1] for seen in self.seen if seen[0] == "message"}

    def forget(self, channels: Container[str]) -> None:
        """Remove the messages on these channels from `seen`."""
        self.seen[:] = [one for one in self.seen if one[0] != "message" or one[1] not in channels]


async def fence(publisher: Broker, subscriber: Broker, sink: RecordingSink) -> None:
    """Return when every earlier message of `publisher` has reached the sink or is lost.

    Only the messages of one server have an order. The fence publishes a mark on `FENCE_CHANNELS`
    channels with random names, so that each server of the broker serves some of them. It removes
    the marks from `sink.seen`.

    Use it before a test asserts that a message did not arrive. For a message that must arrive,
    wait with `RecordingSink.until`.
    """
    mark = uuid.uuid4()
    channels = [f"fence:{mark.hex}:{number}" for number in range(FENCE_CHANNELS)]
    await subscriber.subscribe(channels)
    await publisher.publish(channels, mark.bytes)
    for channel in channels:
        await sink.until("message", channel, mark.bytes)
    await subscriber.unsubscribe(channels)
    sink.forget(channels)


@pytest.mark.asyncio
class ContractTests:
    """Base of tests on the broker of one URL.

    Attributes:
        url: the URL of the broker; or override the fixture `broker_url`.
        waivers: name of a test method -> the reason why this backend cannot pass it.
    """

    url: ClassVar[str] = ""
    waivers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        unknown = [name for name in cls.waivers if not hasattr(cls, name)]
        if unknown:
            raise TypeError(f"{cls.__name__} waives tests that do not exist: {unknown}")

    @pytest.fixture(autouse=True)
    def _waive(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in self.waivers:
            pytest.skip(f"waived: {self.waivers[name]}")

    @pytest.fixture
    def broker_url(self) -> str:
        return self.url

    @pytest.fixture
    def room(self) -> str:
        """A channel that no other test uses."""
        return f"contract:{uuid.uuid4().hex}"
