"""`manage.py runserver` serves websockets, pages and static files, and reloads changed code."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.ports import free_port
from support.offers_frames import offers_frames
from support.shop_process import MANAGE, WAIT_SECONDS, Server, hear, run, say, serving


@contextlib.contextmanager
def runserver(
    folder: Path,
    *arguments: str,
    settings: dict[str, Any] | None = None,
    host: str = "127.0.0.1",
    **more: str,
) -> Iterator[Server]:
    port = free_port()
    command = [*MANAGE, "runserver", f"{host}:{port}", *arguments]
    with serving(command, port, folder / "log", settings, **more) as server:
        yield server


def test_it_serves_websockets_pages_and_static_files_and_says_so(tmp_path: Path) -> None:
    with runserver(tmp_path, "--noreload") as server:
        with server.in_room(1) as one, server.in_room(1) as two:
            say(one, {"say": "hello"})
            assert hear(one) == hear(two) == "hello"
            assert offers_frames(one)
        assert server.get("/") == (200, "the shop")
        assert server.get("/static/shop/shop.css") == (200, "body { color: teal }\n")
        assert server.get("/nowhere/")[0] == 404
        with pytest.raises(InvalidStatus):
            server.browser("/ws/nowhere/at/all/")
        assert server.end(signal.SIGINT) == 0
    port = server.port
    assert f"development server at http://127.0.0.1:{port}/" in server.printed
    assert "uvicorn serves shop.asgi.application as ASGI" in server.printed
    assert f"websockets go to ws://127.0.0.1:{port}/" in server.printed
    for line in ('"GET / HTTP/1.1" 200', '"WEBSOCKET /ws/1/" 101', '"GET /nowhere/ HTTP/1.1" 404'):
        assert line in server.printed
    assert '"WEBSOCKET /ws/nowhere/at/all/" 404' in server.printed
    assert "handshake" not in server.printed, "uvicorn complains of a refusal"
    assert "Traceback" not in server.printed


def test_ctrl_c_closes_open_sockets_in_order(tmp_path: Path) -> None:
    with runserver(tmp_path, "--noreload") as server, server.in_room(1) as client:
        assert server.end(signal.SIGINT) == 0
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=WAIT_SECONDS)
        assert client.close_code == 1012
        assert "disconnect 1012" in server.printed
        assert "Traceback" not in server.printed


def test_a_change_of_the_code_restarts_it_and_closes_sockets_in_order(tmp_path: Path) -> None:
    module = tmp_path / "changing.py"
    module.write_text('word = "old"\n')
    (tmp_path / "app_of_the_day.py").write_text(
        "import changing\n"
        "from shop.asgi import application\n"
        "print('serving', changing.word, flush=True)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    settings = {"ASGI_APPLICATION": "app_of_the_day.application"}
    with runserver(tmp_path, settings=settings, PYTHONPATH=path) as server:
        assert "serving old" in server.printed
        with server.in_room(1) as client:
            module.write_text('word = "new, and longer"\n')
            with pytest.raises(ConnectionClosed):
                touch_until_closed(module, client)
            assert client.close_code == 1012
        server.wait_for("serving new, and longer")
        server.wait_until_it_answers()
        with server.in_room(1) as client:
            say(client, "hello again")
            assert hear(client) == "hello again"
        # The terminal's Ctrl-C reaches every process of it.
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(WAIT_SECONDS) == 0
    assert "disconnect 1012" in server.printed
    assert "Traceback" not in server.printed


def touch_until_closed(file: Path, client: ClientConnection) -> None:
    """The reloader checks once a second, and the first check only records the file times."""
    for second in range(2 * WAIT_SECONDS):
        os.utime(file, (2_000_000_000 + second,) * 2)
        with contextlib.suppress(TimeoutError):
            client.recv(timeout=0.5)


def test_nostatic_and_insecure_mean_what_they_mean_in_django(tmp_path: Path) -> None:
    pages = {"ASGI_APPLICATION": "shop.plain.application"}
    file = "/static/shop/shop.css"
    for number, (arguments, debug, status) in enumerate(
        [
            ([], True, 200),
            (["--nostatic"], True, 404),
            ([], False, 404),
            (["--insecure"], False, 200),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {**pages, "DEBUG": debug}
        with runserver(folder, "--noreload", *arguments, settings=settings) as server:
            assert server.get(file)[0] == status, (arguments, debug)
            assert server.get("/")[0] == 200


def test_without_asgi_application_it_is_djangos_own(tmp_path: Path) -> None:
    with runserver(tmp_path, "--noreload", settings={"ASGI_APPLICATION": None}) as server:
        assert server.get("/") == (200, "the shop")
        assert server.get("/static/shop/shop.css")[0] == 200
        assert server.end(signal.SIGINT) == 0
    assert "uvicorn" not in server.printed


@pytest.mark.parametrize("package", ["uvicorn", "websockets"])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, package: str) -> None:
    # A finder that finds nothing by this name is what a missing package looks like.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = (\n"
        f"    lambda name, *more: None if name == {package!r} else found(name, *more)\n"
        ")\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    with runserver(tmp_path, "--noreload", PYTHONPATH=path) as server:
        assert server.get("/") == (200, "the shop")
    assert f"{package} is not installed" in server.printed
    assert "pip install 'django-sockets[runserver]>=4.0.dev0'" in server.printed


def test_ipv6(tmp_path: Path) -> None:
    try:
        port = free_port_v6()
    except OSError:
        pytest.skip("this machine has no IPv6")
    for number, arguments in enumerate([[f"[::1]:{port}"], ["-6", str(port)]]):
        command = [*MANAGE, "runserver", "--noreload", *arguments]
        log = tmp_path / str(number)
        with serving(command, port, log, host="::1") as server:
            own = f"http://[::1]:{port}"
            with connect(f"ws://[::1]:{port}/ws/1/", origin=own, proxy=None) as client:  # type: ignore[arg-type]
                assert hear(client) == "ready"
            assert server.end(signal.SIGINT) == 0
        assert f"ws://[::1]:{port}/" in server.printed


def free_port_v6() -> int:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        port: int = listening.getsockname()[1]
        return port


def test_a_taken_port_and_a_broken_application_are_said(tmp_path: Path) -> None:
    with runserver(tmp_path, "--noreload") as server:
        ended = run([*MANAGE, "runserver", "--noreload", f"127.0.0.1:{server.port}"])
        assert ended.returncode == 1
        assert "That port is already in use" in ended.stderr
    broken = run([*MANAGE, "runserver", "--noreload"], {"ASGI_APPLICATION": "shop.asgi.app"})
    assert broken.returncode == 1
    assert "django_sockets.E003" in broken.stderr
    wrong = run([*MANAGE, "runserver", "--noreload", "nonsense:port"])
    assert "is not a valid port number" in wrong.stderr


def test_it_works_without_staticfiles(tmp_path: Path) -> None:
    settings = {
        "INSTALLED_APPS": ["django_sockets", "shop"],
        "ASGI_APPLICATION": "shop.plain.application",
    }
    with runserver(tmp_path, "--noreload", settings=settings) as server:
        assert server.get("/")[0] == 200
        with server.in_room(1) as client:
            say(client, "hello")
            assert hear(client) == "hello"


GATES = """
from django.core.asgi import get_asgi_application
from django.urls import path
from django_sockets import Reject
from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter

pages = get_asgi_application()

from django_sockets.middleware import secure

class Gate(BaseSocketServer):
    pass

class Shut(Gate):
    def authorize(self):
        return False

class Late(Gate):
    def authorize(self):
        raise Reject(401, "the office is closed")

websockets = URLRouter([
    path("ws/desk/", secure(Gate.as_asgi(), require_user=True)),
    path("ws/shut/", Shut.as_asgi()),
    path("ws/late/", Late.as_asgi()),
])
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
"""
LOGINS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]


def test_why_a_websocket_is_refused_stands_in_the_console(tmp_path: Path) -> None:
    (tmp_path / "gates.py").write_text(GATES)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    settings = {
        "ASGI_APPLICATION": "gates.application",
        "INSTALLED_APPS": ["django_sockets", *LOGINS, "django.contrib.staticfiles", "shop"],
    }
    with runserver(
        tmp_path, "--noreload", settings=settings, PYTHONPATH=path, WEB_CONCURRENCY="4"
    ) as server:
        for gate in ("desk", "shut", "late", "nowhere"):
            with pytest.raises(InvalidStatus):
                server.browser(f"/ws/{gate}/")
        with pytest.raises(InvalidStatus):
            server.browser("/ws/shut/", origin="https://evil.example")
        server.wait_for("evil.example")
        assert server.end(signal.SIGINT) == 0
    for reason in (
        "/ws/desk/.*: not logged in",
        "/ws/shut/.*: authorize returned False",
        "/ws/late/.*: .*the office is closed",
        "/ws/nowhere/.*: no such route",
        "/ws/shut/.*: .*evil.example",
    ):
        assert re.search(f"refused a websocket to .*{reason}", server.printed), server.printed
    assert "the broker is memory:// (the built-in default)" in server.printed
    assert "the server has several worker processes" not in server.printed


def test_the_reason_stands_in_the_console_each_time(tmp_path: Path) -> None:
    """A production server leaves repeated reasons out; a developer tries again at once."""
    with runserver(tmp_path, "--noreload") as server:
        for number in range(3):
            with pytest.raises(InvalidStatus):
                server.browser(f"/ws/nowhere/at/all/{number}/")
            server.wait_for(f"refused a websocket to '/ws/nowhere/at/all/{number}/': no such route")


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_a_level_that_the_project_has_set_stays(tmp_path: Path, level: str) -> None:
    loggers = {"django_sockets": {"level": level}}
    logging = {"version": 1, "disable_existing_loggers": False, "loggers": loggers}
    with runserver(tmp_path, "--noreload", settings={"LOGGING": logging}) as server:
        with pytest.raises(InvalidStatus):
            server.browser("/ws/nowhere/at/all/")
        server.wait_for('"WEBSOCKET /ws/nowhere/at/all/" 404')
    assert "no such route" not in server.printed
    assert "the broker is" not in server.printed
