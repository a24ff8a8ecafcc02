"""Drives examples/board in a real browser, through a restart, a broker that dies and a logout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.client_pages import BACK_MS
from support.protocol_client import ProtocolClient, protocol_client
from support.shop_process import Server

BOARD = Path(__file__).resolve().parents[2] / "examples" / "board"
PASSWORD = "demo-password"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
WIDE = {"viewport": {"width": 1200, "height": 760}}


@pytest.fixture(scope="module")
def kind() -> str:
    """One server is enough here: tests/browser/test_client_servers.py has the others."""
    return "uvicorn"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("board") / "board.sqlite3"
    subprocess.run(
        [sys.executable, "manage.py", "setup_demo"],
        cwd=BOARD,
        env={**os.environ, "BOARD_DATABASE": str(path)},
        check=True,
        timeout=150,
    )
    return str(path)


@pytest.fixture
def expects(chromium: Any) -> Any:
    from playwright.sync_api import expect

    return expect


@pytest.fixture
def server(windows: Any, serving_example: Any, kind: str, database: str) -> Iterator[Server]:
    with serving_example("board", kind, free_port(), BOARD_DATABASE=database) as running, windows:
        yield running


@pytest.fixture
def log_in(windows: Any, expects: Any) -> Callable[..., Any]:
    def log_in(server: Server, name: str, **options: Any) -> Any:
        page = windows.open(**{**WIDE, **options}).new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        expects(connection(page)).to_have_text("Live")
        return page

    return log_in


def connection(page: Any) -> Any:
    return page.locator("#connection")


def column(page: Any, title: str) -> Any:
    return page.get_by_role("list", name=title, exact=True)


def order(page: Any, item: str) -> None:
    page.get_by_label("What would you like?").fill(item)
    page.get_by_role("button", name="Order", exact=True).click()


def test_an_order_moves_on_the_boards_of_the_staff_and_its_customer(
    log_in: Any, server: Server, expects: Any, picture: Any
) -> None:
    alice, bob = log_in(server, "alice"), log_in(server, "bob", **PHONE)
    carol = log_in(server, "carol")
    for item in ("<b>Rye bread</b>", "Walnut bread", "Pretzel"):
        order(bob, item)
        for page in (alice, bob):
            expects(column(page, "New")).to_contain_text(item)
    card = column(alice, "New").get_by_role("listitem").filter(has_text="Rye bread")
    card.get_by_role("button", name="Into the oven").click()
    for page in (alice, bob):
        expects(column(page, "In the oven")).to_contain_text("Rye bread")
        expects(column(page, "New")).not_to_contain_text("Rye bread")
    column(bob, "New").get_by_role("listitem").filter(has_text="Pretzel").get_by_role(
        "button", name="Cancel"
    ).click()
    expects(column(alice, "Cancelled")).to_contain_text("Pretzel")
    expects(carol.locator("#board")).not_to_contain_text("bread")
    for page, name in ((alice, "board"), (bob, "board-phone")):
        picture(page, name)
        page.emulate_media(color_scheme="dark")
        picture(page, f"{name}-dark")


def test_a_logout_elsewhere_is_told_and_a_login_brings_the_page_back(
    log_in: Any, server: Server, expects: Any, picture: Any
) -> None:
    bob = log_in(server, "bob", **PHONE)
    other = bob.context.new_page()
    other.goto(bob.url)
    expects(connection(other)).to_have_text("Live")
    other.get_by_role("button", name="Log out").click()
    expects(connection(bob)).to_have_text("Logged out")
    expects(bob.get_by_role("alert").filter(has_text="You were logged out")).to_be_visible()
    picture(bob, "board-logged-out-phone")
    bob.get_by_role("link", name="Log in again").click()
    expects(bob.get_by_role("button", name="Log in")).to_be_visible()


class Staff:
    """Takes an order around, as the page of another member of the staff would."""

    def __init__(self, page: Any) -> None:
        self.cookie = "; ".join(f"{one['name']}={one['value']}" for one in page.context.cookies())

    def change(self, server: Server, numbers: range) -> None:
        """One new order for each number. A request that has failed is sent again."""
        with protocol_client(server.port, cookie=self.cookie) as page:
            for number in numbers:
                self.place(page, number)

    def place(self, page: ProtocolClient, number: int) -> None:
        reference = f"00000000-0000-4000-8000-{number:012}"
        answer = page.request("place", reference=reference, item=f"number {number}")
        assert answer["item"] == f"number {number}", answer


def shown(page: Any) -> list[int]:
    texts = page.locator(".order strong").all_inner_texts()
    return sorted(int(t.removeprefix("number ")) for t in texts if t.startswith("number "))


def test_a_hundred_changes_through_a_restart_and_a_dead_broker(
    log_in: Any, windows: Any, serving_example: Any, kind: str, database: str, expects: Any,
    fresh_valkey_server: CacheServer,
) -> None:  # fmt: skip
    windows.expected = r"WebSocket connection to .* failed"
    port = free_port()
    more = {"DJANGO_SOCKETS_URL": fresh_valkey_server.url, "BOARD_DATABASE": database}
    with serving_example("board", kind, port, **more) as server:
        page = log_in(server, "alice")
        staff = Staff(page)
        staff.change(server, range(1, 41))
        expects(column(page, "New")).to_contain_text("number 40")
        # From now on: a page without a position in its token has asked for the state before. The
        # server gives none if its broker does not answer in 0.2 s.
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        expects(connection(page)).to_contain_text("trying again")
    with serving_example("board", kind, port, **more) as server, windows:
        staff.change(server, range(41, 61))
        expects(column(page, "New")).to_contain_text("number 60", timeout=BACK_MS)
        assert shown(page) == list(range(1, 61))
        # They came from the history: the page has not asked for the state.
        assert not any(url.endswith("/state/") for url in requests)
        fresh_valkey_server.kill()
        # These are committed, and their broadcasts are lost.
        staff.change(server, range(61, 71))
        assert 61 not in shown(page)
        fresh_valkey_server.start()
        staff.change(server, range(71, 101))
        expects(column(page, "New")).to_contain_text("number 70", timeout=BACK_MS)
        expects(column(page, "New")).to_contain_text("number 100")
        assert shown(page) == list(range(1, 101))
        assert any(url.endswith("/state/") for url in requests)
