"""Server-sent events on every server: delivered at once, ended by a drain, gone with the client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.event_streams import Event, EventParser
from support.faults.processes import ServerProcess, serve

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ["uvicorn", "hypercorn", "daphne", "granian"]
SOURCE = "from support.event_site import application\n"
WAIT_SECONDS = 20


class Reader:
    """A client with a connection of its own."""

    def __init__(self, port: int, path: str, last_id: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        self.connection.request("GET", path, headers={"Last-Event-ID": last_id} if last_id else {})
        self.response = self.connection.getresponse()
        self.parser = EventParser()

    def next(self) -> Event | None:
        """The next event; None at the end of the response."""
        while line := self.response.readline():
            found = self.parser.feed(line.decode())
            if found:
                return found[0]
        return None

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


async def until_it_answers(server: ServerProcess) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            await asyncio.to_thread(get, server.port, "/")
        except OSError:
            assert time.monotonic() < ends, server.printed
            assert server.process.poll() is None, server.printed
            await asyncio.sleep(0.05)  # The server offers no event to wait for.
        else:
            return


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    pytest.importorskip(request.param)
    search = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT)])
    more = {"EVENT_SITE_URL": "memory://", "DJANGO_SOCKETS_DRAIN_SECONDS": "1"}
    async with serve(request.param, SOURCE, tmp_path, PYTHONPATH=search, **more) as running:
        await until_it_answers(running)
        yield running


async def test_a_stream_on_a_real_server(server: ServerProcess) -> None:
    await asyncio.to_thread(talk, server.port)
    reader = await asyncio.to_thread(Reader, server.port, "/events/")
    await asyncio.to_thread(reader.next)
    ending = asyncio.ensure_future(asyncio.to_thread(last_frame, reader))
    await server.terminate(10)
    last = await ending
    # The others handle the signal themselves, and cut the connection. The browser comes back, too.
    if any(name in server.process.args for name in ("uvicorn", "daphne")):
        assert last["bye"]["code"] == 1012
        assert "Traceback" not in server.printed, server.printed
    assert "/django_sockets/" not in server.printed, server.printed


def last_frame(reader: Reader) -> Any:
    """The last frame of a response; None if it was cut before another one."""
    try:
        event = reader.next()
        return None if event is None else event.frame
    except (OSError, http.client.HTTPException):
        return None
    finally:
        reader.close()


def talk(port: int) -> None:
    """Read, leave, and come back."""
    one, two = (Reader(port, "/events/") for _ in range(2))
    for reader in (one, two):
        assert reader.response.headers["content-type"] == "text/event-stream"
        assert frame(reader) == {"ready": {}}
    # Each event arrives at once: nothing waits for the next one.
    for number in range(3):
        get(port, f"/say/?channel=kept:1&data={number}")
        for reader in (one, two):
            assert frame(reader)["data"] == number
    one.close()
    get(port, "/say/?channel=kept:1&data=10&count=5")
    one = Reader(port, "/kept/", one.parser.last_id)
    assert frame(one) == {"ready": {}}
    assert [frame(one)["data"] for _ in range(5)] == [10, 11, 12, 13, 14]
    for reader in (one, two):
        reader.close()
    ends = time.monotonic() + WAIT_SECONDS
    while json.loads(get(port, "/stats/")) != {"event_streams": 0, "subscribers": 0}:
        assert time.monotonic() < ends, "the server keeps the streams of clients that have left"
        time.sleep(0.02)


def frame(reader: Reader) -> Any:
    event = reader.next()
    assert event is not None
    return event.frame
