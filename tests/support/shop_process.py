"""The project `tests/django/shop` in other processes, because the test process has no settings."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FOLDER = Path(__file__).resolve().parents[1] / "django"
WAIT_SECONDS = 45
MANAGE = [sys.executable, "-m", "django"]

PRELUDE = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
"""


def environment(settings: dict[str, Any] | None = None, **more: str) -> dict[str, str]:
    names = ("DJANGO_SOCKETS_URL", "WEB_CONCURRENCY", "DJANGO_RUNSERVER_HIDE_WARNING")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return {
        **clean,
        "PYTHONPATH": str(FOLDER),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "SHOP_SETTINGS": json.dumps(settings or {}),
        **more,
    }


def run(
    command: list[str], settings: dict[str, Any] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(settings, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )


def script(code: str, settings: dict[str, Any] | None = None, **more: str) -> str:
    """Run code after Django's setup and migrations. It must succeed; the output is returned."""
    ended = run([sys.executable, "-c", PRELUDE + textwrap.dedent(code)], settings, **more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


class Server:
    """A server process and its output."""

    def __init__(
        self, process: subprocess.Popen[str], log: Path, port: int, host: str = "127.0.0.1"
    ) -> None:
        self.process, self.log, self.port, self.host = process, log, port, host

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=WAIT_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def browser(self, path: str, origin: str | None = None) -> ClientConnection:
        own = f"http://127.0.0.1:{self.port}"
        url = own.replace("http", "ws") + path
        return connect(url, origin=origin or own, proxy=None, open_timeout=WAIT_SECONDS)  # type: ignore[arg-type]

    @contextmanager
    def in_room(self, room: int) -> Iterator[ClientConnection]:
        """Connect as a browser that has subscribed to a room."""
        with self.browser(f"/ws/{room}/") as client:
            assert hear(client) == "ready"
            yield client

    def wait_until_it_answers(self) -> None:
        ends = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if self.get("/")[0]:
                    return
            except OSError:
                time.sleep(0.05)  # The server offers no event to wait for.
        pytest.fail(f"the server does not answer:\n{self.printed}")

    def wait_for(self, text: str, times: int = 1) -> None:
        ends = time.monotonic() + WAIT_SECONDS
        while self.printed.count(text) < times:
            if time.monotonic() > ends:
                pytest.fail(f"{text!r} was not printed:\n{self.printed}")
            time.sleep(0.02)

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def serving(
    command: list[str],
    port: int,
    log: Path,
    settings: dict[str, Any] | None = None,
    host: str = "127.0.0.1",
    **more: str,
) -> Iterator[Server]:
    """Run a server until the block ends. All of its processes end then."""
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            env=environment(settings, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        ) as process,
    ):
        server = Server(process, log, port, host)
        try:
            server.wait_until_it_answers()
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def hear(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=WAIT_SECONDS))


def say(client: ClientConnection, data: Any) -> None:
    client.send(json.dumps(data))
