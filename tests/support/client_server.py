"""Servers with `support.client_app`, and numbers for their pages.

Times are shortened by servers that ping every 2 s. DJANGO_SOCKETS_CLIENT_PING_SECONDS=25 gives the
times that users have.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django_sockets.broadcaster import Broadcaster
from django_sockets.errors import PublishError
from django_sockets.testing.ports import free_port
from support.client_app import configuration
from support.shop_process import Server, serving

__all__ = ["COMMANDS", "NOTICED_SECONDS", "PING_SECONDS", "Publisher", "client_app"]

ROOT = Path(__file__).resolve().parents[2]
PING_SECONDS = int(os.environ.get("DJANGO_SOCKETS_CLIENT_PING_SECONDS", "2"))
NOTICED_SECONDS = PING_SECONDS + 15
"""A link without life: quiet for the interval of the pings and 10 s, then 5 s without an answer."""
OWN = "django_sockets.servers.uvicorn:WebSocketProtocol"
COMMANDS = {
    "own": ["uvicorn", "support.client_app:application", "--ws", OWN, "--port"],
    "uvicorn": ["uvicorn", "support.client_app:application", "--ws", "websockets-sansio", "--port"],
    "daphne": ["daphne", "support.client_app:application", "--bind", "127.0.0.1", "--port"],
    "hypercorn": ["hypercorn", "support.client_app:application", "--bind"],
    "granian": ["granian", "support.client_app:application", "--interface", "asginl", "--port"],
}


@contextmanager
def client_app(
    folder: Path, broker: str, server: str = "own", port: int | None = None, pages: str = ""
) -> Iterator[Server]:
    port = port or free_port()
    where = f"127.0.0.1:{port}" if server == "hypercorn" else str(port)
    more = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT))),
        "CLIENT_BROKER": broker,
        "CLIENT_PING_SECONDS": str(PING_SECONDS),
        "CLIENT_PAGES": pages,
    }
    command = [sys.executable, "-m", *COMMANDS[server], where]
    with serving(command, port, folder / f"{server}.log", **more) as running:
        yield running
        if server != "hypercorn":  # It prints the tasks that it cancels when it ends.
            assert "Traceback" not in running.printed, running.printed


class Publisher:
    """Publishes numbers from this process. One that is not accepted is published again."""

    def __init__(self, broker: str) -> None:
        # A busy machine may need longer than the usual 10 s for a call whose broker is gone.
        patient = {"sync_call_timeout_seconds": 60}
        self._broadcaster = Broadcaster(config={**configuration(broker), **patient})
        self._ended = threading.Event()
        self.last = 0

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            while True:
                try:
                    self._broadcaster.broadcast(["room:1", "kept:1"], {"n": self.last + 1})
                except PublishError:
                    time.sleep(0.05)  # The broker is away for a moment.
                else:
                    break
            self.last += 1

    @contextmanager
    def steadily(self, pause_seconds: float = 0.02) -> Iterator[None]:
        """Publish on another thread until the block ends."""

        def run() -> None:
            while not self._ended.wait(pause_seconds):
                self.publish()

        self._ended.clear()
        thread = threading.Thread(target=run, name="publisher")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
