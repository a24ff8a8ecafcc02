"""docs/production.md: its command lines and configuration files do what the page says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
PROTOCOL = "django_sockets.servers.uvicorn:WebSocketProtocol"
WAIT_SECONDS = 20
SOURCE = """
import json

async def application(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    frames = scope["extensions"].get("websocket.frames")
    found = {"frames": bool(frames and frames["send"] == send), "client": scope["client"][0]}
    found |= {name.decode(): value.decode() for name, value in scope["headers"]}
    await send({"type": "websocket.send", "text": json.dumps(found)})
    while (await receive())["type"] != "websocket.disconnect":
        pass
"""


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def line(program: str) -> str:
    (found,) = re.findall(rf"^{program} mysite.*$", PAGE, re.MULTILINE)
    return str(found)


@contextlib.contextmanager
def started(command: str, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "mysite").mkdir()
    (folder / "mysite" / "asgi.py").write_text(SOURCE)
    program, *words = shlex.split(command.replace("8000", str(port)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", Path(program).name, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def client_of(port: int, process: subprocess.Popen[bytes]) -> ClientConnection:
    """A client, as soon as something listens on the port."""
    ends = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < ends
            assert process.poll() is None
            time.sleep(0.05)  # A server offers no event to wait for.
        else:
            return connect(f"ws://127.0.0.1:{port}/", proxy=None)


@pytest.mark.parametrize("program", ["uvicorn", "gunicorn"])
def test_a_command_line_serves_with_prepared_frames_and_closes_in_order(
    program: str, tmp_path: Path
) -> None:
    port = free_port()
    with started(line(program), tmp_path, port) as process:
        with client_of(port, process) as client:
            assert json.loads(client.recv(WAIT_SECONDS))["frames"] is True
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                client.recv(WAIT_SECONDS)
            assert client.close_code == 1012
        assert process.wait(WAIT_SECONDS) in (0, -15)
    printed = (tmp_path / "log").read_text()
    assert "Traceback" not in printed, printed
    assert "prepared frames are off" not in printed


def test_the_unit_starts_the_same_command() -> None:
    unit = block("ini")
    (command,) = re.findall(r"^ExecStart=/srv/mysite/.venv/bin/(.*)$", unit, re.MULTILINE)
    words = shlex.split(line("uvicorn"))
    assert [word for word in shlex.split(command) if word not in words] == []
    grace = int(words[words.index("--timeout-graceful-shutdown") + 1])
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert 10 < grace < int(stop)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = block("ini").replace("/srv/mysite/.venv/bin/uvicorn", "/bin/true")
    (tmp_path / "mysite.service").write_text(unit.replace("/srv/mysite", str(tmp_path)))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "mysite.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [said for said in ended.stderr.splitlines() if "mysite.service" in said]
    assert about_ours == []


NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{page}
}}
"""


def test_nginx_passes_websockets_on(tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        missing("nginx is not installed")
    port, front = free_port(), free_port()
    page = block("nginx").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    page = page.replace("listen 80;", f"listen 127.0.0.1:{front};")
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, page=page))
    command = line("uvicorn").replace("--workers 4", "--workers 1")
    with started(command, tmp_path, port) as process:
        with client_of(port, process):
            pass
        words = [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        proxy = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            with client_of(front, proxy) as client:
                found = json.loads(client.recv(WAIT_SECONDS))
                assert found["frames"] is True
                assert found["host"] == f"127.0.0.1:{front}"
                assert found["x-forwarded-proto"] == "http"
                extensions = client.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
                assert "server_no_context_takeover" in extensions
                process.send_signal(signal.SIGTERM)
                with pytest.raises(ConnectionClosed):
                    client.recv(WAIT_SECONDS)
                assert client.close_code == 1012
        finally:
            proxy.terminate()
            proxy.wait(WAIT_SECONDS)
