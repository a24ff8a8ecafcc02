"""The processes of one measurement, and what the kernel says that they used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from .environments import Peer

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0


class Server:
    """A peer's application under uvicorn, in a process of its own; use it with `with`."""

    def __init__(self, peer: Peer, broker_port: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = [
            str(peer.python), "-m", "uvicorn", f"{peer.module}:app",
            "--app-dir", str(ROOT / "benchmarks" / "peers"), "--port", str(self.port),
            "--ws", "websockets-sansio", "--loop", "uvloop", "--log-level", "error",
            "--ws-per-message-deflate", "false", "--ws-ping-interval", "0", "--backlog", "4096",
            "--lifespan", "off",
        ]  # fmt: skip
        self._environment = {**os.environ, **peer.variables, "BENCH_BROKER_PORT": str(broker_port)}

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(self._command, env=self._environment, cwd="/")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.__exit__()
                    raise SystemExit(f"did not start: {' '.join(self._command)}") from None
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """User and system time of all its threads, to a hundredth."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Clients:
    """The counting client in a process of its own; use it with `with`."""

    def __init__(self, port: int, sockets: int, rooms: int) -> None:
        program = str(ROOT / "benchmarks" / "client.py")
        self._command = [sys.executable, program, str(port), str(sockets), str(rooms)]

    def __enter__(self) -> Clients:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        self.joined_seconds = self._answer("joined")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def expect(self, frames: int) -> None:
        """Begin to wait for so many frames in all, the greetings not counted."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"expect {frames}\n")
        self._process.stdin.flush()

    def heard_at(self) -> float:
        """`time.perf_counter()` at which they had come."""
        return self._answer("heard")

    def _answer(self, word: str) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        if not line or line[0] != word:
            raise SystemExit("the client has failed: see above")
        return float(line[1])
