"""The examples without Django: scripts, a Starlette application, and a task worker."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.example_process import WAIT_SECONDS, Running, commands, run, started

# Plain scripts

WEATHER = commands("plain_script")[1]


def test_the_weather_in_one_process() -> None:
    assert run("plain_script", WEATHER).splitlines() == [
        "waiting for the weather", "18.5 °C", "19.0 °C", "19.5 °C",
    ]  # fmt: skip


def test_the_weather_from_process_to_process(valkey_server: CacheServer) -> None:
    with started(
        "plain_script", f"{WEATHER} display", DJANGO_SOCKETS_URL=valkey_server.url
    ) as display:
        display.read_until("waiting")
        run("plain_script", f"{WEATHER} station", DJANGO_SOCKETS_URL=valkey_server.url)
        display.read_until("19.5 °C")
        assert display.process.wait(WAIT_SECONDS) == 0
    assert display.printed.splitlines()[1:] == ["18.5 °C", "19.0 °C", "19.5 °C"]


# Starlette

UVICORN = commands("starlette_broker")[1]


@contextmanager
def news(**more: str) -> Iterator[tuple[Client, Running]]:
    pytest.importorskip("starlette")
    port = free_port()
    with (
        started("starlette_broker", UVICORN, "--port", str(port), **more) as running,
        ExitStack() as stack,
    ):
        running.read_until("Uvicorn running")
        yield Client(port, stack), running


class Client:
    """Requests to the application, closed at the end."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self.port, self.stack = port, stack

    def request(self, method: str, path: str, body: str = "") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        self.stack.callback(connection.close)
        connection.request(method, path, body.encode())
        response = connection.getresponse()
        self.stack.callback(response.close)
        return response

    def publish(self, text: str) -> int:
        return self.request("POST", "/news", text).status

    def subscribe(self) -> http.client.HTTPResponse:
        stream = self.request("GET", "/news")
        assert event(stream) == ": subscribed"
        return stream


def event(stream: http.client.HTTPResponse) -> str:
    lines = []
    while line := stream.readline().decode().strip():
        lines.append(line)
    return "\n".join(lines)


def test_readers_get_the_news_and_ctrl_c_ends_it_all() -> None:
    with news() as (client, running):
        page = client.request("GET", "/")
        assert (page.status, "EventSource" in page.read().decode()) == (200, True)
        streams = [client.subscribe() for _ in range(2)]
        assert client.publish("it rains\nagain") == 200
        assert [event(stream) for stream in streams] == ["data: it rains again"] * 2
        assert running.end() in (0, -2)
    # A reader who does not leave is cut off by uvicorn, which says so with a traceback of its own.
    assert "/django_sockets/" not in running.printed, running.printed


def test_a_broker_that_is_down_is_said_to_the_publisher(fresh_valkey_server: CacheServer) -> None:
    with news(DJANGO_SOCKETS_URL=fresh_valkey_server.url) as (client, _):
        stream = client.subscribe()
        fresh_valkey_server.kill()
        assert client.publish("lost") == 503
        fresh_valkey_server.start()
        assert event(stream).startswith("event: gap")
        assert client.publish("found") == 200
        assert event(stream) == "data: found"


# A task worker

WORKER, REPORT = commands("task_worker")


def test_a_report_is_watched_while_a_worker_makes_it(
    valkey_server: CacheServer, tmp_path: Path
) -> None:
    pytest.importorskip("celery")
    more = {"DJANGO_SOCKETS_URL": valkey_server.url, "TASK_QUEUE": str(tmp_path)}
    quiet = ["--concurrency", "1", "--loglevel", "INFO"]
    with started("task_worker", WORKER, *quiet, **more) as worker:
        worker.read_until("ready")
        for name in ("sales", "costs"):  # Twice in one child.
            printed = run("task_worker", f"python report.py {name}", **more)
            assert printed.splitlines() == [f"{name}: {step} of 5" for step in range(1, 6)]
        worker.end()
    assert "Traceback" not in worker.printed, worker.printed


def test_a_report_without_a_shared_broker_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    with started("task_worker", REPORT, TASK_QUEUE=str(tmp_path)) as report:
        report.read_until("Set DJANGO_SOCKETS_URL")
        assert report.process.wait(WAIT_SECONDS) == 1
