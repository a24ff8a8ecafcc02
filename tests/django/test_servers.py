"""One application file behaves in the same way on four servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from django_sockets.testing.ports import free_port
from support.shop_process import WAIT_SECONDS, Server, hear, say, serving

APPLICATION = "shop.asgi:application"
SERVERS = ["uvicorn", "hypercorn", "daphne", "granian"]


def command(name: str, port: int) -> list[str]:
    python = [sys.executable, "-m", name]
    match name:
        case "uvicorn":
            protocol = "django_sockets.servers.uvicorn:WebSocketProtocol"
            return [*python, APPLICATION, "--port", str(port), "--ws", protocol]
        case "hypercorn":
            return [*python, APPLICATION, "--bind", f"127.0.0.1:{port}"]
        case "daphne":
            return [*python, "--bind", "127.0.0.1", "--port", str(port), APPLICATION]
        case _:
            return [*python, "--interface", "asgi", "--port", str(port), APPLICATION]


@contextmanager
def started(name: str, folder: Path) -> Iterator[Server]:
    pytest.importorskip(name)
    port = free_port()
    with serving(command(name, port), port, folder / "log") as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with started(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running
        assert "Traceback" not in running.printed, running.printed


def test_a_client_gets_its_echo(server: Server) -> None:
    with server.in_room(1) as client:
        for data in ("hello", {"text": "grüße"}, "x" * 100_000):
            say(client, data)
            assert hear(client) == data


def test_a_broadcast_reaches_the_room_and_no_other(server: Server) -> None:
    with server.in_room(1) as one, server.in_room(1) as two, server.in_room(2) as other:
        say(one, {"say": "to room 1"})
        assert hear(one) == hear(two) == "to room 1"
        say(other, "still here")
        assert hear(other) == "still here"


@pytest.mark.parametrize("code", [1000, 4401])
def test_the_client_sees_the_close_code_and_disconnect_runs(server: Server, code: int) -> None:
    before = server.printed.count(f"disconnect {code}")
    with server.in_room(1) as client:
        say(client, {"close": code})
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=WAIT_SECONDS)
        assert client.close_code == code
    server.wait_for(f"disconnect {code}", before + 1)


def refusal(server: Server, path: str, origin: str | None = None) -> int:
    with pytest.raises(InvalidStatus) as refused:
        server.browser(path, origin)
    return refused.value.response.status_code


def test_an_unknown_path_is_refused(server: Server, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["server"]
    # daphne 4.2.3 has no denial responses (ASGI websocket 2.3): it can only answer 403.
    status = 403 if name == "daphne" else 404
    assert refusal(server, "/nowhere/") == status


def test_a_page_of_another_site_is_refused(server: Server) -> None:
    assert refusal(server, "/ws/1/", "https://evil.example") == 403


def test_pages_and_static_files_are_served_as_well(server: Server) -> None:
    assert server.get("/") == (200, "the shop")
    assert server.get("/static/shop/shop.css") == (200, "body { color: teal }\n")
    assert server.get("/static/shop/missing.css")[0] == 404
    assert server.get("/nowhere/")[0] == 404


@pytest.mark.parametrize("name", SERVERS)
def test_sigterm_ends_the_process_with_an_open_socket(name: str, tmp_path: Path) -> None:
    with started(name, tmp_path) as server, server.in_room(1) as client:
        assert server.end() in (0, -15)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=WAIT_SECONDS)
        # Tracebacks of hypercorn's own (0.18: its task is cancelled) are not ours to mend.
        assert name == "hypercorn" or "Traceback" not in server.printed, server.printed
        assert "/django_sockets/" not in server.printed, server.printed
