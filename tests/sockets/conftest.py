"""Tests with a client inside the process run with and without prepared frames."""

from __future__ import annotations

import inspect
import sys

import pytest

from django_sockets.log import LogThrottle
from django_sockets.testing.client import SocketClient
from support.slow_client import Reluctant

CLIENTS = {"SocketClient": SocketClient, "Reluctant": Reluctant}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    source = inspect.getsource(metafunc.module)
    if any(name in source for name in CLIENTS):
        offers = {"events": False, "frames": True}
        metafunc.parametrize("prepared_frames", offers.values(), ids=offers, indirect=True)


@pytest.fixture(autouse=True)
def prepared_frames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the clients of this test offer the extension `websocket.frames`."""
    offered: bool = getattr(request, "param", False)
    _forget_logged_lines()
    for client in CLIENTS.values():
        monkeypatch.setattr(client, "prepared_frames", offered)
    return offered


def _forget_logged_lines() -> None:
    """Let each kind of line be logged again: the other run of the same test has logged it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("django_sockets."):
            for value in list(vars(module).values()):
                if isinstance(value, LogThrottle):
                    value._seen.clear()
