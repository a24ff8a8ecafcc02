"""examples/channels_chat: its own tests on three brokers, and its pages by its README."""

from __future__ import annotations

import http.cookiejar
import json
import re
import urllib.parse
import urllib.request
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.ports import free_port
from support.example_process import (
    EXAMPLES,
    WAIT_SECONDS,
    arguments,
    commands,
    environment,
    started,
)

pytest.importorskip("channels")

TESTS, RUNSERVER = commands("channels_chat")
BROKERS = ["memory", "valkey_server", "valkey_cluster"]


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    return str(request.getfixturevalue(request.param).url)


def test_its_own_tests_pass_on_each_broker(url: str) -> None:
    import subprocess

    ended = subprocess.run(
        arguments(TESTS),
        cwd=EXAMPLES / "channels_chat",
        env=environment(DJANGO_SOCKETS_URL=url),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, printed
    assert "Ran 5 tests" in printed
    assert "Traceback" not in printed
    assert "Warning" not in printed


def enter(port: int, room: str) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{port}/ws/room/{room}/", origin=f"http://127.0.0.1:{port}", proxy=None
    )


def hears(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(WAIT_SECONDS))


def test_two_processes_share_the_rooms(url: str) -> None:
    ports = [free_port(), free_port()]
    more = {"DJANGO_SOCKETS_URL": url}
    with (
        started("channels_chat", RUNSERVER, "--noreload", str(ports[0]), **more) as one,
        started("channels_chat", RUNSERVER, "--noreload", str(ports[1]), **more) as two,
    ):
        for process in (one, two):
            process.read_until(r"http://127\.0\.0\.1:")
        # In memory, only the sockets of one process are in the same room.
        second = ports[0] if url == "memory://" else ports[1]
        with enter(ports[0], "tea") as ann, enter(second, "tea") as bob:
            ann.send(json.dumps({"text": "Hello"}))
            assert hears(ann) == hears(bob) == {"text": "Hello"}
            announce(second, "tea")
            assert hears(ann) == hears(bob) == {"text": "The clock strikes."}
        with pytest.raises(InvalidStatus, match="403"):
            connect(
                f"ws://127.0.0.1:{second}/ws/room/tea/", origin="http://evil.example", proxy=None
            )


def announce(port: int, room: str) -> None:
    """Press the button of the page that a view answers."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    site = f"http://127.0.0.1:{port}/room/{room}/"
    with opener.open(site, timeout=WAIT_SECONDS) as response:
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', response.read().decode())
    assert token is not None
    form = urllib.parse.urlencode({"csrfmiddlewaretoken": token[1]}).encode()
    with opener.open(f"{site}announce/", form, timeout=WAIT_SECONDS) as response:
        assert response.status == 204
