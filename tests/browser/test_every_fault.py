"""A thousand numbers on two tabs, through all that happens to a page, its server and its broker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.proxy import FaultProxy
from support.client_pages import BACK_SECONDS, in_order_or_gap, wait_for
from support.client_server import NOTICED_SECONDS, Publisher, client_app
from support.loop_thread import LoopThread

HAS_TRIED_THREE_TIMES = "states.filter(({state}) => state === 'waiting').length >= 3"
HAS_WAITED = "states.some(({state}) => state === 'waiting')"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def open_tab(chromium_with_back_cache: Any) -> Callable[[str], Any]:
    context = chromium_with_back_cache.new_context()

    def open_tab(url: str) -> Any:
        page = context.new_page()
        page.goto(url)
        wait_for(page, "window.isReady?.()")
        return page

    return open_tab


async def do(action: Callable[[], None]) -> None:
    action()


def test_a_thousand_numbers_come_once_and_in_order_or_a_gap_covers_them(
    open_tab: Callable[[str], Any], tmp_path: Path, restored_valkey_cluster: CacheCluster
) -> None:
    cluster = restored_valkey_cluster
    broker = f"{cluster.url}?prefix=faults-{os.getpid()}"
    publisher = Publisher(broker)
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        server = stack.enter_context(client_app(tmp_path, broker))
        proxy = FaultProxy("127.0.0.1", server.port)
        loop.run(proxy.__aenter__())
        stack.callback(lambda: loop.run(proxy.aclose()))
        address = f"http://127.0.0.1:{proxy.port}/"
        pages = [open_tab(address) for _ in range(2)]

        def shows_last(page: Any) -> bool:
            return bool(page.evaluate("[shown.at(-1), kept.at(-1)]") == 2 * [publisher.last])

        def all_are_whole() -> None:
            """Every page is ready and has shown what was published until now."""
            last = publisher.last
            for page in pages:
                wait_for(
                    page,
                    f"isReady() && kept.at(-1) >= {last} && shown.at(-1) >= {last}",
                    BACK_SECONDS,
                )

        with publisher.steadily(0.02):
            all_are_whole()
            loop.run(do(proxy.drop))
            all_are_whole()

            pages[0].context.set_offline(True)
            loop.run(do(proxy.drop))
            for page in pages:
                wait_for(
                    page,
                    "states.filter(({state}) => state === 'waiting').length >= 3",
                    BACK_SECONDS,
                )
            pages[0].context.set_offline(False)
            all_are_whole()

            devtools = pages[0].context.new_cdp_session(pages[0])
            devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
            until = publisher.last + 200
            while publisher.last < until:
                time.sleep(0.01)  # The frozen page cannot tell.
            devtools.send("Page.setWebLifecycleState", {"state": "active"})
            all_are_whole()

            # The servers of users end the sessions of a logout with this code.
            pages[1].evaluate("states.length = 0; socket.send('leave', {code: 4401})")
            wait_for(pages[1], "states.some(({code}) => code === 4401)")
            all_are_whole()

            pages[1].goto(f"{address}other.html")
            pages[1].go_back(wait_until="commit")
            wait_for(pages[1], "window.persisted")
            all_are_whole()

            for page in pages:
                page.evaluate("states.length = 0")
            loop.run(do(proxy.blackhole))
            for page in pages:
                wait_for(page, HAS_WAITED, NOTICED_SECONDS + 30)
            all_are_whole()

            for page in pages:
                page.evaluate("states.length = 0")
            server.end()
            for page in pages:
                wait_for(page, HAS_WAITED)
            server = stack.enter_context(client_app(tmp_path, broker, port=server.port))
            all_are_whole()
            for page in pages:
                kept = page.evaluate("kept")
                assert "gap" not in kept, page.evaluate("[keptGaps, states]")
                assert kept == list(range(kept[0], kept[-1] + 1))

            # In turn, the server that has `kept:1` and the one that has `room:1` are replaced.
            for name, is_orderly in (("kept:1", True), ("room:1", False)):
                node = cluster.primary_of(cluster.slot_of(f"{{{name}}}"))
                if is_orderly:
                    cluster.failover(cluster.replicas_of(node)[0])
                else:
                    node.kill()
                    cluster.wait_promoted(node)
                all_are_whole()
        publisher.publish(max(1000 - publisher.last, 1))
        # A gap may cover the last numbers after a failover: then the next ones come.
        while not all(map(shows_last, pages)):
            publisher.publish()
            time.sleep(0.1)
        for page in pages:
            in_order_or_gap(page.evaluate("shown"))
            in_order_or_gap(page.evaluate("kept"))
            page.close()  # Before the server goes.
