"""The demo starts and works as the README promises."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from django_sockets.testing.servers import CacheServer
from support.offers_frames import offers_frames
from support.protocol_client import ProtocolClient, protocol_client

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

    def tab(
        self, path: str = "/ws/", origin: str | None = None
    ) -> AbstractContextManager[ProtocolClient]:
        return protocol_client(self.port, path, origin)

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


ids = itertools.count(1)
ROOM = "room:lobby"


def say(tab: ProtocolClient, text: str, name: str = "Ada") -> Any:
    """Returns None, or the error of the request."""
    return tab.request("say", id=f"id-{next(ids)}", name=name, text=text)


def two_tabs_talk(running: Demo) -> None:
    with running.tab() as ada, running.tab() as ben:
        for tab in (ada, ben):
            assert "error" not in tab.subscribe(channel=ROOM)
        assert say(ada, "hello") is None
        for tab in (ada, ben):
            said = tab.data()
            assert (said["name"], said["text"]) == ("Ada", "hello")


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
            tab.subscribe(channel=ROOM)
            assert offers_frames(tab.connection)
            assert running.interrupt() == 0
    assert "Traceback" not in running.printed
    assert broker in running.printed


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_messages() -> None:
    with demo("--port", "0") as running:
        _, page = running.get("/")
        files = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert [file for file in files if not re.match(r"/(?!/)", file)] == []
        statics = [running.get(file) for file in files if file.startswith("/static/")]
        addresses = re.findall(r'"django-sockets[\w/]*": "([^"]*)"', page)
        statics += [running.get(file) for file in addresses]
    assert [status for status, _ in statics] == [200] * 6
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
        with pytest.raises(InvalidStatus) as refused, running.tab(path, origin):
            pass
        assert refused.value.response.status_code == status
        assert running.interrupt() == 0
    assert "Traceback" not in running.printed


def test_a_tab_that_was_away_gets_what_the_robot_has_counted() -> None:
    with demo("--port", "0") as running:
        with running.tab() as tab:
            since = tab.subscribe(channel=ROOM)["position"]
            assert tab.request("count") == {"started": True}
            assert tab.request("count") == {"started": False}
            assert tab.data()["text"] == "1 of 20"
        with running.tab() as tab:
            now = tab.wait_for(lambda frame: "data" in frame)["data"]["now"]
            again = tab.subscribe(channel=ROOM, since=since)
            assert again["recovered"]
            assert again["count"] >= 1
            said = [tab.data() for _ in range(3)]
            assert [one["text"] for one in said] == [f"{n} of 20" for n in (1, 2, 3)]
            assert said[0]["at"] < now
        assert running.interrupt() == 0  # Although the robot has not finished.
    assert "Traceback" not in running.printed


def test_nonsense_from_one_tab_disturbs_nobody() -> None:
    with demo("--port", "0") as running, running.tab() as rude:
        for text in ("", "x" * 1001, 7):
            assert rude.request("say", id="1", name="R", text=text)["code"] == "invalid_message"
        assert rude.request("unknown")["code"] == "invalid_message"
        assert rude.subscribe(channel="room:other")["error"]["code"] == "forbidden"
        two_tabs_talk(running)
        assert say(rude, "sorry") is None


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
            tab.subscribe(channel=ROOM)
            fresh_valkey_server.kill()
            assert say(tab, "lost")["code"] == "unavailable"
            fresh_valkey_server.start()
            assert tab.wait_for(lambda frame: "gap" in frame)["gap"] == [ROOM]
            assert say(tab, "found") is None
            assert tab.data()["text"] == "found"
            assert [kept["text"] for kept in tab.request("latest")] == ["found"]
        assert running.interrupt() == 0
    assert "Traceback" not in running.printed
