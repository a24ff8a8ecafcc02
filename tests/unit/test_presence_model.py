"""A model of presence: random joins, leaves, crashes and losses, with a clock that is moved.

Without faults, the members that each watcher knows are those that they should be after every step.
With faults, they are so at the end, and each event on the way is a transition of what the watcher
knew before: nobody joins twice or leaves twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from django_sockets.errors import PresenceError
from support.presence_world import GRACE, LEASE, ROOM, Process, World, world_of


class Model:
    """The processes, and the entries that should be present.

    Attributes:
        wanted: (process, entry) -> (key, info).
        leaving: (process, entry) -> the time at which its grace ends.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.wanted: dict[tuple[Process, str], tuple[str, int]] = {}
        self.leaving: dict[tuple[Process, str], float] = {}
        self.dead: list[str] = []
        self.keys: set[str] = set()

    def process(self, number: int) -> Process:
        return self.world.living[number % len(self.world.living)]

    # Steps

    async def track(self, process: int, key: str, entry: str, info: int) -> None:
        one = self.process(process)
        member = one, entry
        # Other processes see only a real change.
        seen = self.wanted.get(member) != (key, info)
        for other in [o for o in self.leaving if self.wanted[o][0] == key and o != member]:
            if seen or other[0] is one:
                del self.wanted[other], self.leaving[other]
        before, was_leaving = self.wanted.get(member), self.leaving.pop(member, None)
        self.wanted[member] = key, info
        try:
            await one.hub.track(ROOM, key, info, entry=entry)
        except PresenceError:
            if before is None:
                del self.wanted[member]
            else:
                self.wanted[member] = before
                if was_leaving is not None:
                    self.leaving[member] = self.world.clock.now + GRACE

    async def untrack(self, process: int, entry: str) -> None:
        one = self.process(process)
        self.wanted.pop((one, entry), None)
        self.leaving.pop((one, entry), None)
        await one.hub.untrack(ROOM, entry)

    async def release(self, process: int, entry: str) -> None:
        member = self.process(process), entry
        if member in self.wanted and member not in self.leaving:
            stays = any(
                other[0] is member[0]
                and other != member
                and other not in self.leaving
                and self.wanted[other][0] == self.wanted[member][0]
                for other in self.wanted
            )
            if stays:
                del self.wanted[member]
            else:
                self.leaving[member] = self.world.clock.now + GRACE
        member[0].hub.release(entry)

    async def wait(self, seconds: float) -> None:
        await self.world.move(seconds)
        for member, due in list(self.leaving.items()):
            if due <= self.world.clock.now:
                del self.wanted[member], self.leaving[member]

    # Faults

    async def crash(self, process: int) -> None:
        if len(self.world.living) == 1:
            return
        one = self.process(process)
        self.dead.append(one.id)
        await one.crash()
        for member in [member for member in self.wanted if member[0] is one]:
            self.leaving.pop(member, None)
            del self.wanted[member]
        await self.world.start()

    async def write_late(self, key: str) -> None:
        if self.dead:
            self.world.write_late(self.dead[-1], key)

    async def end_lease(self, process: int) -> None:
        self.world.end_lease(self.process(process))

    async def drop(self, process: int, diffs: int) -> None:
        self.process(process).faults.drop_presence(diffs)

    async def lose(self, process: int) -> None:
        self.process(process).faults.gap()

    async def restart_server(self) -> None:
        self.world.bus.presence.forget(ROOM)
        for process in self.world.living:
            process.faults.gap()

    async def evict(self) -> None:
        self.world.bus.presence.forget(ROOM)

    async def refuse(self, process: int, calls: int) -> None:
        self.process(process).faults.refuse_presence_calls(calls)

    async def lose_reply(self, process: int, calls: int) -> None:
        self.process(process).faults.lose_presence_replies(calls)

    # Checks

    def members(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key, info in self.wanted.values():
            found.setdefault(key, []).append(info)
        return {key: sorted(infos) for key, infos in found.items()}

    def check(self) -> None:
        for process in self.world.living:
            known = {key: sorted(infos) for key, infos in process.view.members.items()}
            assert known == self.members()
        assert len(self.world.entries) == len(self.wanted)

    async def finish(self) -> None:
        for process in self.world.living:
            process.faults.stop()
        # One change more, by which watchers notice what was lost without a sign.
        await self.track(0, "last", "last", 0)
        await self.wait(1)
        await self.untrack(0, "last")
        await self.wait(GRACE)
        await self.wait(LEASE + 2)
        self.check()


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


PROCESS = st.integers(0, 2)
KEY = st.sampled_from(["ann", "bob"])
ENTRY = st.sampled_from(["1", "2", "3"])
WHOLE = [
    step("track", process=PROCESS, key=KEY, entry=ENTRY, info=st.integers(0, 2)),
    step("track", process=PROCESS, key=KEY, entry=ENTRY, info=st.integers(0, 2)),
    step("untrack", process=PROCESS, entry=ENTRY),
    step("release", process=PROCESS, entry=ENTRY),
    step("wait", seconds=st.sampled_from([0, 0.4, 3, 6, 10, 20])),
]
FAULTS = [
    *WHOLE,
    step("crash", process=PROCESS),
    step("write_late", key=KEY),
    step("end_lease", process=PROCESS),
    step("drop", process=PROCESS, diffs=st.integers(1, 2)),
    step("lose", process=PROCESS),
    step("restart_server"),
    step("evict"),
    step("refuse", process=PROCESS, calls=st.integers(1, 3)),
    step("lose_reply", process=PROCESS, calls=st.integers(1, 3)),
]


async def run(steps: Sequence[tuple[str, Any]], *, whole: bool) -> None:
    async with world_of(3) as world:
        model = Model(world)
        for name, arguments in steps:
            await getattr(model, name)(**arguments)
            if whole:
                await model.wait(0)
                model.check()
            else:
                with contextlib.suppress(IndexError):
                    await asyncio.sleep(0)
        await model.finish()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(WHOLE), max_size=25))
def test_every_watcher_knows_the_members_after_each_step(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(run(steps, whole=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(FAULTS), max_size=25))
def test_after_any_faults_every_watcher_knows_the_members(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(run(steps, whole=False))
