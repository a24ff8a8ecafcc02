"""Headless Chromium on the examples. An error on a page's console fails the test that opened it.

Pictures go to the folder DJANGO_SOCKETS_SCREENSHOTS, else to pytest's temporary one.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from django_sockets.testing.servers import CacheServer
from support.client_pages import wait_for
from support.client_server import Publisher
from support.shop_process import Server, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync
""".split()
WAIT_MS = 30_000
"""A bound on every wait. Three workers may share two cores."""
LEFT = "WebSocket is closed before the connection is established"
"""Chromium's warning about a page that is closed while it connects."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test in a browser has more time than others: its waits alone may take 30 s each."""
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def chromium_path(missing: Callable[[str], NoReturn]) -> str:
    found = filter(None, map(shutil.which, BROWSERS))
    path = os.environ.get("DJANGO_SOCKETS_CHROMIUM") or next(found, None)
    if path is None:
        missing("no Chromium: install the package chromium, or set DJANGO_SOCKETS_CHROMIUM")
    return path


# For one module at a time: while it is open, this thread counts as running an event loop.
@pytest.fixture(scope="module")
def chromium(chromium_path: str, missing: Callable[[str], NoReturn]) -> Iterator[Any]:
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        missing("playwright is not installed")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def chromium_with_back_cache(chromium: Any, chromium_path: str) -> Iterator[Any]:
    """A browser that keeps pages for its back button, which Playwright turns off otherwise."""
    browser = chromium.browser_type.launch(
        executable_path=chromium_path,
        args=OPTIONS,
        ignore_default_args=["--disable-back-forward-cache"],
    )
    yield browser
    browser.close()


@pytest.fixture
def picture(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, str], None]:
    """Call it with a page and a name. Pages look the same behind every server, so one is enough."""
    named = os.environ.get("DJANGO_SOCKETS_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str) -> None:
        if kind == "uvicorn":
            page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def kind(request: pytest.FixtureRequest) -> str:
    """The server."""
    pytest.importorskip(request.param)
    return str(request.param)


class Windows:
    """The windows of a test, each with its own cookies, and the problems on their pages.

    Use it as a context manager inside the block of the last server: the windows are closed at the
    end of the block. A page that loses its server tries to connect again and reports a problem.
    """

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self._contexts: list[Any] = []
        self._is_closing = False
        self.problems: list[str] = []
        self.expected = ""
        """A pattern of the problems that belong to the test."""

    def open(self, **options: Any) -> Any:
        context = self._chromium.new_context(**{"reduced_motion": "reduce", **options})
        context.set_default_timeout(WAIT_MS)
        context.on("console", self._said)
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        self._contexts.append(context)
        return context

    def _said(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if not (self._is_closing and LEFT in message.text):
            self.problems.append(message.text)

    def close(self) -> None:
        self._is_closing = True
        while self._contexts:
            self._contexts.pop().close()
        self._is_closing = False

    def __enter__(self) -> Windows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def unexpected(self) -> list[str]:
        return [
            problem
            for problem in self.problems
            if not (self.expected and re.search(self.expected, problem))
        ]


@pytest.fixture
def windows(chromium: Any) -> Iterator[Windows]:
    opened = Windows(chromium)
    yield opened
    opened.close()
    assert opened.unexpected() == []


def command(server: str, port: int) -> list[str]:
    python = [sys.executable, "-m", server, "project.asgi:application"]
    if server == "daphne":
        return [*python, "--bind", "127.0.0.1", "--port", str(port)]
    return [*python, "--port", str(port), "--ws", "websockets-sansio"]


@pytest.fixture(scope="session")
def serving_example(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[Server]]:
    """Serve a Django project of `examples` with uvicorn or daphne, on a port."""

    @contextmanager
    def serve(example: str, server: str, port: int, **more: str) -> Iterator[Server]:
        more = {"PYTHONPATH": str(EXAMPLES / example), **more}
        more["DJANGO_SETTINGS_MODULE"] = "project.settings"
        log = tmp_path_factory.mktemp(server) / "log"
        with serving(command(server, port), port, log, **more) as running:
            yield running
        assert "Traceback" not in running.printed, running.printed

    return serve


# For the tests of the browser client: the application support.client_app


@pytest.fixture(scope="module")
def broker(valkey_server: CacheServer) -> str:
    return f"{valkey_server.url}?prefix=client-{os.getpid()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


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
