"""A hidden tab of Chromium keeps its connection and notices a dead one, with delayed timers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer
from support.client_server import NOTICED_SECONDS, PING_SECONDS, Publisher, client_app
from support.devtools import Tab, devtools
from support.loop_thread import LoopThread

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_CHAIN = """
window.chainMs = Infinity;
const began = performance.now();
let left = 7;
const next = () => (left-- ? setTimeout(next, 100) : (window.chainMs = performance.now() - began));
next();
"""
"""Timers that are started by timers. On a visible page, they take less than a second.

On a page that has been hidden for five minutes, Chromium delays them to whole minutes;
client/tests/liveness.test.js does the same.
"""

pytestmark = pytest.mark.timeout(300)


def wait_for(tab: Tab, expression: str, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < ends, expression
        time.sleep(0.1)  # A timer of the hidden page would be late.


async def do(action: Callable[[], None]) -> None:
    action()


def test_a_hidden_tab_lives_and_notices_a_dead_link_in_time(
    valkey_server: CacheServer, tmp_path: Path, missing: Callable[[str], NoReturn]
) -> None:
    found = filter(None, map(shutil.which, BROWSERS))
    chromium = os.environ.get("DJANGO_SOCKETS_CHROMIUM") or next(found, None)
    if chromium is None:
        missing("no Chromium: install the package chromium, or set DJANGO_SOCKETS_CHROMIUM")
    broker = f"{valkey_server.url}?prefix=hidden-{os.getpid()}"
    publisher = Publisher(broker)
    with (
        client_app(tmp_path, broker) as server,
        LoopThread() as loop,
        devtools(chromium, tmp_path / "profile") as browser,
    ):
        proxy = FaultProxy("127.0.0.1", server.port)
        loop.run(proxy.__aenter__())
        try:
            tab = browser.open(f"http://127.0.0.1:{proxy.port}/")
            wait_for(tab, "window.isReady?.()")
            browser.open("about:blank")
            assert tab.evaluate("document.visibilityState") == "hidden"
            hidden_until = time.monotonic() + 2 * PING_SECONDS + NOTICED_SECONDS
            while time.monotonic() < hidden_until:
                publisher.publish()
                time.sleep(0.5)  # The page is left alone for this time.
            wait_for(tab, f"kept.includes({publisher.last})")
            tab.evaluate(START_CHAIN)
            assert tab.evaluate("states.length") == 1, "the connection has not lived"

            loop.run(do(proxy.blackhole))
            began = time.monotonic()
            wait_for(tab, "states.length > 1", 100)
            noticed = time.monotonic() - began
            publisher.publish(10)
            wait_for(tab, f"kept.includes({publisher.last})", 100)
            assert tab.evaluate("chainMs > 4000"), "Chromium has not delayed the timers"
            kept = tab.evaluate("kept")
            assert kept == list(range(1, publisher.last + 1))
        finally:
            loop.run(proxy.aclose())
    print(f"\nnoticed after {noticed:.1f} s")
    # On a busy machine, timers are late.
    assert noticed < min(100, 2 * NOTICED_SECONDS)
