"""A login that ends in one process ends its sockets in another process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.servers import CacheServer

FOLDER = Path(__file__).resolve().parent


@pytest.fixture
def served(
    database: Any, valkey_server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """The port of the project in a process of its own, on the same database and broker."""
    monkeypatch.setenv("DJANGO_SOCKETS_URL", valkey_server.url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "members.settings"}
    environment["PYTHONPATH"] = str(FOLDER)
    command = [sys.executable, "-m", "uvicorn", "members.asgi:application", "--port", str(port)]
    with subprocess.Popen(command, env=environment, cwd=FOLDER) as process:
        try:
            deadline = time.monotonic() + 20
            while process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def page(port: int, key: str) -> Iterator[ClientConnection]:
    with connect(
        f"ws://127.0.0.1:{port}/",
        origin=f"http://127.0.0.1:{port}",  # type: ignore[arg-type]
        additional_headers={"cookie": f"sessionid={key}"},
        proxy=None,
    ) as opened:
        assert opened.recv(timeout=5) == '"ann"'
        yield opened


def closed_within(opened: ClientConnection, seconds: float) -> int:
    begun = time.monotonic()
    with pytest.raises(ConnectionClosed) as end:
        opened.recv(timeout=seconds)
    assert time.monotonic() - begun < seconds
    assert end.value.rcvd is not None
    return end.value.rcvd.code


def test_a_logout_by_a_view_of_another_process_closes_the_socket(served: int, members: Any) -> None:
    from django.test import Client

    from django_sockets.middleware import connect_signals

    connect_signals()
    ann = members.create()
    browser = Client()
    browser.force_login(ann)
    other = members.login(ann)
    key = browser.cookies["sessionid"].value
    with page(served, key) as opened, page(served, other) as stays:
        assert browser.get("/leave/").content == b"bye"
        # By the order on the broker: the first look comes no sooner than after 4 seconds.
        assert closed_within(opened, 3) == 4401
        stays.send('"still here"')
        assert stays.recv(timeout=5) == '"still here"'
    with pytest.raises(InvalidStatus) as refused, page(served, key):
        pass
    assert refused.value.response.status_code == 403


def test_a_session_that_another_program_removes_closes_within_five_seconds(
    served: int, members: Any
) -> None:
    from django.contrib.sessions.models import Session

    key = members.login(members.create())
    with page(served, key) as opened:
        Session.objects.filter(pk=key)._raw_delete("default")
        assert closed_within(opened, 5) == 4401
