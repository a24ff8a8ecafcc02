"""Size and start-up time of the browser client, in Chromium: `python -m benchmarks.browser_client`.

Times are from `connect()` to the first message, beside those of a bare `WebSocket` that gets the
same message of the same server. `--save` writes docs/benchmarks/client.md.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import LiveSocketServer

from .machine import describe

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "django_sockets" / "static" / "django_sockets"
TARGET = ROOT / "docs" / "benchmarks" / "client.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

PAGE = b"""<!doctype html><title>client</title><link rel="icon" href="data:,">
<script type="module">import { connect } from "/client.js"; window.connect = connect;</script>"""

MEASURE = """
async () => {
  const once = (on) => new Promise(on);
  const rest = () => once((done) => setTimeout(done, 50)); // The end of the last one is over.
  const url = `ws://${location.host}/`;
  let began = performance.now();
  const raw = new WebSocket(url);
  await once((done) => (raw.onmessage = done));
  const bare = performance.now() - began;
  raw.close();
  await rest();
  began = performance.now();
  const socket = connect(url);
  await once((done) => socket.on("message", done));
  const sent = performance.now() - began;
  socket.close();
  await rest();
  began = performance.now();
  const other = connect(url);
  const channel = other.channel("room:1");
  await once((done) => channel.on("state", done));
  const subscribed = performance.now() - began;
  other.close();
  await rest();
  return { bare, sent, subscribed };
}
"""
LABELS = {
    "bare": "bare `WebSocket`: to the first message that the server sends",
    "sent": "`connect()`: to the first message that the server sends",
    "subscribed": "`connect()`: to the subscription to a channel",
}


class Hello(BaseSocketServer):
    config = "memory://browser-client"

    async def connect(self) -> None:
        await self.async_send({"hello": "page"})

    def may_subscribe(self, channel: str) -> bool:
        return channel.startswith("room:")


sockets = Hello.as_asgi()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await sockets(scope, receive, send)
        return
    is_client = scope["path"] == "/client.js"
    kind = b"text/javascript" if is_client else b"text/html"
    body = (STATIC / "client.js").read_bytes() if is_client else PAGE
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


def times(runs: int) -> list[dict[str, float]]:
    from playwright.sync_api import sync_playwright

    named = os.environ.get("DJANGO_SOCKETS_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    with LiveSocketServer(application) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_function("window.connect")
        page.evaluate(MEASURE)  # The first one compiles.
        found = [page.evaluate(MEASURE) for _ in range(runs)]
        browser.close()
    return found


INTRODUCTION = """\
# The browser client

This page was written by `python -m benchmarks.browser_client --save`. Times are medians in Chromium
on loopback, with the lowest and the highest value in parentheses.
"""


def report(found: list[dict[str, float]]) -> str:
    lines = [INTRODUCTION, "| file | bytes | gzip |", "|---|---|---|"]
    for name in ("client.js", "events.js", "react.js"):
        data = (STATIC / name).read_bytes()
        lines.append(f"| `{name}` | {len(data):,} | {len(gzip.compress(data, 9)):,} |")
    lines += ["", "| time | ms |", "|---|---|"]
    for key, label in LABELS.items():
        values = [one[key] for one in found]
        middle = statistics.median(values)
        lines.append(f"| {label} | {middle:.1f} ({min(values):.1f} to {max(values):.1f}) |")
    ratio = statistics.median(one["sent"] / one["bare"] for one in found)
    lines.append(f"| `connect()` over `WebSocket`, within a run | {ratio:.2f} x |")
    machine = "; ".join(f"{name}: {value}" for name, value in describe().items())
    return "\n".join([*lines, "", f"{machine}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--save", action="store_true", help="write docs/benchmarks/client.md")
    options = parser.parse_args()
    text = report(times(options.runs))
    print(text)
    if options.save:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
