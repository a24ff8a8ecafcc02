"""The presence of channels while the server fails."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import pytest

from ...broker import SupportsPresence
from ...deadlines import with_deadline
from ...errors import PresenceError, SubscribeError
from ...presence import ABSENT, LeaseAction, LeaseState, PresenceDiff, PresenceSnapshot
from ...registry import open_broker
from .. import ledger
from .base import RecordingSink, with_options, with_password
from .control import ServerControl
from .faults import FaultTests, quick

__all__ = ["PresenceFaultContract", "PresenceFollower", "follower"]

Answer = TypeVar("Answer")
NEW, RENEW, LOOK = LeaseAction.NEW, LeaseAction.RENEW, LeaseAction.LOOK


class PresenceFollower(RecordingSink):
    """A replica of watched channels, kept by the rules of `PresenceSink`, and by nothing else.

    Attributes:
        url: the URL of the broker.
        broker: the broker of this sink.
        snapshots: number of snapshots so far.
        replicas: channel -> its entries; a channel is missing while they are not known.
        reasons: of the losses.
    """

    broker: SupportsPresence

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.snapshots = 0
        self.replicas: dict[str, PresenceSnapshot] = {}
        self.reasons: list[str] = []

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        if snapshot is None:
            self._ask(channel)
        else:
            self.replicas[channel] = snapshot
            self.snapshots += 1
        self._changed.set()

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        known = self.replicas.get(channel)
        if known is None or (diff.epoch == known.epoch and diff.version <= known.version):
            return  # The snapshot that was asked for contains it.
        if diff.version != known.version + 1 or known.epoch not in (b"", diff.epoch):
            self._ask(channel)
            return
        entries = {**known.entries, **diff.changes}
        kept = {field: value for field, value in entries.items() if value}
        self.replicas[channel] = PresenceSnapshot(diff.epoch, diff.version, kept)
        self._changed.set()

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        self.reasons.append(reason)
        for channel in channels:
            self._ask(channel)
        self._changed.set()

    def _ask(self, channel: str) -> None:
        self.replicas.pop(channel, None)
        self.broker.request_presence(channel)

    async def wait(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds; it is checked at each call of the broker."""

        async def look() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await with_deadline(ledger.PATIENCE_SECONDS, look())

    async def until_equal(self, channel: str) -> PresenceSnapshot:
        """Return the entries of the server once the replica is equal; nobody may change them."""
        truth = (await patiently(lambda: self.broker.read_presence([channel])))[channel]
        await self.wait(lambda: self.replicas.get(channel) == truth)
        return truth


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Repeat a call until the server answers it."""

    async def repeat() -> Answer:
        while True:
            with contextlib.suppress(PresenceError, SubscribeError):
                return await call()
            await asyncio.sleep(0.02)

    return await with_deadline(ledger.PATIENCE_SECONDS, repeat())


@contextlib.asynccontextmanager
async def follower(url: str) -> AsyncIterator[PresenceFollower]:
    """A follower with an open broker."""
    sink = PresenceFollower(url)
    broker = open_broker(url, sink)
    assert isinstance(broker, SupportsPresence)
    sink.broker = broker
    yield sink
    await broker.aclose()


class PresenceFaultContract(FaultTests):
    """The promises of `SupportsPresence` while the server fails."""

    @pytest.fixture
    def own_url(self, server: ServerControl) -> str:
        """The URL with short deadlines, and a prefix that no other test uses."""
        return quick(with_options(server.url, prefix=f"p{uuid.uuid4().hex}"))

    async def test_every_call_to_a_dead_server_fails_with_an_error_of_ours(
        self, server: ServerControl, own_url: str, room: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await server.kill()
        url = with_password(own_url, "someone", "s3cr3t")
        async with follower(url) as watcher:
            broker = watcher.broker
            with pytest.raises(PresenceError) as changed:
                await broker.change_presence(room, {"p:1": b"x"})
            with pytest.raises(PresenceError) as read:
                await broker.read_presence([room, f"{room}:2"])
            with pytest.raises(PresenceError) as leased:
                await broker.lease(broker.lease_server_of(room), "p", NEW, lease_seconds=15)
            with pytest.raises(SubscribeError) as watched:
                await broker.watch_presence([room])
        assert (changed.value.channels, changed.value.unknown) == ((room,), False)
        assert set(read.value.channels) == {room, f"{room}:2"}
        assert leased.value.unknown is False
        assert watched.value.channels == (room,)
        shown = caplog.text
        for caught in (changed, read, leased, watched):
            shown += "".join(traceback.format_exception(caught.value))
        assert "s3cr3t" not in shown
        assert "x02" not in shown  # The name of a watch.

    async def test_a_watcher_that_loses_its_link_misses_nothing(
        self, server: ServerControl, own_url: str, room: str
    ) -> None:
        async with follower(own_url) as watcher, follower(own_url) as other:
            await patiently(lambda: watcher.broker.watch_presence([room]))
            for turn in range(3):
                lost = len(watcher.reasons)
                for number in range(5):
                    change = {f"p:{turn}:{number}": b"x", f"p:{turn - 1}:{number}": b""}
                    await patiently(lambda: other.broker.change_presence(room, change))  # noqa: B023
                    if number == 2:
                        await server.cut_subscribers()
                await watcher.wait(lambda: len(watcher.reasons) > lost)  # noqa: B023 - awaited
                truth = await watcher.until_equal(room)
                assert len(truth.entries) == 5
            await patiently(lambda: other.broker.change_presence(room, {"p:last": b"x"}))
            await watcher.wait(lambda: "p:last" in watcher.replicas.get(room, ABSENT).entries)

    async def test_a_server_that_lost_everything_begins_a_new_epoch(
        self, server: ServerControl, own_url: str, room: str
    ) -> None:
        async with follower(own_url) as watcher:
            broker = watcher.broker
            leases = broker.lease_server_of(room)
            await patiently(lambda: broker.watch_presence([room]))
            first = await patiently(
                lambda: broker.change_presence(room, {"p:1": b"x", "p:2": b"x"})
            )
            await patiently(lambda: broker.lease(leases, "p", NEW, lease_seconds=60))
            await server.kill()
            await server.start()
            renewed = await patiently(lambda: broker.lease(leases, "p", RENEW, lease_seconds=60))
            assert renewed.state is LeaseState.UNKNOWN
            await watcher.wait(lambda: watcher.replicas.get(room) == ABSENT)
            assert watcher.reasons
            # The owner puts its entries again.
            again = await patiently(lambda: broker.change_presence(room, {"p:1": b"x"}))
            assert again.epoch != first.epoch
            assert again.version == 1
            assert (await watcher.until_equal(room)).entries == {"p:1": b"x"}

    async def test_a_lease_server_that_was_frozen_gives_everybody_a_whole_lease(
        self, server: ServerControl, own_url: str, room: str
    ) -> None:
        """With plain keys, the server would remove all of them when it wakes up."""
        async with follower(own_url) as one, follower(own_url) as two:
            leases = one.broker.lease_server_of(room)
            seconds = 0.5
            await patiently(
                lambda: one.broker.lease(leases, "left", LeaseAction.END, lease_seconds=seconds)
            )
            for watcher, process in ((one, "a"), (two, "b")):
                await patiently(
                    lambda: watcher.broker.lease(leases, process, NEW, lease_seconds=seconds)  # noqa: B023
                )
            await server.pause()
            with pytest.raises(PresenceError):
                await one.broker.lease(leases, "a", RENEW, lease_seconds=seconds)
            await asyncio.sleep(2 * seconds)  # Longer than the leases, on any machine.
            await server.resume()
            reply = await patiently(
                lambda: two.broker.lease(leases, "look", LOOK, lease_seconds=seconds)
            )
            assert reply.dead == {"left"}

    async def test_a_paused_server_delays_changes_or_fails_them(
        self, server: ServerControl, own_url: str, room: str
    ) -> None:
        async with follower(own_url) as watcher, follower(own_url) as other:
            await patiently(lambda: watcher.broker.watch_presence([room]))
            await patiently(lambda: other.broker.change_presence(room, {"p:1": b"x"}))
            await server.pause()
            with pytest.raises(PresenceError) as failed:
                await other.broker.change_presence(room, {"p:2": b"x"})
            assert failed.value.channels == (room,)
            await server.resume()
            # Repeating a change that was perhaps made does no harm.
            await patiently(lambda: other.broker.change_presence(room, {"p:2": b"x"}))
            assert (await watcher.until_equal(room)).entries == {"p:1": b"x", "p:2": b"x"}
