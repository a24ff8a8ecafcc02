"""The pytest plugin works in other projects, with each async plugin and without use."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

APP = """
import pytest
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer

ended = []

class Echo(BaseSocketServer):
    def connect(self):
        self.subscribe("room")
        self.send("ready")

    def receive(self, data):
        self.broadcast("room", data)

    def disconnect(self, code):
        ended.append(code)  # 1000: the client left; 1001 if it was only cancelled
"""

SCOPE = "asyncio_default_fixture_loop_scope = function\n"

COROUTINE_TESTS = """
{mark}
async def test_clients(sockets_broker, socket_client, captured_broadcasts):
    assert sockets_broker.url.scheme == "memory"
    one, other = await socket_client(Echo.as_asgi), await socket_client(Echo.as_asgi, "/ws/")
    for client in one, other:
        assert await client.receive_json() == "ready"
    await one.send_json("hello")
    for client in one, other:
        assert await client.receive_json() == "hello"
    assert captured_broadcasts == [("room", "hello")]

{mark}
async def test_the_clients_of_the_test_before_have_left():
    assert ended == [1000, 1000]
"""


def run_pytest(
    folder: Path, source: str, *options: str, ini: str = "", passed: int
) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}")
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        # Without the fixture `sockets_broker` nothing would work.
        env={**os.environ, "DJANGO_SOCKETS_URL": "redis://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{passed} passed" in ended.stdout
    return ended


@pytest.mark.parametrize(
    ("ini", "options", "mark"),
    [
        ("asyncio_mode = strict\n" + SCOPE, ["-p", "no:django"], "@pytest.mark.asyncio"),
        ("asyncio_mode = auto\n" + SCOPE, ["-p", "no:django"], ""),
        ("", ["-p", "no:django", "-p", "no:asyncio"], "@pytest.mark.anyio"),
    ],
    ids=["asyncio-strict", "asyncio-auto", "anyio"],
)
def test_coroutine_tests_get_clients_that_are_closed_for_them(
    ini: str, options: list[str], mark: str, tmp_path: Path
) -> None:
    backend = '\n@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n'
    run_pytest(
        tmp_path, APP + backend + COROUTINE_TESTS.format(mark=mark), *options, ini=ini, passed=2
    )


def test_plain_tests_get_clients_and_a_live_server(tmp_path: Path) -> None:
    source = APP + textwrap.dedent("""
        import asyncio
        import json
        import threading
        from websockets.sync.client import connect

        def test_clients(sockets_broker, sync_socket_client, captured_broadcasts):
            one, other = sync_socket_client(Echo.as_asgi), sync_socket_client(Echo.as_asgi)
            assert (one.receive_json(), other.receive_json()) == ("ready", "ready")
            Broadcaster().broadcast("room", "from the test")
            assert (one.receive_json(), other.receive_json()) == ("from the test", "from the test")
            captured_broadcasts.assert_broadcast("room", "from the test")

        def test_the_clients_of_the_test_before_have_left():
            assert ended == [1000, 1000]

        def test_browser(sockets_broker, live_socket_server):
            server = live_socket_server(Echo.as_asgi)
            with connect(server.ws_url, proxy=None) as browser:
                assert json.loads(browser.recv(timeout=5)) == "ready"
                Broadcaster().broadcast("room", "from the test")
                assert json.loads(browser.recv(timeout=5)) == "from the test"

        def test_the_server_of_the_test_before_has_stopped():
            names = [thread.name for thread in threading.enumerate()]
            assert "django_sockets live server" not in names

        def test_a_plain_test_is_told_which_client_is_for_it(socket_client):
            with pytest.raises(RuntimeError, match="use sync_socket_client"):
                asyncio.run(socket_client(Echo.as_asgi))
        """)
    run_pytest(tmp_path, source, "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:django", passed=5)


def test_a_suite_that_does_not_use_it_is_left_alone(tmp_path: Path) -> None:
    source = """
        import sys

        def test_nothing_was_imported_for_it():
            assert "django_sockets.testing.pytest_plugin" in sys.modules
            for name in "django", "redis", "pytest_asyncio", "anyio", "uvicorn", "asgiref":
                assert name not in sys.modules, name

        async def nobody_awaits():
            pass
        """
    run_pytest(tmp_path, source, "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:django", passed=1)


def test_the_fixtures_explain_themselves(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:django"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    for line in (
        "sockets_broker -- ",
        "socket_client -- ",
        "sync_socket_client -- ",
        "captured_broadcasts -- ",
        "live_socket_server -- ",
        "`override_broker` for one test",
    ):
        assert line in listed.stdout
