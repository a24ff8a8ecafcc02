"""Drives examples/demo in a real browser, through cuts, a restart and a broker that dies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.client_pages import BACK_MS
from support.protocol_client import protocol_client
from support.shop_process import Server

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
WIDE = {"viewport": {"width": 1000, "height": 720}}


@pytest.fixture(scope="module")
def kind() -> str:
    """One server is enough here: tests/browser/test_client_servers.py has the others."""
    return "uvicorn"


@pytest.fixture
def expects(chromium: Any) -> Any:
    from playwright.sync_api import expect

    return expect


@pytest.fixture
def tab(windows: Any, expects: Any) -> Callable[..., Any]:
    def open_tab(server: Server, name: str, **options: Any) -> Any:
        page = windows.open(**{**WIDE, **options}).new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_label("Your name").fill(name)
        expects(page.locator("#state")).to_have_text("Connected")
        return page

    return open_tab


@pytest.fixture
def server(windows: Any, serving_example: Any, kind: str) -> Iterator[Server]:
    with serving_example("demo", kind, free_port()) as running, windows:
        yield running


def write(page: Any, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def publish(server: Server, numbers: range) -> None:
    """Write numbers, as another tab would. A request that has failed is repeated, with its id."""
    with protocol_client(server.port) as other:
        for number in numbers:
            said = {"id": f"n{number}", "name": "Other", "text": f"number {number}"}
            while (error := other.request("say", **said)) is not None:
                assert error["temporary"], error


def shown(page: Any) -> list[int]:
    texts = page.locator("#log .text").all_inner_texts()
    return [int(text.removeprefix("number ")) for text in texts if text.startswith("number ")]


def test_a_tab_without_a_link_says_so_and_gets_what_it_has_missed(
    tab: Any, server: Server, expects: Any, picture: Any
) -> None:
    ada, ben = tab(server, "Ada"), tab(server, "Ben", **PHONE)
    write(ada, "<b>Is anybody there?</b>")
    expects(ben.locator("#log")).to_contain_text("<b>Is anybody there?</b>")
    write(ben, "Yes, on my phone.")
    expects(ada.locator("#log")).to_contain_text("Yes, on my phone.")
    ben.get_by_role("switch", name="Link to server").uncheck(force=True)
    expects(ben.locator("#state")).to_have_text("Link cut")
    expects(ben.get_by_role("button", name="Send")).to_be_disabled()
    for text in ("one", "two", "three"):
        write(ada, text)
        expects(ada.locator("#log")).to_contain_text(text)
    expects(ben.locator("#log")).not_to_contain_text("two")
    picture(ben, "demo-cut-phone")
    ben.get_by_role("switch", name="Link to server").check(force=True)
    expects(ben.locator(".cut")).to_have_text("The link was cut. 3 messages came afterwards:")
    expects(ben.locator(".late .text")).to_have_text(["one", "two", "three"])
    write(ben, "Back again.")
    expects(ada.locator("#log .text").last).to_have_text("Back again.")
    expects(ben.locator("#log")).not_to_contain_text("may be missing")
    for page, name in ((ada, "demo"), (ben, "demo-phone")):
        picture(page, name)
        page.emulate_media(color_scheme="dark")
        picture(page, f"{name}-dark")


def test_the_robot_counts_in_every_tab(tab: Any, server: Server, expects: Any) -> None:
    ada, ben = tab(server, "Ada"), tab(server, "Ben")
    ada.get_by_role("button", name="Robot, count!").click()
    for page in (ada, ben):
        expects(page.locator("#log .text").nth(2)).to_have_text("3 of 20")


def test_a_hundred_numbers_through_a_restart_and_a_dead_broker(
    tab: Any, windows: Any, serving_example: Any, kind: str, expects: Any,
    fresh_valkey_server: CacheServer,
) -> None:  # fmt: skip
    windows.expected = r"WebSocket connection to .* failed"
    port = free_port()
    broker = {"DJANGO_SOCKETS_URL": fresh_valkey_server.url}
    with serving_example("demo", kind, port, **broker) as server:
        page = tab(server, "Ada")
        publish(server, range(1, 26))
        expects(page.locator("#log .text").last).to_have_text("number 25")
        page.get_by_role("switch", name="Link to server").uncheck(force=True)
        publish(server, range(26, 41))
        page.get_by_role("switch", name="Link to server").check(force=True)
        expects(page.locator("#log .text").last).to_have_text("number 40")
        assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        expects(page.locator("#state")).to_contain_text("trying again")
    with serving_example("demo", kind, port, **broker) as server, windows:
        publish(server, range(41, 61))
        expects(page.locator("#log .text").last).to_have_text("number 60", timeout=BACK_MS)
        assert shown(page) == list(range(1, 61))
        # The cache keeps the history over a restart of the server: nothing has to be loaded again.
        expects(page.locator("#log")).not_to_contain_text("may be missing")
        fresh_valkey_server.kill()
        write(page, "lost")
        expects(page.locator("#log")).to_contain_text("Please try again.")
        fresh_valkey_server.start()
        publish(server, range(61, 101))
        expects(page.locator("#log .text").last).to_have_text("number 100", timeout=BACK_MS)
        # The new broker has no history: what is shown is whole, and the tab was told.
        expects(page.locator("#log")).to_contain_text("Some messages may be missing here.")
        assert shown(page) == list(range(1, 101))
