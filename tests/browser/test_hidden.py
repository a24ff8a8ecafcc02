"""Hidden and frozen tabs of Chromium keep their connections; a hidden one notices a dead link.

`make tabs` keeps them hidden and frozen for ten minutes, with the pings that users have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer
from support.client_server import NOTICED_SECONDS, PING_SECONDS, Publisher, client_app
from support.devtools import Tab, devtools
from support.loop_thread import LoopThread

AWAY_SECONDS = float(
    os.environ.get("DJANGO_SOCKETS_TAB_SECONDS", 2 * PING_SECONDS + NOTICED_SECONDS)
)
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

pytestmark = pytest.mark.timeout(300 + AWAY_SECONDS)


def wait_for(tab: Tab, expression: str, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < ends, expression
        time.sleep(0.1)  # A timer of the hidden page would be late.


async def do(action: Callable[[], None]) -> None:
    action()


def test_hidden_and_frozen_tabs_live_and_a_hidden_one_notices_a_dead_link_in_time(
    valkey_server: CacheServer, tmp_path: Path, chromium_path: str
) -> None:
    broker = f"{valkey_server.url}?prefix=hidden-{os.getpid()}"
    publisher = Publisher(broker)
    with (
        client_app(tmp_path, broker) as server,
        LoopThread() as loop,
        devtools(chromium_path, tmp_path / "profile") as browser,
    ):
        proxy = FaultProxy("127.0.0.1", server.port)
        loop.run(proxy.__aenter__())
        try:
            tab = browser.open(f"http://127.0.0.1:{proxy.port}/")
            frozen = browser.open(f"http://127.0.0.1:{server.port}/")
            for page in (tab, frozen):
                wait_for(page, "window.isReady?.()")
            browser.open("about:blank")
            assert tab.evaluate("document.visibilityState") == "hidden"
            frozen.call("Page.setWebLifecycleState", state="frozen")
            away_until = time.monotonic() + AWAY_SECONDS
            while time.monotonic() < away_until:
                publisher.publish()
                time.sleep(0.5)  # The pages are left alone for this time.
            assert tab.evaluate("states.length") == 1, "the connection has not lived"
            frozen.call("Page.setWebLifecycleState", state="active")
            for page in (tab, frozen):
                wait_for(page, f"kept.includes({publisher.last})")
                assert page.evaluate("kept") == list(range(1, publisher.last + 1))
            assert tab.evaluate("shown") == list(range(1, publisher.last + 1))
            # This Chromium closes the websocket of a frozen tab itself when the tab wakes up, and
            # the page connects again. It did not end the connection while the tab was frozen.
            ended = frozen.evaluate("states.find(({state}) => state === 'waiting')")
            assert ended is None or (ended["code"], ended["reason"]) == (1006, "lost")
            tab.evaluate(START_CHAIN)

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
