"""Real ASGI servers, each in its own process, for tests with many clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import websockets

from django_sockets.testing.ports import free_port

__all__ = ["ServerProcess", "serve"]

COMMANDS = {
    "uvicorn": ["uvicorn", "{app}", "--port", "{port}", "--ws", "websockets-sansio"],
    "gunicorn": [
        *("gunicorn", "{app}", "--bind", "127.0.0.1:{port}", "--workers", "2"),
        *("--worker-class", "uvicorn_worker.UvicornWorker"),
    ],
    "uvicorn-frames": [
        *("uvicorn", "{app}", "--port", "{port}"),
        *("--ws", "django_sockets.servers.uvicorn:WebSocketProtocol"),
    ],
    "gunicorn-frames": [
        *("gunicorn", "{app}", "--bind", "127.0.0.1:{port}", "--workers", "2"),
        *("--worker-class", "django_sockets.servers.gunicorn.UvicornWorker"),
    ],
    "hypercorn": ["hypercorn", "{app}", "--bind", "127.0.0.1:{port}"],
    "daphne": ["daphne", "--bind", "127.0.0.1", "--port", "{port}", "{app}"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "{app}"],
}


class ServerProcess:
    """A server process and its output."""

    def __init__(self, process: subprocess.Popen[str], log: Path, port: int) -> None:
        self.process, self.log, self.port = process, log, port

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def memory_bytes(self) -> int:
        """The resident memory at present. It works on Linux only."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def connect(self, path: str = "/", **options: Any) -> Any:
        """Connect a client as soon as the server accepts one."""
        give_up = time.monotonic() + 20
        address = f"ws://127.0.0.1:{self.port}{path}"
        options = {"compression": None, "proxy": None, "open_timeout": 30, **options}
        while True:
            try:
                return await websockets.connect(address, **options)
            except OSError:
                assert time.monotonic() < give_up, f"it did not start:\n{self.printed}"
                assert self.process.poll() is None, self.printed
                await asyncio.sleep(0.05)

    async def terminate(self, seconds: float) -> int:
        """Send SIGTERM, as a supervisor does, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, seconds)


@contextlib.asynccontextmanager
async def serve(
    server: str, source: str, folder: Path, *options: str, **environment: str
) -> AsyncIterator[ServerProcess]:
    """Serve the `application` of `source`. All processes that are left at the end are killed."""
    (folder / "served.py").write_text(source)
    port, log = free_port(), folder / "log"
    words = [word.format(app="served:application", port=port) for word in COMMANDS[server]]
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
            [sys.executable, "-m", *words, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
    try:
        yield ServerProcess(process, log, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
