"""Under gevent or eventlet, calls work or raise an error that says what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from django_sockets import Message, open_hub
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer

GEVENT = "from gevent import monkey; monkey.patch_all()\n"
LATE_GEVENT = "import django_sockets.broadcaster\n" + GEVENT
EVENTLET = "import eventlet; eventlet.monkey_patch()\n"
WAIT_SECONDS = 40


def run(code: str, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


PUBLISH = """
import sys
import gevent
from django_sockets.broadcaster import Broadcaster
from django_sockets.testing.capture import capture_broadcasts

broadcaster = Broadcaster(sys.argv[1])

def work(name):
    for number in range(20):
        with capture_broadcasts() as captured:
            broadcaster.broadcast("room", [name, number])
        # It has returned, and so it is published.
        assert ("room", [name, number]) in captured

workers = [gevent.spawn(work, name) for name in range(5)]
gevent.joinall(workers, raise_error=True)
print(sum(worker.successful() for worker in workers))
"""


@pytest.mark.parametrize("patch", [GEVENT, LATE_GEVENT], ids=["patched first", "imported first"])
async def test_greenlets_of_gevent_broadcast_side_by_side(
    patch: str, valkey_server: CacheServer
) -> None:
    pytest.importorskip("gevent")
    url = valkey_server.url.replace("127.0.0.1", "localhost")  # A name has to be looked up.
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        assert await asyncio.to_thread(run, patch + PUBLISH, url) == "5\n"
        heard = [await asyncio.wait_for(anext(events), WAIT_SECONDS) for _ in range(100)]
    texts = {event.payload.decode() for event in heard if isinstance(event, Message)}
    assert texts == {f"[{name}, {number}]" for name in range(5) for number in range(20)}


def test_a_server_that_does_not_answer_holds_up_one_greenlet_only() -> None:
    pytest.importorskip("gevent")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}?connect_timeout_seconds=1"
        printed = run(
            GEVENT
            + """
import sys
import gevent
from django_sockets import PublishError, ConnectError
from django_sockets.broadcaster import Broadcaster

turns = 0

def count():
    global turns
    while True:
        gevent.sleep(0.01)
        turns += 1

gevent.spawn(count)
try:
    Broadcaster(sys.argv[1]).broadcast("room", 1)
except (ConnectError, PublishError):
    print(turns > 10)
""",
            url + "&publish_timeout_seconds=1",
        )
    assert printed == "True\n"


REFUSED = """
import asyncio, logging, sys
from django_sockets.errors import ThreadError
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

logging.getLogger("django_sockets").setLevel(logging.CRITICAL)

class Plain(BaseSocketServer):
    config = "memory://"

    def receive(self, data):
        self.send(data)

    async def error(self, exc):
        await self.async_send([type(exc).__name__, str(exc)])

class Coroutine(BaseSocketServer):
    config = "memory://"

    async def receive(self, data):
        await self.async_send(data)

async def main():
    async with SocketClient(Coroutine.as_asgi) as client:
        await client.send_json("hello")
        print(await client.receive_json())
    async with SocketClient(Plain.as_asgi) as client:
        await client.send_json("hello")
        print(*await client.receive_json())

asyncio.run(main())
"""


def test_a_plain_handler_is_refused_under_gevent_with_what_to_do() -> None:
    pytest.importorskip("gevent")
    hello, refused = run(GEVENT + REFUSED).splitlines()
    assert hello == "hello"
    assert refused.startswith(
        "ThreadError a handler that is def needs a thread, and gevent has replaced threads by "
        "greenlets in this process: serve websockets in a process without gevent's monkey patch"
    )


def test_eventlet_is_refused_with_what_to_do() -> None:
    pytest.importorskip("eventlet")
    printed = run(
        "import warnings; warnings.simplefilter('ignore')\n"
        + EVENTLET
        + """
from django_sockets.broadcaster import Broadcaster

for _ in range(2):
    try:
        Broadcaster("memory://").broadcast("room", 1)
    except RuntimeError as exc:
        print(exc)
"""
    )
    for line in printed.splitlines():
        assert line.startswith("the event loop for calls from threads without one needs a thread,")
        assert "eventlet has replaced threads by greenlets" in line
    assert len(printed.splitlines()) == 2


SITE = """
import os
from django_sockets.broadcaster import Broadcaster

broadcaster = Broadcaster(os.environ["SITE_BROKER"])

def application(environ, start_response):
    broadcaster.broadcast("room", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"published"]
"""


@pytest.mark.parametrize("preload", [False, True])
async def test_a_site_under_gunicorns_gevent_workers_publishes(
    preload: bool, tmp_path: Path, valkey_server: CacheServer
) -> None:
    pytest.importorskip("gevent")
    pytest.importorskip("gunicorn")
    (tmp_path / "site_of_gunicorn.py").write_text(SITE)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "2"]
    command += ["-b", f"127.0.0.1:{port}", "site_of_gunicorn:application"]
    environment = {
        "PYTHONPATH": ":".join([str(tmp_path), *sys.path]),
        "PATH": os.environ["PATH"],
        "SITE_BROKER": valkey_server.url,
    }
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*command, "--preload"] if preload else command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        async with open_hub(valkey_server.url) as hub, hub.subscribe("room") as events:

            def get(number: int) -> str:
                url = f"http://127.0.0.1:{port}/{number}"
                with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
                    return str(answer.read().decode())

            for _ in range(400):
                try:
                    await asyncio.to_thread(get, 0)
                    break
                except OSError:
                    await asyncio.sleep(0.05)  # A server of others: there is no event.
            answers = [asyncio.to_thread(get, number) for number in range(1, 21)]
            assert await asyncio.gather(*answers) == ["published"] * 20
            heard = [await asyncio.wait_for(anext(events), WAIT_SECONDS) for _ in range(21)]
    finally:
        process.terminate()
        _, errors = await asyncio.to_thread(process.communicate, timeout=WAIT_SECONDS)
    assert {event.payload for event in heard if isinstance(event, Message)} == {
        f'"/{number}"'.encode() for number in range(21)
    }
    assert "Traceback" not in errors, errors
