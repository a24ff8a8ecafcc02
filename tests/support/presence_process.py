"""A process with one hub that tracks members of a channel and watches it.

It reads commands as lines of JSON, and answers each with one line: `{"track": [keys]}`,
`{"until": number}` waits until it knows so many members, `{"members": {...}}` until it knows these,
`{"report": true}`, `{"close": true}` closes the hub and ends. Run it as
`python -m support.presence_process URL NAME`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from django_sockets import Hub, open_hub
from django_sockets.delivery.events import Events, Presence

ROOM = "room"
ROOT = Path(__file__).resolve().parents[2]


class Watcher:
    """The members, as the events tell them."""

    def __init__(self, events: Events) -> None:
        recovery = events.recoveries[ROOM]
        self.members = dict(recovery.presence or {})
        self.told: Counter[str] = Counter(f"+{key}" for key in self.members)
        self.wrong: list[str] = []
        self.gaps = 0
        self._events = events
        self._changed = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        async for event in self._events:
            if not isinstance(event, Presence):
                self.gaps += 1
                continue
            self.wrong += [f"+{key}" for key in event.joined if key in self.members]
            self.wrong += [f"-{key}" for key in event.left if key not in self.members]
            self.members |= {**event.joined, **event.updated}
            for key in event.left:
                del self.members[key]
            self.told.update(f"+{key}" for key in event.joined)
            self.told.update(f"-{key}" for key in event.left)
            self._changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()


async def answer(command: dict[str, Any], hub: Hub, watcher: Watcher, name: str) -> Any:
    if "track" in command:
        await asyncio.gather(*(hub.track(ROOM, key, name) for key in command["track"]))
    elif "until" in command:
        await watcher.until(lambda: len(watcher.members) == command["until"])
    elif "members" in command:
        await watcher.until(lambda: watcher.members == command["members"])
    elif "report" in command:
        return {
            "members": watcher.members,
            "list": await hub.presence(ROOM),
            "told": watcher.told,
            "wrong": watcher.wrong,
            "gaps": watcher.gaps,
            "stats": hub.stats(),
        }
    return None


async def serve(url: str, name: str) -> None:
    loop = asyncio.get_running_loop()
    async with open_hub(url) as hub, hub.subscribe(ROOM, presence=True) as events:
        watcher = Watcher(events)
        print(json.dumps("ready"), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            if "close" in command:
                break
            print(json.dumps(await answer(command, hub, watcher, name)), flush=True)
        watcher.task.cancel()
    print(json.dumps("closed"), flush=True)


class PresenceProcess:
    """The process, as a test sees it."""

    def __init__(self, url: str, name: str) -> None:
        self._command = [sys.executable, "-m", "support.presence_process", url, name]
        self.name = name

    async def start(self) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            limit=2**24,
        )
        assert await self._line() == "ready"

    async def _line(self) -> Any:
        assert self.child.stdout is not None
        return json.loads(await self.child.stdout.readline())

    async def ask(self, **command: object) -> Any:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(command).encode() + b"\n")
        return await self._line()

    def send_signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def kill(self) -> None:
        if self.child.returncode is None:
            self.child.kill()
        await self.child.wait()
        with contextlib.suppress(OSError):
            assert self.child.stdin is not None
            self.child.stdin.close()


@contextlib.asynccontextmanager
async def running(url: str, *names: str) -> AsyncIterator[list[PresenceProcess]]:
    """Processes for the length of a test."""
    processes = [PresenceProcess(url, name) for name in names]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield processes
    finally:
        for process in processes:
            if hasattr(process, "child"):
                await process.kill()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
