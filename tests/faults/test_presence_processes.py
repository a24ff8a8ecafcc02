"""Members of processes that are killed, stopped or restarted, on a real server.

Each process tells what its watcher saw. Waits have no limit but that of the test: how long a leave
takes is checked with a moved clock in tests/unit.
"""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections import Counter

import pytest

from django_sockets.testing.servers import CacheServer
from support.presence_process import PresenceProcess, running

pytestmark = pytest.mark.timeout(60)

LEASE = 2


@pytest.fixture
def url(valkey_server: CacheServer) -> str:
    """A namespace of its own on the server, with a short lease."""
    options = f"presence_lease_seconds={LEASE}&presence_grace_seconds=5"
    return f"{valkey_server.url}?prefix=p{uuid.uuid4().hex[:12]}&{options}"


def members_of(process: str, number: int) -> list[str]:
    return [f"{process}-{index}" for index in range(number)]


async def everywhere(processes: list[PresenceProcess], number: int) -> None:
    """Wait until each process knows so many members."""
    await asyncio.gather(*(process.ask(until=number) for process in processes))


async def test_members_of_a_killed_process_leave_once_on_every_watcher(url: str) -> None:
    async with running(url, "a", "b", "c") as processes:
        await asyncio.gather(
            *(process.ask(track=members_of(process.name, 300)) for process in processes)
        )
        await everywhere(processes, 900)
        await processes[0].kill()
        await everywhere(processes[1:], 600)
        left = {*members_of("b", 300), *members_of("c", 300)}
        reaped = 0
        for process in processes[1:]:
            report = await process.ask(report=True)
            assert set(report["members"]) == set(report["list"]) == left
            assert report["wrong"] == []
            told = Counter(report["told"])
            assert {key for key, times in told.items() if times != 1} == set()
            assert {key[1:] for key in told if key[0] == "-"} == set(members_of("a", 300))
            reaped += report["stats"]["presence_reaped"]
        assert reaped == 300


async def test_a_stopped_process_that_comes_back_puts_its_members_again(url: str) -> None:
    async with running(url, "a", "b") as (stopped, other):
        await stopped.ask(track=members_of("a", 50))
        await other.ask(track=members_of("b", 50))
        await everywhere([stopped, other], 100)
        stopped.send_signal(signal.SIGSTOP)
        await other.ask(until=50)
        stopped.send_signal(signal.SIGCONT)
        await everywhere([other], 100)
        await everywhere([stopped], 100)
        reports = [await process.ask(report=True) for process in (stopped, other)]
        for report in reports:
            assert set(report["list"]) == {*members_of("a", 50), *members_of("b", 50)}
            assert report["list"] == report["members"]
            assert report["wrong"] == []
        assert reports[0]["stats"]["presence_replaced"] == 1
        assert {Counter(reports[1]["told"])[f"+{key}"] for key in members_of("a", 50)} == {2}


async def test_nobody_leaves_while_processes_are_restarted_one_after_the_other(url: str) -> None:
    keys = members_of("user", 40)
    async with running(url, "watcher", "old 0", "old 1", "new 0", "new 1") as processes:
        watcher, *others = processes
        old, new = others[:2], others[2:]
        for number, process in enumerate(old):
            await process.ask(track=keys[number::2])
        await watcher.ask(until=40)
        for number, (ending, successor) in enumerate(zip(old, new, strict=True)):
            assert await ending.ask(close=True) == "closed"
            await ending.kill()
            await successor.ask(track=keys[number::2])  # The clients connect again.
        # After the grace, the entries of the old processes are gone, and their members stay.
        infos = {key: [f"new {number % 2}"] for number, key in enumerate(keys)}
        await watcher.ask(members=infos)
        report = await watcher.ask(report=True)
        assert report["list"] == infos
        assert [key for key in report["told"] if key[0] == "-"] == []
        assert report["wrong"] == []


async def test_a_member_with_two_connections_stays_when_one_process_is_killed(url: str) -> None:
    async with running(url, "a", "b") as (killed, other):
        for process in (killed, other):
            await process.ask(track=["ann", process.name])
        await everywhere([other], 3)
        await killed.kill()
        await other.ask(until=2)
        report = await other.ask(report=True)
        assert report["list"] == {"ann": ["b"], "b": ["b"]}
        assert Counter(report["told"])["-ann"] == 0
