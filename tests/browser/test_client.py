"""The browser client in Chromium, through all that happens to a page and its connection.

Times are shortened by a server that pings every 2 s. DJANGO_SOCKETS_CLIENT_PING_SECONDS=25 gives
the times that users have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.testing.ports import free_port
from django_sockets.testing.proxy import FaultProxy
from support.client_app import configuration
from support.client_pages import BACK_SECONDS, shown, wait_for
from support.client_server import NOTICED_SECONDS, PING_SECONDS, Publisher, client_app
from support.loop_thread import LoopThread
from support.shop_process import Server

pytestmark = pytest.mark.timeout(300 if PING_SECONDS == 2 else 900)


@pytest.fixture(scope="module")
def kind() -> str:
    """One server is enough here: tests/browser/test_client_servers.py has the others."""
    return "uvicorn"


@pytest.fixture(scope="module")
def server(folder: Path, broker: str) -> Iterator[Server]:
    with client_app(folder, broker) as running:
        yield running


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


@pytest.fixture
def link(server: Server, windows: Any) -> Iterator[tuple[LoopThread, FaultProxy]]:
    """A link to the server that can fail."""
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        proxy = FaultProxy("127.0.0.1", server.port)
        loop.run(proxy.__aenter__())
        stack.callback(lambda: loop.run(proxy.aclose()))
        stack.enter_context(windows)
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
    wait_for(cut, "socket.state === 'waiting'", 4 * NOTICED_SECONDS)
    # client/tests/liveness.test.js has the exact times. On a busy machine, timers are late.
    assert time.monotonic() - began < 2 * NOTICED_SECONDS
    wait_for(cut, "isReady()", BACK_SECONDS)
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
    page.evaluate("window.begun = []")
    page.evaluate(
        "void socket.on('state', (state) => state === 'connecting' && begun.push(Date.now()))"
    )
    # The delays grow. At last, the next attempt is far away.
    wait_for(page, "socket.status.retryAt > Date.now() + 5000", 3 * BACK_SECONDS)
    planned = page.evaluate("socket.status.retryAt")
    page.context.set_offline(False)
    wait_for(page, "isReady()")
    assert page.evaluate("begun.at(-1)") < planned
    assert page.evaluate("states.at(-3).retryAt") == planned, "it needed another attempt"
    publisher.publish(5)
    shown(page, 5)


def test_a_page_from_the_back_forward_cache_connects_again(
    chromium_with_back_cache: Any, server: Server, publisher: Publisher
) -> None:
    page = chromium_with_back_cache.new_page()
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


def test_a_web_worker(windows: Any, server: Server) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/worker.html")
    wait_for(page, "document.title === '42 7'")


def test_tokens_are_renewed_before_they_expire(windows: Any, server: Server, broker: str) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/tokens.html")
    wait_for(page, "secret?.state === 'subscribed' && forged.length && named.length")
    assert page.evaluate("forged") == ["refused", "token_invalid"]
    assert page.evaluate("named") == ["refused", "forbidden"]
    wait_for(page, "expired.includes('subscribed')")
    wait_for(page, "fetched >= 4")  # Two renewals.
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
    with client_app(folder, broker, pages=str(tmp_path)) as running, windows:
        page = windows.open().new_page()
        page.goto(f"http://127.0.0.1:{running.port}/react.html")
        text = "document.getElementById('room').textContent"
        wait_for(page, f"{text} === 'room:1 subscribed '")
        publisher.publish(3)
        wait_for(page, f"{text} === 'room:1 subscribed 1,2,3'")
        assert page.evaluate("document.getElementById('state').textContent") == "connected"
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
