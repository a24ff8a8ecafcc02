"""Chromium by its DevTools protocol alone: Playwright tells every page that it is visible."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from django_sockets.testing.ports import free_port

__all__ = ["Devtools", "Tab", "devtools"]

WAIT_SECONDS = 30
OPTIONS = """
    --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync about:blank
""".split()


class Devtools:
    """The connection to a browser. Calls wait for their answers; events are dropped."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket
        self._calls = 0

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._websocket.send(json.dumps(message))
        while True:
            answer = json.loads(self._websocket.recv(timeout=WAIT_SECONDS))
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, url: str) -> Tab:
        """Open a tab in front of the others, which are hidden then."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session)


class Tab:
    def __init__(self, browser: Devtools, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextmanager
def devtools(chromium: str, folder: Path, *options: str) -> Iterator[Devtools]:
    """Start a Chromium with an empty profile; it ends with the block."""
    port = free_port()
    own = [f"--remote-debugging-port={port}", f"--user-data-dir={folder}", *options]
    with subprocess.Popen([chromium, *own, *OPTIONS], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            for line in process.stderr:
                if line.startswith("DevTools listening on "):
                    break
            url = line.split()[-1]
            with connect(url, proxy=None, max_size=None, open_timeout=WAIT_SECONDS) as websocket:
                yield Devtools(websocket)
        finally:
            process.kill()
