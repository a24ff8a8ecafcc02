"""A page reads the position, then the state: it misses no change, however they race.

Each order changes a fixed number of times while its page is rendered and connects. A page that has
missed the last change would show an old version for ever.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.template import Context, Engine

from django_sockets import PublishError
from django_sockets.signed_channels import position
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient
from django_sockets.testing.servers import CacheServer

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

PAGES = 1000
SILENT_PAGES = 100
CHANGES = 3
SILENT_SECONDS = 10
RENDERED_AT_ONCE = 8
RACE_SECONDS = 0.06
"""The longest time over which the changes of an order are spread; its page subscribes meanwhile."""
QUERY_SECONDS = 0.005
"""The time of a view's queries."""
WAIT_SECONDS = 40
TEMPLATE = """{% load django_sockets %}
<main data-version="{{ version }}" data-token="{% channel_token channel since=since %}">"""


class User:
    """The logged-in user of all pages."""

    pk = 7
    is_anonymous = False
    is_authenticated = True


class Request:
    user = User()


class Shop:
    """The orders, their pages, and what the pages have met."""

    def __init__(self, broker: CacheServer) -> None:
        history = {"order:": {"messages": 100, "seconds": 600}}
        self.config = {"url": broker.url, "history": history}
        self.sockets = type("Orders", (BaseSocketServer,), {"config": self.config})
        self.versions = dict.fromkeys(range(PAGES + 1), 0)
        self.recovered = self.resynchronised = self.replayed = self.live = 0
        engine = Engine(libraries={"django_sockets": "django_sockets.templatetags.django_sockets"})
        self._template = engine.from_string(TEMPLATE)
        self._threads = ThreadPoolExecutor(RENDERED_AT_ONCE)

    def close(self) -> None:
        self._threads.shutdown()

    async def change(self, order: int) -> None:
        """Commit each change and publish it; publish again what the broker has not accepted."""
        pause = random.uniform(0, RACE_SECONDS / CHANGES)
        for _ in range(CHANGES):
            await asyncio.sleep(random.uniform(0, 2 * pause))
            self.versions[order] += 1
            version = self.versions[order]
            while True:
                try:
                    await self.sockets({}).async_broadcast(f"order:{order}", version)
                except PublishError:
                    await asyncio.sleep(0.2)
                else:
                    break

    def _query(self, order: int) -> int:
        version = self.versions[order]
        time.sleep(QUERY_SECONDS)
        return version

    def _view(self, order: int) -> tuple[str, float]:
        began = time.monotonic()
        since = position([f"order:{order}"], config=self.config)
        version = self._query(order)
        context = {"channel": f"order:{order}", "since": since, "version": version}
        html = self._template.render(Context({"request": Request, **context}))
        return html, time.monotonic() - began

    async def render(self, order: int) -> tuple[str, float]:
        """The page, and the seconds that the view took."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._view, order)

    async def visit(self, order: int) -> float:
        """Show the page until it has the newest version. Returns the seconds of its view."""
        changes = asyncio.create_task(self.change(order))
        html, seconds = await self.render(order)
        shown = await self._follow(order, html)
        assert shown == CHANGES, f"order {order} shows version {shown}"
        await changes
        return seconds

    async def _follow(self, order: int, html: str) -> int:
        found = re.search(r'data-version="(\d+)" data-token="([^"]+)"', html)
        assert found, html
        version, token = int(found[1]), found[2]
        offers = {"subprotocols": ["django-sockets.v1"], "scope": {"user": Request.user}}
        async with SocketClient(self.sockets.as_asgi, **offers) as socket:
            entry = await self._subscribe(socket, token)
            if entry.get("recovered"):
                self.recovered += 1
            else:
                self.resynchronised += 1
                version = self.versions[order]
            self.replayed += entry.get("count", 0)
            while version < CHANGES:
                try:
                    frame = await socket.receive_json(WAIT_SECONDS)
                except AssertionError:
                    return version
                if "gap" in frame:
                    self.resynchronised += 1
                    version = self.versions[order]
                elif "channel" in frame:
                    self.live += 1
                    version = max(version, frame["data"])
        return version

    async def _subscribe(self, socket: SocketClient, token: str) -> dict[str, Any]:
        """Subscribe as the browser client does: again after an error that is temporary."""
        while True:
            await socket.send_json({"id": 1, "subscribe": [{"token": token}]})
            while "id" not in (frame := await socket.receive_json(WAIT_SECONDS)):
                pass
            entry: dict[str, Any] = frame["ok"]["channels"][0]
            if "error" not in entry:
                return entry
            assert entry["error"]["temporary"], entry
            await asyncio.sleep(random.uniform(0.2, 0.6))


@pytest.fixture
def shop(fresh_valkey_server: CacheServer, django_project: None) -> Any:
    opened = Shop(fresh_valkey_server)
    yield opened
    opened.close()


async def seconds_of(shop: Shop, orders: range) -> list[float]:
    """Let many pages race, some at a time. Returns the seconds of the views."""
    at_once = asyncio.Semaphore(2 * RENDERED_AT_ONCE)

    async def visit(order: int) -> float:
        async with at_once:
            return await shop.visit(order)

    return await asyncio.gather(*map(visit, orders))


async def test_no_page_misses_a_change_in_a_storm_or_while_the_broker_is_silent(
    shop: Shop, fresh_valkey_server: CacheServer
) -> None:
    await shop.sockets({}).async_broadcast("order:0", 0)  # The first call connects.
    half = (PAGES - SILENT_PAGES) // 2
    usual = await seconds_of(shop, range(half))
    assert shop.recovered > half / 2, "most pages had no position"

    known = shop.resynchronised
    fresh_valkey_server.pause()
    visits = []
    for order in range(half, half + SILENT_PAGES):
        visits.append(asyncio.create_task(shop.visit(order)))
        await asyncio.sleep(SILENT_SECONDS / SILENT_PAGES)
    fresh_valkey_server.resume()
    silent = await asyncio.gather(*visits)
    assert shop.resynchronised - known >= SILENT_PAGES
    assert max(silent) < statistics.median(usual) + 0.3

    recovered = shop.recovered
    await seconds_of(shop, range(half + SILENT_PAGES, PAGES))
    assert shop.recovered > recovered, "no page had a position after the silence"
    print(
        f"\nviews: {statistics.median(usual) * 1000:.1f} ms, at most {max(usual) * 1000:.0f} ms; "
        f"with a silent broker {statistics.median(silent) * 1000:.1f} ms, "
        f"at most {max(silent) * 1000:.0f} ms\n{shop.recovered} pages were recovered with "
        f"{shop.replayed} messages, {shop.resynchronised} loaded the state again, "
        f"{shop.live} messages came"
    )
    assert shop.replayed > PAGES / 10, "hardly a change came between the position and the page"
