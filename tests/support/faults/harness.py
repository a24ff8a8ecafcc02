"""Load on a topology during a fault: publishers, one reader and an account of every message.

A fault test looks like this. Any awaitable can be the fault; `nemesis` has random ones.

    async def test_a_killed_primary(cluster):
        async with under_load(quick(cluster.url)) as load:  # a healthy second has passed
            node, *others = await asyncio.to_thread(cluster.primaries)
            spared = load.channels_on(cluster, *others)
            await asyncio.to_thread(node.kill)  # the fault
            await asyncio.to_thread(cluster.wait_promoted, node)
            promoted = load.moment("promoted")  # bounds start here
            await promoted.traffic(within_seconds=1)  # on every channel
            load.expect_untouched(spared)
        # Another healthy second has passed, and every message is accounted for.

`under_load` checks at its end, for any fault:

- No message arrived twice or out of order.
- Each missing message is inside a gap that was delivered after the publish had begun.
- No message arrived if its publish had certainly failed.
- No error was logged, no exception was left unhandled, and no task still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from django_sockets import Gap, Hub, Message, open_hub
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.ledger import Listener, listening
from django_sockets.testing.servers import CacheServer
from django_sockets.testing.slots import slot_of
from support.faults.log_watch import Watch, watching
from support.faults.traffic import LEAST_SHARE, PER_SECOND, Traffic
from support.loop_thread import LoopThread

__all__ = ["CHANNELS", "Load", "Moment", "under_load"]

T = TypeVar("T")

CHANNELS = tuple(f"load:{number}" for number in range(200))
PUBLISHERS = 2
HEALTHY_SECONDS = 1.0
HEALTHY_TRIES = 10
BEYOND_SECONDS = 3.0
"""How much longer than a bound to wait, because by how much it is missed says what went wrong."""


class Moment:
    """A point in time. `traffic` measures the time from it until messages arrive again.

    Attributes:
        at: its loop time.
        event: its index in the reader's events.
    """

    def __init__(self, load: Load, name: str) -> None:
        self.name = name
        self.at = load.now
        self.event = len(load.heard.events)
        self._after = {ledger.name: ledger.last for ledger in load.traffic.ledgers}
        self._load = load

    @property
    def seconds(self) -> float:
        """Seconds since this moment."""
        return self._load.now - self.at

    async def traffic(
        self, *, within_seconds: float, channels: Collection[str] = CHANNELS
    ) -> float:
        """Wait until a message published after this moment has arrived on each channel.

        Returns:
            Seconds from this moment to then.

        Raises:
            AssertionError: it took longer than the bound.
        """
        silent = set(channels)

        def all_heard(event: object) -> bool:
            if isinstance(event, Message) and event.channel in silent:
                name, number, _ = event.payload.split(b" ", 2)
                if int(number) > self._after[name.decode()]:
                    silent.discard(event.channel)
            return not silent

        patience = within_seconds + BEYOND_SECONDS - self.seconds
        with contextlib.suppress(AssertionError):
            await self._load.heard.until(all_heard, start=self.event, within_seconds=patience)
        seconds = self.seconds
        told = f"traffic {seconds:.2f} s after {self.name}, bound {within_seconds:g} s"
        print(told, flush=True)
        happened = self._load.describe(self)
        assert not silent, f"no {told}: {len(silent)} channels are silent, {happened}"
        assert seconds <= within_seconds, f"{told}: {happened}"
        return seconds


class Load:
    """The state of one `under_load`.

    Attributes:
        reader: the hub that subscribes.
        heard: its events.
        traffic: the publishes and their results.
        watch: the log.
        may_replay: a server may repeat messages that it had queued when it stopped, because
            SPUBLISH goes to the whole shard, including the new primary. The hub must drop them.
    """

    def __init__(
        self, reader: Hub, heard: Listener, traffic: Traffic, watch: Watch, on_thread: _OnThread
    ) -> None:
        self._on_thread = on_thread
        self.reader = reader
        self.heard = heard
        self.traffic = traffic
        self.watch = watch
        self.may_replay = False
        self._loop = asyncio.get_running_loop()
        self._spared: list[tuple[Moment | None, frozenset[str]]] = []

    @property
    def now(self) -> float:
        """The loop time."""
        return self._loop.time()

    def moment(self, name: str) -> Moment:
        """Record the present as a `Moment`."""
        return Moment(self, name)

    def channels_on(self, cluster: CacheCluster, *nodes: CacheServer) -> list[str]:
        """Return the channels of the load whose slots these nodes serve now."""
        spans = [span for node in nodes for span in cluster.slots_of(node)]
        return [c for c in CHANNELS if any(a <= slot_of(c) <= b for a, b in spans)]

    def expect_untouched(self, channels: Collection[str], since: Moment | None = None) -> None:
        """At the end, check that these channels had no gap and no failed publish after `since`."""
        assert channels, "there is no channel to prove it with"
        self._spared.append((since, frozenset(channels)))

    def gaps(self, since: Moment | None = None) -> list[Gap]:
        """Return the gaps so far, or those after `since`."""
        start = 0 if since is None else since.event
        return [event for event in self.heard.events[start:] if isinstance(event, Gap)]

    def describe(self, since: Moment) -> str:
        """Describe what has happened since the start."""
        ended = [f for f in self.traffic.failures if f.began + f.seconds >= since.at]
        problems = Counter(failure.problem for failure in ended)
        reasons = Counter(gap.reason for gap in self.gaps(since))
        return f"{len(ended)} publishes failed {dict(problems)}, gaps {dict(reasons)}"

    async def healthy(self) -> None:
        """Run until nothing has failed for a whole second.

        A busy machine or another vote of the sentinels costs another second. Failures of that time
        are accounted for like all others.

        Raises:
            AssertionError: there was no such second; a publish failed in each, or fewer than
                LEAST_SHARE of the schedule were accepted.
        """
        troubles: list[str] = []
        while trouble := await self._trouble():
            troubles.append(trouble)
            print(trouble, flush=True)
            assert len(troubles) < HEALTHY_TRIES, troubles

    async def _trouble(self) -> str:
        """Describe what failed in the next second. The text is empty if nothing did."""
        traffic, began, accepted = self.traffic, self.now, self.traffic.accepted
        await asyncio.sleep(HEALTHY_SECONDS)
        rate = (traffic.accepted - accepted) / (self.now - began)
        # A call from before this phase may fail in it.
        failed = [failure for failure in traffic.failures if failure.began >= began]
        if failed:
            return f"{len(failed)} publishes failed for no reason: {failed[:3]}"
        if rate < LEAST_SHARE * traffic.per_second:
            return f"{rate:.0f} messages/s are too few to prove anything"
        return ""

    async def last_words(self) -> None:
        """Publish a final message of each publisher on each channel."""
        start = len(self.heard.events)
        missing = await self._on_thread(self.traffic.last_words())

        def was_last(event: object) -> bool:
            if isinstance(event, Message):
                missing.discard((event.channel, event.payload))
            return not missing

        await self.heard.until(was_last, start=start)

    def check(self) -> None:
        """Account for every message, as the docstring of the module says.

        Raises:
            AssertionError: a promise was broken.
        """
        missing = self.heard.check(*self.traffic.ledgers)
        refused = {
            (f.publisher, f.channel, f.number) for f in self.traffic.failures if not f.unknown
        }
        arrived = sorted(refused.difference(missing))
        assert not arrived, f"these were refused, and arrived: {arrived[:5]}"
        for since, spared in self._spared:
            for gap in self.gaps(since):
                hit = spared.intersection(gap.channels)
                assert not hit, f"a gap where nothing had happened: {sorted(hit)[:5]}, {gap}"
            for failure in self.traffic.failures:
                excused = since is not None and failure.began < since.at
                assert excused or failure.channel not in spared, f"for no reason: {failure}"
        late = self.reader.stats()["dropped_late"]
        assert self.may_replay or not late, (
            f"{late} messages came late or twice, and had to be dropped"
        )
        traffic = self.traffic
        print(
            f"{traffic.accepted} accepted, {len(traffic.failures)} failed, {len(refused)} of them "
            f"for certain, {traffic.skipped} skipped, {len(missing)} in {len(self.gaps())} gaps, "
            f"{late} dropped late",
            flush=True,
        )


class _OnThread:
    """Awaits coroutines on the event loop of a thread, or on the running loop without one."""

    def __init__(self, thread: LoopThread | None) -> None:
        self._thread = thread

    async def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._thread is None:
            return await coroutine
        return await asyncio.wrap_future(self._thread.start(coroutine))


@contextlib.asynccontextmanager
async def under_load(
    url: str,
    *,
    quiet: Sequence[str] = (),
    publishers_url: str | None = None,
    publishers_thread: LoopThread | None = None,
    per_second: int = PER_SECOND,
) -> AsyncIterator[Load]:
    """Publish on CHANNELS inside an `async with`, and check all messages at its end.

    Args:
        quiet: more channels to subscribe to. Nothing is published on them.
        publishers_url: the URL that the publishers use. The default is `url`.
        publishers_thread: the thread of the publishers. The default is the loop of the reader.
        per_second: how many messages to publish in a second.
    """
    # A full queue of events would cause a gap, too, but not because of the server.
    reader_url = with_options(url, events_queue_size=1 << 20)
    with watching() as watch:
        async with contextlib.AsyncExitStack() as stack:
            reader = await stack.enter_async_context(open_hub(reader_url))
            heard = await stack.enter_async_context(listening(reader, *CHANNELS, *quiet))
            on_thread = _OnThread(publishers_thread)
            traffic = await on_thread(
                Traffic.start(publishers_url or url, PUBLISHERS, CHANNELS, per_second)
            )
            stack.push_async_callback(lambda: on_thread(traffic.aclose()))
            load = Load(reader, heard, traffic, watch, on_thread)
            running = asyncio.create_task(on_thread(traffic.run()), name="traffic")
            try:
                # The first messages open the connections.
                await load.moment("the start").traffic(within_seconds=2)
                await load.healthy()
                yield load
                await load.healthy()
            finally:
                traffic.stop()
                await running
            await load.last_words()
            load.check()
        watch.check()
