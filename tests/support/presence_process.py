"""Processes of `presence_child`, as a test sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from support.presence_child import in_order

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.05


class PresenceProcess:
    """One process.

    Args:
        ports: its connections to the first port of a pair go to the second one.
    """

    def __init__(self, url: str, name: str, ports: Mapping[int, int] | None = None) -> None:
        self._command = [sys.executable, "-m", "support.presence_child", url, name]
        self._ports = ports or {}
        self._turn = asyncio.Lock()
        self.name = name

    async def start(self) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ports = json.dumps(self._ports)
        self.child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "PRESENCE_PORTS": ports},
            limit=2**24,
        )
        assert await self._line() == "ready"

    async def _line(self) -> Any:
        assert self.child.stdout is not None
        line = await self.child.stdout.readline()
        if not line:
            raise ConnectionError(f"{self.name} has ended")
        return json.loads(line)

    async def ask(self, **command: object) -> Any:
        """Run one command of `presence_child.Commands`; commands run one after the other."""
        async with self._turn:
            assert self.child.stdin is not None
            self.child.stdin.write(json.dumps(command).encode() + b"\n")
            return await self._line()

    async def until(self, members: Mapping[str, list[Any]], within_seconds: float = 60) -> Any:
        """Wait until its events and its list have these members.

        Returns:
            Its report then, or the last one.
        """
        wanted, ends = in_order(members), time.monotonic() + within_seconds
        while True:
            await self.ask(members=wanted)
            report = await self.ask(report=True)
            known = (in_order(report["members"]), in_order(report["list"]))
            is_settled = known == (wanted, wanted) and not report["open"]
            if is_settled or time.monotonic() > ends:
                return report
            await asyncio.sleep(LOOK_SECONDS)

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
