"""Drives examples/chat in a real browser, behind two servers."""

from __future__ import annotations

import functools
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from support.client_pages import BACK_MS
from support.shop_process import Server

CHAT = Path(__file__).resolve().parents[2] / "examples" / "chat"
PASSWORD = "demo-password"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DESKTOP = {"viewport": {"width": 1100, "height": 720}}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("chat") / "chat.sqlite3"
    subprocess.run(
        [sys.executable, "manage.py", "setup_demo"],
        cwd=CHAT,
        env={**os.environ, "CHAT_DATABASE": str(path)},
        check=True,
        timeout=150,
    )
    return str(path)


@pytest.fixture(scope="module")
def server(kind: str, database: str, serving_example: Any) -> Iterator[Server]:
    with serving_example("chat", kind, free_port(), CHAT_DATABASE=database) as running:
        yield running


def log_in(page: Any, name: str, password: str = PASSWORD) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


@pytest.fixture(scope="module")
def logins() -> dict[tuple[str, str], Any]:
    """The cookies of users who have logged in before, because hashing a password is slow."""
    return {}


@pytest.fixture
def tab(windows: Any, server: Server, kind: str, logins: Any, expects: Any) -> Callable[..., Any]:
    """A tab of a connected user."""

    def open_tab(name: str, room: str = "", *, fresh: bool = False, **options: Any) -> Any:
        known = None if fresh else logins.get((kind, name))
        context = windows.open(**{**DESKTOP, **options}, storage_state=known)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/#{room}")
        if known is None:
            log_in(page, name)
            if not fresh:
                logins[kind, name] = context.storage_state()
        expects(page.locator("#state")).to_have_text("Connected")
        return page

    return open_tab


@pytest.fixture
def expects(chromium: Any) -> Any:
    from playwright.sync_api import expect

    return expect


def write(page: Any, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def messages(page: Any) -> Any:
    return page.get_by_role("log", name="Messages")


def record_writing(page: Any) -> None:
    """Record who is writing, because the line is empty again after 3 s."""
    page.evaluate(
        """() => {
          const line = document.getElementById("writing");
          window.written = [];
          new MutationObserver(() => written.push(line.textContent))
            .observe(line, {childList: true, characterData: true, subtree: true});
        }"""
    )


def people(page: Any) -> Any:
    return page.get_by_role("list", name="Here now").get_by_role("listitem")


def test_only_who_logs_in_gets_in(windows: Any, server: Server, expects: Any) -> None:
    page = windows.open().new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    log_in(page, "alice", "wrong")
    expects(page.get_by_role("alert")).to_have_text("That name and password do not match.")
    refused = page.evaluate(
        """() => new Promise((resolve) => {
          const socket = new WebSocket(`ws://${location.host}/ws/`, "django-sockets.v1");
          socket.onclose = (event) => resolve(event.code);
        })"""
    )
    assert refused == 4401
    log_in(page, "alice")
    expects(page.locator("#state")).to_have_text("Connected")


def test_two_tabs_chat(tab: Any, expects: Any, picture: Any) -> None:
    alice, bob = tab("alice"), tab("bob", **PHONE)
    record_writing(alice)
    for page in (alice, bob):
        expects(people(page)).to_contain_text(["alice", "bob"])
    write(alice, "Has anybody watered the tomatoes?")
    expects(messages(bob)).to_contain_text("Has anybody watered the tomatoes?")
    write(bob, "I did, this morning.")
    write(bob, "The beans are next. They climb faster than we can tie them up, so bring string.")
    expects(messages(alice)).to_contain_text("bring string.")
    write(alice, "On my way!")
    expects(messages(bob)).to_contain_text("On my way!")
    bob.get_by_label("Your message").press_sequentially("Thank")
    alice.wait_for_function("written.includes('bob is writing …')")
    picture(alice, "desktop")
    picture(bob, "phone")
    for page, name in ((alice, "desktop"), (bob, "phone")):
        page.emulate_media(color_scheme="dark")
        picture(page, f"{name}-dark")
    bob.close()
    expects(messages(alice)).to_contain_text("bob left")
    expects(people(alice)).to_have_count(1)


def test_who_is_writing_appears_and_goes(tab: Any, expects: Any) -> None:
    alice, bob = tab("alice", "garden"), tab("bob", "garden")
    record_writing(alice)
    bob.get_by_label("Your message").press_sequentially("Well")
    alice.wait_for_function("written.includes('bob is writing …')")
    expects(bob.locator("#writing")).to_be_empty()
    expects(alice.locator("#writing")).to_be_empty()  # He thinks it over.
    alice.evaluate("written.length = 0")
    bob.get_by_label("Your message").press_sequentially(", yes.")
    alice.wait_for_function("written.includes('bob is writing …')")
    bob.get_by_role("button", name="Send").click()
    expects(messages(alice)).to_contain_text("Well, yes.")
    expects(alice.locator("#writing")).to_be_empty()


def test_who_may_not_enter_a_room_is_told_so_and_hears_nothing(
    tab: Any, expects: Any, picture: Any
) -> None:
    alice, carol = tab("alice", "staff"), tab("carol", "garden")
    carol.get_by_role("link", name="Staff").click()
    expects(carol.get_by_role("alert")).to_contain_text("You may not enter this room")
    picture(carol, "refused")
    write(alice, "Between us")
    expects(messages(alice)).to_contain_text("Between us")
    expects(people(alice)).to_have_count(1)
    carol.get_by_role("link", name="Go to the lobby").click()
    expects(messages(carol)).to_contain_text("You entered Lobby")
    expects(messages(carol)).not_to_contain_text("Between us")
    expects(carol.locator("#state")).to_have_text("Connected")


def test_a_logout_closes_the_other_tab_of_the_session_and_no_other(
    tab: Any, expects: Any, picture: Any
) -> None:
    one = tab("bob", fresh=True)
    elsewhere = tab("bob")
    other = one.context.new_page()
    other.goto(one.url)
    expects(other.locator("#state")).to_have_text("Connected")
    one.get_by_role("button", name="Log out").click()
    expects(one.get_by_role("button", name="Log in")).to_be_visible()
    expects(other.get_by_role("alert")).to_contain_text("You were logged out")
    expects(other.locator("#state")).to_have_text("Logged out")
    other.set_viewport_size({"width": 390, "height": 844})
    picture(other, "logged-out-phone")
    opened: list[Any] = []
    other.on("websocket", lambda socket: opened.append(socket))
    expects(elsewhere.locator("#state")).to_have_text("Connected")
    assert opened == []  # It does not try again.
    other.get_by_role("link", name="Log in again").click()
    expects(other.get_by_role("button", name="Log in")).to_be_visible()
    picture(other, "login-phone")


def test_a_page_of_another_site_is_refused_though_it_sends_the_cookie(
    tab: Any, windows: Any, server: Server, expects: Any, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text(
        f"""<!doctype html><html lang="en"><title>waiting</title>
        <link rel="icon" href="data:,"><script>
          const socket = new WebSocket("ws://127.0.0.1:{server.port}/ws/");
          socket.onopen = () => {{ document.title = "opened"; }};
          socket.onclose = (event) => {{ document.title = `closed ${{event.code}}`; }};
        </script>"""
    )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other_site:
        thread = threading.Thread(target=other_site.serve_forever)
        thread.start()
        try:
            page = tab("alice").context.new_page()
            sent = []
            page.on("websocket", lambda socket: sent.append(socket.url))
            windows.expected = r"WebSocket connection to .* failed: .*403"
            page.goto(f"http://127.0.0.1:{other_site.server_port}/")
            expects(page).to_have_title("closed 1006")
            assert len(sent) == 1
            assert len(windows.problems) == 1, windows.problems
        finally:
            other_site.shutdown()
            thread.join()


# The last one: it takes the server of the others away.
def test_the_page_comes_back_after_the_server_was_restarted(
    tab: Any, windows: Any, server: Server, kind: str, database: str, serving_example: Any,
    expects: Any,
) -> None:  # fmt: skip
    # Chromium's own message about an address without a server.
    windows.expected = r"WebSocket connection to .* failed"
    page = tab("alice")
    write(page, "<b>before</b>")
    expects(messages(page)).to_contain_text("<b>before</b>")
    assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    expects(page.locator("#state")).to_contain_text(re.compile("Reconnecting|No server"))
    expects(page.get_by_role("button", name="Send")).to_be_disabled()
    with serving_example("chat", kind, server.port, CHAT_DATABASE=database), windows:
        expects(page.locator("#state")).to_have_text("Connected", timeout=BACK_MS)
        # memory:// has lost the messages with the process.
        expects(messages(page)).to_contain_text("Some messages may be missing here.")
        write(page, "after")
        expects(messages(page)).to_contain_text(re.compile("before.*after", re.DOTALL))
