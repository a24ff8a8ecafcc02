"""The processes of one measurement, and their use of CPU and memory."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import compiler
from .brokers import Broker
from .client import Wanted
from .environments import ROOT, Peer
from .results import Failed

START_SECONDS = 20.0


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, to a microsecond."""
    # The id of the process's clock is computed as in clock_getcpuclockid(3) of Linux.
    return time.clock_gettime(~pid << 3 | 2)


class Server:
    """A peer's application in a process of its own; use it with `with`.

    Args:
        silent: the application sends no greeting.
        deflate: it compresses what it sends to clients that offer compression.
    """

    def __init__(
        self, peer: Peer, broker: Broker, *, silent: bool = False, deflate: bool = False
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = peer.command(self.port, deflate=deflate)
        self._environ = {**peer.environ(), "BENCH_BROKER_URL": broker.url}
        if silent:
            self._environ["BENCH_SILENT"] = "1"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            self._command, env=self._environ, cwd="/", stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._log.seek(0)
                    words = self._log.read().decode(errors="replace").strip()
                    self.__exit__()
                    raise Failed(f"did not start: {words.rpartition(chr(10))[2]}") from None
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def cpu_seconds(self) -> float:
        """See the function `cpu_seconds`."""
        return cpu_seconds(self._process.pid)

    def memory_bytes(self) -> int:
        """The resident memory of the process."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Clients:
    """The counting client in a process of its own, `client.py`; use it with `with`.

    Attributes:
        started_at, joined_at: `time.perf_counter()` of the first connect, and of the last greeting
            or, without `greets`, of the last handshake.
    """

    def __init__(
        self, port: int, paths: Sequence[str], *, greets: bool = True, deflate: bool = False
    ) -> None:
        library = "" if compiler.missing() else str(compiler.compile_library("count_frames"))
        wanted = Wanted(port, list(paths), greets, deflate, library)
        self._wanted = json.dumps(dataclasses.asdict(wanted))

    def __enter__(self) -> Clients:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client"],
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        try:
            self.ask(self._wanted)
            self.started_at, self.joined_at = self.answer("joined")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def cpu_seconds(self) -> float:
        """See the function `cpu_seconds`."""
        return cpu_seconds(self._process.pid)

    def ask(self, request: str) -> None:
        """Send a request; see the module `client`."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()

    def answer(self, word: str) -> list[float]:
        """Wait for the answer that starts with the word; returns its numbers."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found, *rest = line.split() or [""]
        if found != word:
            raise Failed(" ".join(rest) or "the client has failed")
        return [float(number) for number in rest]
