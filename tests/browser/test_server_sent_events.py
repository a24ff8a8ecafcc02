"""Chromium's own `EventSource`, and the client of this project, through restarts of the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.event_site import RULES, STATIC
from support.shop_process import Server, serving

ROOT = Path(__file__).resolve().parents[2]
PAGE = """
    window.got = [];
    window.gaps = [];
    window.ready = 0;
"""
OWN = """
(path) => {
    const source = new EventSource(path);
    source.onmessage = ({data}) => {
        const frame = JSON.parse(data);
        if ("ready" in frame) window.ready += 1;
        if ("data" in frame) window.got.push([frame.channel, frame.data]);
        if ("gap" in frame) window.gaps.push(...frame.gap);
    };
}
"""
CLIENT = """
async (path) => {
    const {events} = await import("/client.js");
    const source = events(path);
    source.on("state", (state) => { if (state === "connected") window.ready += 1; });
    source.on("message", (data, {channel}) => window.got.push([channel, data]));
    source.on("gap", ({channels}) => window.gaps.push(...channels));
}
"""
READERS = {"EventSource": OWN, "client": CLIENT}


class Site:
    """A page on a server that can be restarted, and a publisher beside it."""

    def __init__(self, start: Callable[[], AbstractContextManager[Server]], config: Any) -> None:
        self.start = start
        self.threads = ThreadPoolExecutor(1)  # This thread counts as running an event loop.
        self._broadcaster = Broadcaster(config=config)

    def say(self, channel: str, *data: Any) -> None:
        for one in data:
            self.threads.submit(self._broadcaster.broadcast, channel, one).result()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def site(valkey_server: CacheServer, port: int, tmp_path: Path) -> Iterator[Site]:
    url = f"{valkey_server.url}?prefix=events{port}"
    command = [sys.executable, "-m", "uvicorn", "support.event_site:application"]
    more = {
        "EVENT_SITE_URL": url,
        "DJANGO_SOCKETS_DRAIN_SECONDS": "0.5",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
    }
    logs = iter(range(100))

    def start() -> AbstractContextManager[Server]:
        log = tmp_path / f"log{next(logs)}"
        return serving([*command, "--port", str(port)], port, log, **more)

    running = Site(start, {"url": url, "history": RULES})
    yield running
    running.threads.shutdown()


@pytest.mark.parametrize("reader", READERS)
def test_a_page_gets_each_message_once_through_restarts(
    site: Site, port: int, windows: Any, reader: str
) -> None:
    if reader == "client" and not (STATIC / "events.js").exists():
        pytest.skip("the client is not built here")
    windows.expected = "ERR_|EventSource"
    context = windows.open()
    page = context.new_page()
    with site.start() as server:
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate(PAGE)
        page.evaluate(READERS[reader], "/kept/")
        page.wait_for_function("window.ready === 1")
        site.say("kept:1", *range(10))
        page.wait_for_function("window.got.length === 10")
        server.end()
    site.say("kept:1", *range(10, 20))
    with site.start() as server:  # The next end is a crash.
        page.wait_for_function("window.got.length === 20")
        site.say("kept:2", *range(20, 30))
        page.wait_for_function("window.got.length === 30")
    site.say("kept:2", *range(30, 40))
    with site.start(), windows:
        site.say("kept:1", 40)
        page.wait_for_function("window.got.length >= 41")
        got = page.evaluate("window.got")
        assert sorted(data for _, data in got) == list(range(41))
        for channel in ("kept:1", "kept:2"):
            numbers = [data for name, data in got if name == channel]
            assert numbers == sorted(numbers)
        assert page.evaluate("window.gaps") == []


def test_without_a_history_a_restart_is_a_gap(site: Site, port: int, windows: Any) -> None:
    windows.expected = "ERR_|EventSource"
    page = windows.open().new_page()
    with site.start():
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate(PAGE)
        page.evaluate(OWN, "/events/")
        page.wait_for_function("window.ready === 1")
        site.say("news", 1)
        page.wait_for_function("window.got.length === 1")
        assert page.evaluate("window.gaps") == []
    site.say("news", 2)
    site.say("kept:1", 3)
    with site.start(), windows:
        page.wait_for_function("window.got.length === 2")
        site.say("news", 4)
        page.wait_for_function("window.got.length === 3")
        assert page.evaluate("window.gaps") == ["news"]
        assert page.evaluate("window.got") == [["news", 1], ["kept:1", 3], ["news", 4]]
