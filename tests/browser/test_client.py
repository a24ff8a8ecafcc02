"""The browser client in Chromium, through all that happens to a page and its connection.

Times are shortened by a server that pings every 2 s. DJANGO_SOCKETS_CLIENT_PING_SECONDS=25 gives
the times that users have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.ports import free_port
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer
from support.client_app import configuration
from support.client_server import (
    COMMANDS,
    NOTICED_SECONDS,
    PING_SECONDS,
    Publisher,
    client_app,
)
from support.loop_thread import LoopThread
from support.shop_process import Server

pytestmark = pytest.mark.timeout(180 if PING_SECONDS == 2 else 900)


@pytest.fixture(scope="module")
def kind() -> str:
    """One server is enough here: see test_other_servers."""
    return "uvicorn"


@pytest.fixture(scope="module")
def broker(valkey_server: CacheServer) -> str:
    return f"{valkey_server.url}?prefix=client-{os.getpid()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def server(folder: Path, broker: str) -> Iterator[Server]:
    with client_app(folder, broker) as running:
        yield running


@pytest.fixture
def publisher(broker: str) -> Publisher:
    return Publisher(broker)


@pytest.fixture
def open_page(windows: Any) -> Callable[..., Any]:
    def open_page(port: int, context: Any = None, query: str = "") -> Any:
        page = (context or windows.open()).new_page()
        page.goto(f"http://127.0.0.1:{port}/{query}")
        wait_for(page, "window.isReady?.()")
        return page

    return open_page


def wait_for(page: Any, expression: str, seconds: float = 10) -> None:
    page.wait_for_function(expression, timeout=seconds * 1000)


def shown(page: Any, last: int) -> list[Any]:
    """What the page has shown. Each number comes once and in order, or a gap covers it.

    On the channel with a history, no number is missing, and there is no gap.
    """
    wait_for(page, f"kept.includes({last})")
    kept = page.evaluate("kept")
    assert "gap" not in kept, page.evaluate("[keptGaps, states]")
    assert kept == list(range(kept[0], kept[-1] + 1))
    found: list[Any] = page.evaluate("shown")
    in_order_or_gap(found)
    return found


def in_order_or_gap(found: list[Any]) -> None:
    before, covered = None, False
    for one in found:
        if one == "gap":
            covered = True
            continue
        assert before is None or one > before, f"{one} after {before}"
        assert before is None or one == before + 1 or covered, f"{before} to {one} without a gap"
        before, covered = one, False


def test_two_tabs_show_each_number_once_and_requests_are_answered(
    open_page: Any, server: Server, publisher: Publisher, windows: Any, picture: Any, kind: str
) -> None:
    one = open_page(server.port)
    two = open_page(server.port, one.context)
    publisher.publish(300)
    for page in (one, two):
        assert shown(page, 300) == list(range(1, 301))
        assert page.evaluate("socket.request('double', {n: 21})") == 42
    assert one.evaluate("socket.session") != two.evaluate("socket.session")
    picture(one, "client-connected")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"own"}))
def test_other_servers(
    name: str, open_page: Any, folder: Path, broker: str, publisher: Publisher, windows: Any
) -> None:
    pytest.importorskip(name)
    windows.expected = r"WebSocket connection to .* failed"
    with client_app(folder, broker, name) as first:
        page = open_page(first.port)
        publisher.publish(40)
        assert shown(page, 40) == list(range(1, 41))
        assert page.evaluate("socket.request('double', {n: 4})") == 8
        refused = page.context.new_page()
        refused.goto(f"http://127.0.0.1:{first.port}/?path=/ws/login")
        wait_for(refused, "socket.state === 'closed'")
        assert refused.evaluate("[socket.status.reason, socket.status.code]") == ["refused", 4401]
        assert "Traceback" not in first.printed, first.printed
        first.end()
        wait_for(page, "socket.state === 'waiting'")
        # docs/shutdown.md has the codes of the servers.
        assert page.evaluate("states.at(-1).code") == (1011 if name == "hypercorn" else 1012)
    publisher.publish(20)
    with client_app(folder, broker, name, port=first.port):
        wait_for(page, "isReady()", 30)
        publisher.publish(40)
        shown(page, 100)
        assert page.evaluate("kept") == list(range(1, 101))

        # The login may be another one now: the page connects once more, within a second.
        page.evaluate("states.length = 0; socket.send('leave', {code: 4401})")
        wait_for(page, "states.some(({state}) => state === 'connected')")
        ended = page.evaluate("states[0]")
        assert (ended["state"], ended["reason"], ended["code"]) == ("waiting", "server", 4401)
        # The server says in `bye` that nobody should come back.
        page.evaluate("socket.send('leave', {code: 4100})")
        wait_for(page, "socket.state === 'closed'")
        assert page.evaluate("[socket.status.reason, socket.status.code]") == ["server", 4100]
        assert page.evaluate("kept") == list(range(1, 101))
        windows.close()


@pytest.mark.parametrize(("path", "code"), [("/ws/login", 4401), ("/ws/staff", 4403)])
def test_a_refusal_is_told_from_a_server_that_is_not_there(
    path: str, code: int, windows: Any, server: Server, picture: Any
) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/?path={path}")
    wait_for(page, "socket.state === 'closed'")
    status = page.evaluate("socket.status")
    assert (status["reason"], status["code"]) == ("refused", code)
    windows.expected = r"WebSocket connection to .* failed"
    page.goto(f"http://127.0.0.1:{server.port}/?path=ws://127.0.0.1:{free_port()}/")
    wait_for(page, "states.filter(({state}) => state === 'waiting').length >= 2")
    assert page.evaluate("states.find(({state}) => state === 'waiting').reason") == "unreachable"


def test_a_server_restart_loses_nothing_without_a_gap(
    open_page: Any, folder: Path, broker: str, publisher: Publisher, windows: Any
) -> None:
    windows.expected = r"WebSocket connection to .* failed"
    with ExitStack() as stack:
        first = stack.enter_context(client_app(folder, broker))
        with publisher.steadily():
            pages = [open_page(first.port) for _ in range(2)]
            first.end()
            for page in pages:
                wait_for(page, "socket.state === 'waiting'")
                assert page.evaluate("states.at(-1).code") in (1012, 1006)
            stack.enter_context(client_app(folder, broker, port=first.port))
            for page in pages:
                wait_for(page, "isReady()", 30)
        publisher.publish(20)
        for page in pages:
            shown(page, publisher.last)
        windows.close()


@pytest.fixture
def link(server: Server) -> Iterator[tuple[LoopThread, FaultProxy]]:
    """A link to the server that can fail."""
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        proxy = FaultProxy("127.0.0.1", server.port)
        loop.run(proxy.__aenter__())
        stack.callback(lambda: loop.run(proxy.aclose()))
        yield loop, proxy


async def do(action: Callable[[], None]) -> None:
    action()


def test_a_black_holed_link_is_noticed_and_a_frozen_page_is_not_mistaken_for_one(
    open_page: Any, server: Server, link: Any, publisher: Publisher
) -> None:
    loop, proxy = link
    cut, frozen = open_page(proxy.port), open_page(server.port)
    session = frozen.evaluate("socket.session")
    publisher.publish(10)
    for page in (cut, frozen):
        shown(page, 10)
    cdp = frozen.context.new_cdp_session(frozen)
    cdp.send("Page.setWebLifecycleState", {"state": "frozen"})
    loop.run(do(proxy.blackhole))
    began = time.monotonic()
    publisher.publish(200)
    wait_for(cut, "socket.state === 'waiting'", NOTICED_SECONDS + 5)
    assert time.monotonic() - began < NOTICED_SECONDS + 2
    wait_for(cut, "isReady()")
    publisher.publish(10)
    assert shown(cut, 220).count("gap") == 1

    # It was frozen for longer than a dead link is waited for.
    cdp.send("Page.setWebLifecycleState", {"state": "active"})
    assert shown(frozen, 220) == list(range(1, 221))
    checked = frozen.evaluate("new Promise((done) => setTimeout(() => done(socket.session), 6000))")
    assert checked == session, "the check after the wake-up has ended the connection"
    assert frozen.evaluate("states.length") == 1


def test_a_request_at_a_cut_is_temporary_and_not_sent_again(
    open_page: Any, link: Any, publisher: Publisher
) -> None:
    loop, proxy = link
    page = open_page(proxy.port)
    loop.run(do(lambda: proxy.blackhole("writes")))
    page.evaluate(
        "void (window.outcome = socket.request('say', {n: -1}, {timeout: 60000})"
        ".catch(({code, temporary}) => [code, temporary]))"
    )
    loop.run(do(proxy.drop))
    assert page.evaluate("outcome") == ["disconnected", True]
    wait_for(page, "isReady()")
    publisher.publish(5)
    assert -1 not in shown(page, 5)


def test_the_page_connects_at_once_when_the_network_is_back(
    open_page: Any, link: Any, windows: Any, publisher: Publisher
) -> None:
    windows.expected = r"WebSocket connection to .* failed|ERR_INTERNET_DISCONNECTED"
    loop, proxy = link
    page = open_page(proxy.port)
    page.context.set_offline(True)
    loop.run(do(proxy.drop))
    wait_for(page, "socket.state === 'waiting'")
    # Some attempts later, the next one is far away.
    wait_for(page, "states.filter(({state}) => state === 'waiting').length >= 4", 30)
    page.context.set_offline(False)
    wait_for(page, "isReady()", 3)
    publisher.publish(5)
    shown(page, 5)


def test_a_page_from_the_back_forward_cache_connects_again(
    chromium: Any, server: Server, publisher: Publisher, windows: Any
) -> None:
    # Playwright turns the cache off for the browsers that it starts.
    path = chromium_path(chromium)
    browser = chromium.browser_type.launch(
        executable_path=path,
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        ignore_default_args=["--disable-back-forward-cache"],
    )
    try:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        wait_for(page, "isReady()")
        publisher.publish(10)
        shown(page, 10)
        page.goto(f"http://127.0.0.1:{server.port}/other.html")
        publisher.publish(10)
        page.go_back(wait_until="commit")
        wait_for(page, "window.persisted")
        wait_for(page, "isReady()")
        assert [status["state"] for status in page.evaluate("states")] == [
            "connected", "waiting", "connecting", "connected",
        ]  # fmt: skip
        publisher.publish(10)
        assert shown(page, 30).count("gap") == 1
    finally:
        browser.close()


def chromium_path(chromium: Any) -> str:
    found: str = chromium.new_browser_cdp_session().send("Browser.getVersion")["product"]
    assert "Chrom" in found
    import shutil

    named = os.environ.get("DJANGO_SOCKETS_CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))


def test_a_web_worker(windows: Any, server: Server) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/worker.html")
    wait_for(page, "document.title === '42 7'")


def test_a_broker_that_is_killed_costs_a_gap_and_no_connection(
    open_page: Any, folder: Path, fresh_valkey_server: CacheServer, windows: Any
) -> None:
    broker = fresh_valkey_server.url
    publisher = Publisher(broker)
    with client_app(folder, broker) as running:
        page = open_page(running.port)
        with publisher.steadily():
            wait_for(page, "shown.length > 20")
            fresh_valkey_server.kill()
            fresh_valkey_server.start()
            wait_for(page, "shown.includes('gap') && kept.includes('gap')", 20)
            last = publisher.last
            wait_for(page, f"shown.at(-1) > {last} && kept.at(-1) > {last}", 20)
        in_order_or_gap(page.evaluate("shown"))
        # Valkey has kept nothing on a disk.
        in_order_or_gap(page.evaluate("kept"))
        assert page.evaluate("states.length") == 1
        windows.close()


def test_a_failover_of_a_cluster_costs_a_gap_at_most_and_no_connection(
    open_page: Any, folder: Path, restored_valkey_cluster: CacheCluster, windows: Any
) -> None:
    cluster = restored_valkey_cluster
    broker = f"{cluster.url}?prefix=client-{os.getpid()}"
    publisher = Publisher(broker)
    with client_app(folder, broker) as running:
        page = open_page(running.port)
        with publisher.steadily():
            wait_for(page, "shown.length > 20 && kept.length > 20")
            # In turn, the server that has `kept:1` and the one that has `room:1` are replaced.
            for name, is_orderly in (("kept:1", True), ("room:1", False)):
                node = cluster.primary_of(cluster.slot_of(f"{{{name}}}"))
                if is_orderly:
                    cluster.failover(cluster.replicas_of(node)[0])
                else:
                    node.kill()
                    cluster.wait_promoted(node)
                last = publisher.last
                wait_for(page, f"shown.at(-1) > {last} && kept.at(-1) > {last}", 20)
        publisher.publish(100)
        wait_for(page, f"shown.at(-1) === {publisher.last} && kept.at(-1) === {publisher.last}")
        for numbers in ("shown", "kept"):
            found = page.evaluate(numbers)
            in_order_or_gap(found)
            assert found.count("gap") >= 1, numbers
        assert page.evaluate("states.length") == 1
        windows.close()


def test_tokens_are_renewed_before_they_expire(windows: Any, server: Server, broker: str) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/tokens.html")
    wait_for(page, "secret?.state === 'subscribed' && forged.length && named.length")
    assert page.evaluate("forged") == ["refused", "token_invalid"]
    assert page.evaluate("named") == ["refused", "forbidden"]
    wait_for(page, "expired.includes('subscribed')")
    wait_for(page, "fetched === 4", 15)  # Two renewals.
    broadcaster = Broadcaster(config=configuration(broker))
    broadcaster.broadcast("secret:1", {"n": 1})
    wait_for(page, "renewed.includes(1)")
    assert page.evaluate("renewed") == ["subscribed", 1]
    assert page.evaluate("expired") == ["subscribed", "refused", "expired"]


def test_react_components_follow_a_channel_while_they_are_on_the_page(
    node: Any, windows: Any, folder: Path, tmp_path: Path, broker: str, publisher: Publisher
) -> None:
    entry = [*"npx --no-install esbuild tests/react_page.js --bundle --format=esm".split()]
    built = node(*entry, '--define:process.env.NODE_ENV="development"', f"--outdir={tmp_path}")
    assert built.returncode == 0, built.stderr
    with client_app(folder, broker, pages=str(tmp_path)) as running:
        page = windows.open().new_page()
        page.goto(f"http://127.0.0.1:{running.port}/react.html")
        text = "document.getElementById('room').textContent"
        wait_for(page, f"{text} === 'room:1 subscribed '")
        publisher.publish(3)
        wait_for(page, f"{text} === 'room:1 subscribed 1,2,3'")
        assert page.evaluate("document.getElementById('state').textContent") == "connected"
        page.evaluate("socket.request('here', {n: 7})")
        wait_for(page, "document.getElementById('present').textContent === '7'")
        page.evaluate("socket.close()")
        wait_for(page, "document.getElementById('state').textContent === 'closed'")
        page.evaluate("socket.reconnect()")
        wait_for(page, f"gaps === 1 && {text}.startsWith('room:1 subscribed')")
        page.evaluate("setName('kept:1')")
        wait_for(page, f"{text} === 'kept:1 subscribed '")
        publisher.publish(1)
        wait_for(page, f"{text} === 'kept:1 subscribed 4'")
        page.evaluate("setName('none')")
        sent = page.evaluate("socket.request('double', {n: 1})")  # The unsubscribe is before it.
        assert sent == 2
        renders = page.evaluate("renders")
        publisher.publish(1)
        page.evaluate("socket.request('double', {n: 1})")
        assert page.evaluate("renders") == renders
        windows.close()


def test_a_thousand_numbers_through_all_of_it(
    open_page: Any, link: Any, windows: Any, publisher: Publisher
) -> None:
    windows.expected = r"WebSocket connection to .* failed|ERR_INTERNET_DISCONNECTED"
    loop, proxy = link
    pages = [open_page(proxy.port) for _ in range(2)]
    with publisher.steadily(0.004):
        for turn in range(6):
            page = pages[turn % 2]
            wait_for(page, "isReady()", 30)
            if turn % 3 == 0:
                loop.run(do(proxy.drop))
            elif turn % 3 == 1:
                page.evaluate("socket.close(); socket.reconnect()")
            else:
                cdp = page.context.new_cdp_session(page)
                cdp.send("Page.setWebLifecycleState", {"state": "frozen"})
                publisher_was_at = publisher.last
                while publisher.last < publisher_was_at + 50:
                    time.sleep(0.01)  # The page cannot tell.
                cdp.send("Page.setWebLifecycleState", {"state": "active"})
            wait_for(page, f"shown.at(-1) > {publisher.last}", 30)
    for page in pages:
        wait_for(page, "isReady()", 30)
    publisher.publish(max(1000 - publisher.last, 1))
    for page in pages:
        shown(page, publisher.last)
