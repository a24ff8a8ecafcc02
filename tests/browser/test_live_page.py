"""The live page in Chromium: its figures are those of the collectors, and faults are shown."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from django_sockets.conf import load_config
from django_sockets.hub.stats import HubStats
from django_sockets.hub.survey.asking import Answer, Answers
from django_sockets.hub.survey.report import report_of_process
from django_sockets.integration.live_page.pictures import picture_of
from django_sockets.observability.live.overview import Overview
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.live_clients import LiveClients
from support.live_site import PASSWORD
from support.loop_thread import LoopThread
from support.metrics import Metrics, scraped
from support.shop_process import WAIT_SECONDS, Server, environment, serving

ROOT = Path(__file__).resolve().parents[2]
SOCKETS = 500
OF_THE_GUEST = 60
GUEST = "3"
PHONE = {"width": 390, "height": 844}
ASGI = ["-m", "uvicorn", "support.live_site:application", "--no-access-log", "--port"]
WSGI = """
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from support.live_site import wsgi_application
class Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True
make_server("127.0.0.1", int(sys.argv[1]), wsgi_application, Threads).serve_forever()
"""
SHOWN = """
() => Object.fromEntries(
    [...document.querySelectorAll("[data-total] dd")].map((dd) =>
        [dd.parentElement.dataset.total, Number(dd.dataset.value)])
)
"""
ROWS = """
(id) => [...document.getElementById(id).tBodies[0].rows].map((row) =>
    [...row.cells].map((cell) => (cell.firstElementChild ?? cell).textContent))
"""
STATUSES = """
() => Object.fromEntries(
    [...document.querySelectorAll("#live-processes tbody tr")].map((row) =>
        [row.cells[0].firstChild.textContent.split(":").pop(), row.dataset.status])
)
"""


class Live:
    """Processes of the site, and its users' windows."""

    def __init__(self, url: str, folder: Path, windows: Any) -> None:
        self._windows = windows
        self._folder = folder
        self._more = {
            "LIVE_SITE_URL": url,
            "LIVE_SITE_FOLDER": str(folder),
            "DJANGO_SOCKETS_METRICS_TOKEN": "token",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        }
        self._logs = iter(range(100))
        self.run("-m", "support.live_site")

    def run(self, *arguments: str) -> None:
        """Run Python with the settings of the site."""
        command = [sys.executable, *arguments]
        subprocess.run(command, env=environment(None, **self._more), check=True, timeout=60)

    def close_windows(self) -> None:
        """Close all pages, before their server ends."""
        self._windows.close()

    def serve(self, port: int, *command: str) -> AbstractContextManager[Server]:
        log = self._folder / f"log{next(self._logs)}"
        started = [sys.executable, *(command or ASGI), str(port)]
        return serving(started, port, log, **self._more)

    def serve_all(self, stack: ExitStack, ports: list[int]) -> list[Server]:
        """Start several processes at the same time."""
        serving = [self.serve(port) for port in ports]
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(lambda one: one.__enter__(), serving))
        for one in serving:
            stack.push(one)
        return servers

    def window(self) -> Any:
        """A page with its own cookies."""
        return self._windows.open().new_page()

    def login(self, port: int, name: str = "boss") -> Any:
        """A page with the live page behind the login."""
        page = self.window()
        page.goto(f"http://127.0.0.1:{port}/admin/sockets/")
        page.fill("#id_username", name)
        page.fill("#id_password", PASSWORD)
        page.click("[type=submit]")
        return page


@pytest.fixture
def live(valkey_server: CacheServer, tmp_path: Path, windows: Any) -> Live:
    windows.expected = "ERR_|404|403|EventSource|CORS"
    return Live(f"{valkey_server.url}?prefix=live{free_port()}", tmp_path, windows)


@pytest.fixture
def picture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, str], None]:
    folder = Path(os.environ.get("DJANGO_SOCKETS_SCREENSHOTS") or tmp_path_factory.mktemp("live"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture
def clients() -> Iterator[LiveClients]:
    with LoopThread() as loop:
        opened = LiveClients(loop)
        yield opened
        opened.close()


def metrics_of(servers: list[Server]) -> Metrics:
    """The sums of the collectors of some processes."""
    found = Metrics([])
    for server in servers:
        found = found.plus(scraped(read(server, "/metrics")))
    return found


def read(server: Server, path: str) -> str:
    import urllib.request

    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    request.add_header("Authorization", "Bearer token")
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        text: str = answer.read().decode()
    return text


def until_slow(server: Server) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while metrics_of([server])("slow_clients") != 1:
        assert time.monotonic() < ends
        time.sleep(0.1)  # The process offers no event to wait for.


def wait_for_next(page: Any) -> None:
    """Wait for a picture that was asked for after this call."""
    at = page.evaluate("Number(document.getElementById('live').dataset.pictureTime)")
    for _ in range(2):
        at = page.wait_for_function(
            "(at) => { const now = Number(document.getElementById('live').dataset.pictureTime);"
            " return now > at && now; }",
            arg=at,
        ).json_value()


def counters_on(page: Any) -> dict[str, int]:
    return {name: int(text.replace(",", "")) for name, text in page.evaluate(ROWS, "live-counters")}


def compare_with_the_collectors(page: Any, servers: list[Server]) -> None:
    """Present numbers are equal. Counters lie between a scrape before and one after the picture."""
    before = metrics_of(servers)
    wait_for_next(page)
    counters, shown = counters_on(page), page.evaluate(SHOWN)
    after = metrics_of(servers)
    assert shown["sockets"] == after("open_sockets", broker="redis") == SOCKETS
    assert shown["slow"] == after("slow_clients", broker="redis") == 1
    assert shown["gaps"] == after("gaps_total", broker="redis")
    for name in ("channels", "subscribers", "queued_messages", "queued_bytes"):
        assert counters[name] == after(name, broker="redis"), name
    assert counters["dropped_overflow"] == after("messages_dropped_total", broker="redis")
    for name in ("published", "delivered"):
        least, most = (one(f"messages_{name}_total", broker="redis") for one in (before, after))
        assert least <= counters[name] <= most, name
    assert counters["delivered"] > SOCKETS


def sockets(ports: list[int]) -> list[tuple[int, str, str, str]]:
    """All but the slow one, on all processes and over two classes."""
    users = [GUEST] * OF_THE_GUEST + [f"user-{n % 50}" for n in range(SOCKETS)]
    return [
        (ports[n % 3], "chat" if n % 2 else "orders", users[n], f"room:{n % 30}&channel=news")
        for n in range(SOCKETS - 1)
    ]


@pytest.mark.load
def test_the_page_shows_what_the_collectors_count_and_what_dies(
    live: Live, clients: LiveClients, picture: Callable[[Any, str], None]
) -> None:
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        servers = live.serve_all(stack, ports)
        pids = [str(server.process.pid) for server in servers]
        clients.open(sockets(ports))
        clients.flood(ports[1], "slow-reader", 300)
        until_slow(servers[1])
        clients.say("news", 3)

        page = live.login(ports[0])
        page.wait_for_function(f"() => ({SHOWN})().sockets === {SOCKETS}")
        page.wait_for_function(f"() => ({SHOWN})().slow === 1")
        compare_with_the_collectors(page, servers)
        assert page.evaluate(STATUSES) == dict.fromkeys(pids, "serving")
        assert dict(page.evaluate(ROWS, "live-sockets")) == {"Chat": "250", "Orders": "250"}
        assert page.evaluate(ROWS, "live-users")[0][:2] == [GUEST, str(OF_THE_GUEST)]
        ((user, class_name, process, *_),) = page.evaluate(ROWS, "live-slow")
        assert (user, class_name, process.split(":")[-1]) == ("slow-reader", "Chat", pids[1])
        picture(page, "live-desktop")
        page.emulate_media(color_scheme="dark")
        picture(page, "live-dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        picture(page, "live-phone")
        page.set_viewport_size({"width": 1280, "height": 900})

        page.get_by_label(f"Close the sockets of user {GUEST}", exact=True).click()
        page.wait_for_selector("text=/3 .guest. on every process/")
        picture(page, "live-close")
        page.click("text='Close the sockets'")
        page.wait_for_selector("text=/told to close the sockets of user 3/")
        assert clients.until_closed(GUEST, OF_THE_GUEST) == [4401] * OF_THE_GUEST
        page.wait_for_function(f"() => ({SHOWN})().sockets === {SOCKETS - OF_THE_GUEST}")

        servers[2].end(signal.SIGKILL)
        page.wait_for_function(f"() => ({STATUSES})()['{pids[2]}'] === 'late'")
        picture(page, "live-late")
        page.wait_for_function(f"() => ({STATUSES})()['{pids[2]}'] === 'gone'")
        picture(page, "live-gone")
        left = metrics_of(servers[:2])("open_sockets", broker="redis")
        page.wait_for_function(f"() => ({SHOWN})().sockets === {left}")

        # The process that serves the page dies, too. Its successor has heard of neither.
        servers[0].end(signal.SIGKILL)
        page.wait_for_function(
            "document.getElementById('live-connection').dataset.status === 'waiting'"
        )
        with live.serve(ports[0]) as successor:
            new = str(successor.process.pid)
            page.wait_for_function(f"() => ({STATUSES})()['{new}'] === 'serving'", timeout=90_000)
            statuses = page.evaluate(STATUSES)
            assert statuses[pids[2]] == "gone"
            assert statuses[pids[0]] in ("late", "gone")
            assert statuses[pids[1]] == "serving"
            picture(page, "live-successor")
            live.close_windows()


def test_others_and_other_origins_get_nothing(live: Live) -> None:
    port = free_port()
    with live.serve(port) as server, live.serve(free_port()) as other:
        guest = live.window()
        guest.goto(f"http://127.0.0.1:{port}/enter/?name=guest")
        guest.goto(f"http://127.0.0.1:{port}/admin/sockets/")
        guest.wait_for_selector("text=/not authorized/")
        address = f"http://127.0.0.1:{port}/admin/sockets/"
        for name in ("snapshot/", "stream/", "broker/"):
            answer = guest.request.get(address + name)
            assert (answer.status, "redis" in answer.text()) == (403, False)

        boss = live.login(port)
        boss.wait_for_selector("#live-processes")
        # The same host on another port is the same site: the browser sends the cookies of the boss.
        boss.goto(f"http://127.0.0.1:{other.port}/")
        for name in ("snapshot/", "broker/"):
            read = "(address) => fetch(address, {credentials: 'include'}).then(() => 1, () => 0)"
            assert boss.evaluate(read, address + name) == 0
        stream = """(address) => new Promise((resolve) => {
            const source = new EventSource(address, {withCredentials: true});
            source.onopen = source.onmessage = () => resolve("open");
            source.onerror = () => resolve("refused");
        })"""
        assert boss.evaluate(stream, f"{address}stream/") == "refused"
        for name in ("snapshot/", "broker/", "stream/"):
            server.wait_for(f"Forbidden: /admin/sockets/{name}", 2)


def worst_picture() -> str:
    """A picture of 1,000 processes, with the longest names, which try to be HTML."""
    own = report_of_process(load_config("memory://worst").url)
    names = [(f"<img src=x onerror=alert({n})>".ljust(120, "W"), 10**9) for n in range(20)]
    user, _ = names[0]
    slow = {"socket": "W" * 120, "user": user, "messages": 10**9, "bytes": 10**12}
    report = {**own, "host": "W" * 120, "channels": names, "users": names, "slow": [slow] * 20}
    report["sockets"] = {user: 10**9}
    report["numbers"] = dict.fromkeys(HubStats.__annotations__, 10**15)
    answers = [Answer({**report, "process": str(n)}, 0.7, True) for n in range(1000)]
    overview = Overview("redis://" + "w" * 120)
    overview.add(Answers(answers, True), 0.0)
    found = overview.snapshot(0.0, 1.0)
    found["problem"] = "<b>no route</b> " + "W" * 300
    return picture_of(found, "feed").decode()


def show_the_worst(page: Any, picture: Callable[[Any, str], None]) -> None:
    """Long names, many processes and a lost broker must not break the page."""
    page.route("**/snapshot/", lambda route: route.fulfill(body=worst_picture()))
    page.wait_for_selector("text=/asked: <b>no route/")
    page.wait_for_selector("text='800 more processes are counted, but not listed.'")
    page.wait_for_selector("#live-interrupted:visible")
    assert page.locator("#live img, #live b").count() == 0
    assert page.evaluate(ROWS, "live-users")[0][0].startswith("<img src=x")
    for size in ({"width": 1280, "height": 900}, PHONE):
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        picture(page, f"live-worst-{size['width']}")
    page.unroute("**/snapshot/")


def test_a_wsgi_server_is_polled_and_the_page_says_so(
    live: Live, picture: Callable[[Any, str], None]
) -> None:
    port = free_port()
    with live.serve(port, "-c", WSGI) as server:
        page = live.login(port)
        pid = str(server.process.pid)
        page.wait_for_function(f"() => ({STATUSES})()['{pid}'] === 'serving'")
        assert "WSGI" in page.inner_text("#live-connection")
        wait_for_next(page)
        page.click("#live-check")
        page.wait_for_selector("text='The broker works.'")
        assert re.search(r"valkey \d", page.inner_text("#live-broker"))
        show_the_worst(page, picture)
        # A demotion while the page is open.
        demotion = """
from support import live_site
from django.contrib.auth.models import User
User.objects.filter(username="boss").update(is_staff=False)
"""
        live.run("-c", demotion)
        page.wait_for_selector("#live-connection[data-status=refused]")
        live.close_windows()
