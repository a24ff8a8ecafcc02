"""The browser client in Chromium, through a restart of each server.

Times are shortened by a server that pings every 2 s. DJANGO_SOCKETS_CLIENT_PING_SECONDS=25 gives
the times that users have.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.client_pages import BACK_SECONDS, shown, wait_for
from support.client_server import COMMANDS, PING_SECONDS, Publisher, client_app

pytestmark = pytest.mark.timeout(300 if PING_SECONDS == 2 else 900)
CODES = {"hypercorn": (1011,), "granian": (1006, 1012)}
"""The codes of a shutdown, if they are not 1012. docs/shutdown.md describes them."""
CODE_OF_END = "states.find(({state}) => state === 'waiting').code"
"""The close code of the connection. Later attempts find no server, and have codes of their own."""


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
        assert page.evaluate(CODE_OF_END) in CODES.get(name, (1012,))
    publisher.publish(20)
    with client_app(folder, broker, name, port=first.port), windows:
        wait_for(page, "isReady()", BACK_SECONDS)
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
                assert page.evaluate(CODE_OF_END) == 1012
            stack.enter_context(client_app(folder, broker, port=first.port))
            stack.enter_context(windows)
            for page in pages:
                wait_for(page, "isReady()", BACK_SECONDS)
        publisher.publish(20)
        for page in pages:
            shown(page, publisher.last)
