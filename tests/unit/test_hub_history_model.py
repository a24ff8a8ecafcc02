"""A model of a hub with a history: random faults, failovers and resumes.

Each subscriber sees a part of what was published, without repetition, in the order of each
publisher, and each loss is followed by a gap. A subscriber that is told `recovered` has everything.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from django_sockets import Gap, Hub, Recovery, open_hub
from django_sockets.backends.memory_history import MemoryHistory
from django_sockets.delivery.events import EventQueue
from django_sockets.delivery.message import Delivery
from django_sockets.testing import Faults

ROOM = "kept:1"
_names = itertools.count()


class View:
    """One subscriber, and what it was told.

    Attributes:
        since: the number of the first message that it must have.
        joined: the number of messages that had been published when it joined.
        heard: numbers of the messages in their order.
        last_gap: the number of messages published before its last gap; -1 without a gap.
    """

    def __init__(self, queue: EventQueue) -> None:
        self.queue = queue
        self.since = 0
        self.heard: list[int] = []
        self.last_gap = -1

    def look(self, published: int) -> list[Delivery | Gap]:
        """Take the new events."""
        events = self.queue.drain()
        for event in events:
            if isinstance(event, Gap):
                self.last_gap = published
            else:
                self.heard.append(int(event.payload))
        return events


class World:
    """A hub that reads, two that publish, and the history of the bus between them.

    Attributes:
        places: each known position, and the number of the message that follows on it.
    """

    def __init__(self, reader: Hub, publishers: Sequence[Hub], faults: Faults) -> None:
        self.reader = reader
        self.publishers = publishers
        self.faults = faults
        self.bus: Any = publishers[0]._broker._bus  # type: ignore[attr-defined]
        self.replica = copy.deepcopy(self.bus.history)
        self.published = 0
        self.places: list[tuple[str, int]] = []
        self.views: list[View] = []
        self.left: list[View] = []

    # Steps

    async def publish(self, publisher: int) -> None:
        await self.publishers[publisher].publish(ROOM, b"%d" % self.published)
        self.published += 1

    async def burst(self, publisher: int, count: int) -> None:
        for _ in range(count):
            await self.publish(publisher)
        await self.settle()

    async def drop(self, messages: int) -> None:
        self.faults.drop(messages)

    async def disconnect(self, messages: int) -> None:
        self.faults.disconnect(messages)

    async def repeat(self) -> None:
        self.faults.replay()

    async def cut(self) -> None:
        self.faults.gap()

    async def unreadable(self, heals: bool) -> None:
        self.faults.heals = heals

    async def evict(self) -> None:
        self.bus.history.remove(ROOM)

    async def replicate(self) -> None:
        self.replica = copy.deepcopy(self.bus.history)

    async def promote(self) -> None:
        """The replica takes over; acknowledged writes behind the last replication are gone."""
        await self.settle()
        self.bus.history, self.replica = self.replica, self.bus.history
        self.bus.history.id = MemoryHistory().id
        self.replica = copy.deepcopy(self.bus.history)
        self.faults.gap()

    async def subscribe(self, place: int, replay: int) -> None:
        view = View(self.reader.new_queue())
        since, number = (None, 0)
        if self.places and place:
            since, number = self.places[place % len(self.places)]
        found = await self.reader.add(view.queue, ROOM, since=since, replay=replay)
        recovery: Recovery = found[ROOM]
        joined = self.published
        if recovery.recovered:
            # A recent read of another subscriber may serve this one. The messages that are on their
            # way to the hub come behind it, as to that subscriber.
            joined = number + recovery.count
        events = view.look(self.published)
        self.views.append(view)
        view.since = joined
        if recovery.position is not None:
            self.places.append((recovery.position, joined))
        if since is None:
            assert not recovery.recovered
            return
        if recovery.recovered:
            assert view.heard[: recovery.count] == list(range(number, joined))
            whole = list(range(number, number + len(view.heard)))
            assert view.heard == whole, "recovered, and not whole"
        else:
            assert isinstance(events[0], Gap)

    async def leave(self, view: int) -> None:
        if self.views:
            await self.settle()
            gone = self.views.pop(view % len(self.views))
            await self.reader.remove(gone.queue)
            self.left.append(gone)

    # The end

    async def settle(self) -> None:
        """Let everything that was published arrive."""
        for _ in range(30):
            await asyncio.sleep(0)
        for view in self.views:
            for event in view.look(self.published):
                if isinstance(event, Delivery) and event.position is not None:
                    self.places.append((event.position, int(event.payload) + 1))

    async def finish(self) -> None:
        self.faults.stop()
        self.faults.heals = True
        for _ in range(2):
            for publisher in range(len(self.publishers)):
                await self.publish(publisher)
                await self.settle()
        await self.settle()

    def check(self) -> None:
        for view in self.views:
            assert len(set(view.heard)) == len(view.heard), "repeated"
            assert view.heard == sorted(view.heard), "out of order"
            for number in set(range(view.since, self.published)).difference(view.heard):
                assert number < view.last_gap, f"{number} is lost without a gap"
        for view in self.left:
            assert not view.queue.drain(), "something after it has left"
            assert len(set(view.heard)) == len(view.heard), "repeated"


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


PUBLISHER = st.sampled_from([0, 1])
PLACE = st.integers(0, 40)
SUBSCRIBE = step("subscribe", place=PLACE, replay=st.just(0))
HEALED = [
    step("publish", publisher=PUBLISHER),
    step("burst", publisher=PUBLISHER, count=st.integers(1, 5)),
    step("drop", messages=st.integers(1, 3)),
    step("disconnect", messages=st.integers(1, 3)),
    step("repeat"),
    step("cut"),
    SUBSCRIBE,
    step("leave", view=st.integers(0, 5)),
]
FAULTS = [
    *HEALED,
    step("evict"),
    step("replicate"),
    step("promote"),
    step("unreadable", heals=st.booleans()),
]


async def run(steps: Sequence[tuple[str, Any]], messages: int) -> World:
    source = {
        "url": f"memory://hub-model-{next(_names)}",
        "history": {"kept:": {"messages": messages, "seconds": 60}},
    }
    faults = Faults()
    async with (
        open_hub(source) as one,
        open_hub(source) as two,
        open_hub(faults.around(source)) as reader,
    ):
        world = World(reader, (one, two), faults)
        await world.subscribe(0, 0)
        for name, arguments in steps:
            await getattr(world, name)(**arguments)
        await world.finish()
        world.check()
    return world


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(HEALED), max_size=30))
def test_faults_of_the_link_lose_nothing_and_every_position_resumes(
    steps: list[tuple[str, Any]],
) -> None:
    world = asyncio.run(run(steps, messages=1000))
    for view in world.views:
        assert view.last_gap == -1


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(FAULTS), max_size=30), st.sampled_from([1, 3, 1000]))
def test_every_loss_is_followed_by_a_gap_and_recovered_means_whole(
    steps: list[tuple[str, Any]], messages: int
) -> None:
    asyncio.run(run(steps, messages))
