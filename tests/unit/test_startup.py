"""The log names the broker at start, and warns of memory:// with several worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_sockets.conf import load_config
from django_sockets.integration import ProtocolTypeRouter
from django_sockets.runtime import startup
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.ports import free_port

APP = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from django_sockets.sockets import BaseSocketServer

class Echo(BaseSocketServer):
    pass

async def application(scope, receive, send):
    async def said(event):
        print(event["type"], flush=True)
        await send(event)
    await Echo.as_asgi(scope, receive, said)
"""
STARTED = "lifespan.startup.complete"
CALLED = """
import uvicorn
if __name__ == "__main__":
    uvicorn.run("app:application", port=int(__import__("sys").argv[1]), workers=2, log_config=None)
"""
SEVERAL = "several worker processes"


def command(*words: str) -> list[str]:
    port = str(free_port())
    return [sys.executable, *(word.replace("PORT", port) for word in words)]


@contextlib.contextmanager
def started(folder: Path, *words: str, **environment: str) -> Iterator[Iterator[str]]:
    """A server; yields the lines that it prints."""
    (folder / "app.py").write_text(APP)
    (folder / "called.py").write_text(CALLED)
    (folder / "workers.py").write_text("workers = 2\n")
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SOCKETS_URL"}
    with subprocess.Popen(
        command(*words),
        cwd=folder,
        env={**clean, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield iter(process.stdout)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


UVICORN = ("-m", "uvicorn", "app:application", "--port", "PORT", "--log-level", "warning")
HYPERCORN = ("-m", "hypercorn", "app:application", "--bind", "127.0.0.1:PORT")
GRANIAN = ("-m", "granian", "app:application", "--interface", "asgi", "--port", "PORT")
GUNICORN = (
    "-m", "gunicorn", "app:application", "-k", "uvicorn_worker.UvicornWorker",
    "--bind", "127.0.0.1:PORT",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        ((*UVICORN, "--workers", "2"), {}),
        (UVICORN, {"WEB_CONCURRENCY": "2"}),
        (("called.py", "PORT"), {}),
        ((*GUNICORN, "--config", "workers.py"), {}),
        ((*HYPERCORN, "--workers", "2"), {}),
        ((*GRANIAN, "--workers", "2"), {}),
    ],
    ids=["uvicorn", "WEB_CONCURRENCY", "uvicorn.run", "gunicorn", "hypercorn", "granian"],
)
def test_memory_under_several_workers_is_a_warning(
    words: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    with started(tmp_path, *words, **environment) as lines:
        assert any(line.startswith("WARNING the broker is memory://") for line in lines)


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (UVICORN, {}),
        ((*UVICORN, "--reload"), {"WEB_CONCURRENCY": "2"}),
        (HYPERCORN, {}),
        ((*UVICORN, "--workers", "2"), {"DJANGO_SOCKETS_URL": "redis://:opensesame@localhost"}),
    ],
    ids=["one worker", "reload", "hypercorn", "a cache"],
)
def test_one_worker_or_a_cache_is_none(
    words: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    with started(tmp_path, *words, **environment) as lines:
        printed = []
        for line in lines:
            printed.append(line.strip())
            if line.startswith(STARTED):
                break
    found = [line for line in printed if "the broker is" in line]
    if "DJANGO_SOCKETS_URL" in environment:
        source = "from the environment variable DJANGO_SOCKETS_URL"
        expected = f"INFO the broker is redis://:***@localhost ({source})"
    else:
        expected = "INFO the broker is memory:// (the built-in default)"
    assert expected in found, printed
    assert not [line for line in found if SEVERAL in line]


# In this process


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    monkeypatch.setattr(startup, "_announced", set())
    caplog.set_level(logging.INFO, "django_sockets")
    return caplog


async def start(app: Any) -> None:
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "lifespan.startup"})
    incoming.put_nowait({"type": "lifespan.shutdown"})

    async def send(event: Any) -> None:
        pass

    await app({"type": "lifespan"}, incoming.get, send)


def broker_lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if "broker" in record.getMessage()]


class Leaf(BaseSocketServer):
    pass


class Own(BaseSocketServer):
    config = "memory://own"


class Configures(BaseSocketServer):
    def configure(self) -> None:
        self.config = "memory://own"


@pytest.mark.parametrize("app", [Leaf.as_asgi, ProtocolTypeRouter({})])
async def test_a_server_that_starts_logs_the_default_broker_once(
    app: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SOCKETS_URL", "redis://ann:opensesame@localhost:1")
    await start(app)
    await start(app)
    (line,) = broker_lines(log)
    assert line.startswith("the broker is redis://ann:***@localhost:1 (from the environment")


@pytest.mark.parametrize("kind", [Own, Configures])
async def test_a_class_with_a_broker_of_its_own_does_not_log_the_default_one(
    kind: Any, log: Any
) -> None:
    await start(kind.as_asgi)
    assert broker_lines(log) == []


async def test_a_wrong_configuration_is_logged_and_does_not_stop_the_server(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SOCKETS_URL", "redis://localhost?prefx=a")
    await start(Leaf.as_asgi)
    (line,) = broker_lines(log)
    assert "did you mean 'prefix'" in line


def test_a_server_of_another_version_is_unknown(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def worker() -> int:
        return startup.server_workers()

    key = (__name__, "worker")
    monkeypatch.setitem(startup._WORKER_FUNCTIONS, key, lambda variables: variables["config"])
    assert worker() == 1
    monkeypatch.setitem(startup._WORKER_FUNCTIONS, key, lambda variables: 3)
    assert worker() == 3
    assert startup.server_workers() == 1
    startup.announce(load_config("memory://elsewhere"))
    assert SEVERAL not in log.text
