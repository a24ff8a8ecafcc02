"""The demo starts and works as the README promises."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.servers import CacheServer
from support.offers_frames import offers_frames

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
RUN = [sys.executable, str(DEMO / "run.py")]
WAIT_SECONDS = 10


class Demo:
    """A running demo and everything that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""
        self.port = 0

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"the demo ended before it printed {pattern}:\n{self.printed}")

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    def tab(self, path: str = "/ws/", origin: str | None = None) -> ClientConnection:
        own = f"http://127.0.0.1:{self.port}"
        return connect(own.replace("http", "ws") + path, origin=origin or own, proxy=None)  # type: ignore[arg-type]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        self.printed += self.process.stdout.read()
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def demo(*arguments: str) -> Iterator[Demo]:
    with subprocess.Popen(
        [*RUN, *arguments],
        cwd=os.sep,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            running = Demo(process)
            running.port = int(running.read_until(r"Open +http://127\.0\.0\.1:(\d+)/")[1])
            running.read_until("Ctrl-C")
            yield running
        finally:
            process.kill()


def say(tab: ClientConnection, **data: str) -> None:
    tab.send(json.dumps(data))


def hear(tab: ClientConnection, kind: str) -> Any:
    """The next event of this kind."""
    while True:
        event = json.loads(tab.recv(timeout=WAIT_SECONDS))
        if event["kind"] == kind:
            return event


def two_tabs_talk(running: Demo) -> None:
    with running.tab() as ada, running.tab() as ben:
        say(ada, join="Ada")
        hear(ada, "joined")
        say(ben, join="Ben")
        assert hear(ada, "joined")["name"] == "Ben"
        say(ada, say="hello")
        for tab in (ada, ben):
            event = hear(tab, "said")
            assert (event["name"], event["text"]) == ("Ada", "hello")
        ben.close()
        assert hear(ada, "left")["name"] == "Ben"


@pytest.mark.parametrize("broker", ["memory://", "valkey"])
def test_two_tabs_talk_and_ctrl_c_ends_it(broker: str, request: pytest.FixtureRequest) -> None:
    if broker == "valkey":
        broker = request.getfixturevalue("valkey_server").url
    with demo("--broker", broker, "--port", "0") as running:
        status, page = running.get("/")
        assert status == 200
        assert broker in page
        two_tabs_talk(running)
        with running.tab() as tab:  # One that is still open does not hold up the end.
            say(tab, join="Ada")
            hear(tab, "joined")
            assert offers_frames(tab)
            assert running.interrupt() == 0
    assert "Traceback" not in running.printed
    assert broker in running.printed


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_messages() -> None:
    with demo("--port", "0") as running:
        _, page = running.get("/")
        files = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert [file for file in files if not re.match(r"/(?!/)", file)] == []
        statics = [running.get(file) for file in files if file.startswith("/static/")]
    assert [status for status, _ in statics] == [200, 200, 200]
    for _, text in statics:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|url\(", text)


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [("/ws/", "http://evil.example", 403), ("/elsewhere/", None, 404)],
)
def test_a_foreign_page_and_an_unknown_path_are_refused(
    path: str, origin: str | None, status: int
) -> None:
    with demo("--port", "0") as running:
        with pytest.raises(InvalidStatus) as refused:
            running.tab(path, origin)
        assert refused.value.response.status_code == status
        assert running.interrupt() == 0
    assert "Traceback" not in running.printed


def test_nonsense_from_one_tab_disturbs_nobody() -> None:
    with demo("--port", "0") as running, running.tab() as rude:
        for frame in ("[]", "null", '{"say": "not joined yet"}', '{"join": 7}', '{"join": " "}'):
            rude.send(frame)
        two_tabs_talk(running)
        say(rude, join="Rude")
        hear(rude, "welcome")


def test_a_taken_port_is_said_and_another_one_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo("--port", str(port)) as running:
            assert running.port != port
            assert running.get("/")[0] == 200
    assert f"Port {port} cannot be used" in running.printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--broker", "reddis://:opensesame@localhost"], "did you mean 'redis'"),
        (["--broker", "redis://:opensesame@localhost?prefx=a"], "unknown option 'prefx'"),
        (["--port", "70000"], "'70000' is not a number"),
    ],
)
def test_a_wrong_argument_ends_it_with_a_clear_line(arguments: list[str], complaint: str) -> None:
    ended = subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert complaint in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert "opensesame" not in ended.stderr


def test_a_broker_that_comes_later_and_goes_meanwhile(fresh_valkey_server: CacheServer) -> None:
    fresh_valkey_server.kill()
    with demo("--broker", fresh_valkey_server.url, "--port", "0") as running:
        running.read_until("The broker does not answer: .*cannot connect")
        fresh_valkey_server.start()
        two_tabs_talk(running)
        with running.tab() as tab:
            say(tab, join="Ada")
            hear(tab, "joined")
            fresh_valkey_server.kill()
            say(tab, say="lost")
            assert hear(tab, "failed")["text"] == "lost"
            fresh_valkey_server.start()
            hear(tab, "gap")
            say(tab, say="found")
            assert hear(tab, "said")["text"] == "found"
        assert running.interrupt() == 0
    assert "Traceback" not in running.printed
