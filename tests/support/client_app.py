"""The application for tests of the browser client: a page that uses it, and a socket class.

Environment:
    CLIENT_BROKER: the URL of the broker.
    CLIENT_PING_SECONDS: the interval of the pings; it is shorter in tests than for users.
    CLIENT_PAGES: a folder with more files to serve.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.conf import settings

from django_sockets import Reject
from django_sockets.protocol.session import Session
from django_sockets.signed_channels import channel_token
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    ROOT / "tests" / "browser" / "pages",
    ROOT / "django_sockets" / "static" / "django_sockets",
    Path(os.environ.get("CLIENT_PAGES", "/nonexistent")),
)
TYPES = {".html": b"text/html; charset=utf-8", ".js": b"text/javascript"}

if "CLIENT_BROKER" in os.environ:
    # `support.shop_process` names the settings of another project.
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    settings.configure(SECRET_KEY="of the tests", ALLOWED_HOSTS=["127.0.0.1"])

if "CLIENT_PING_SECONDS" in os.environ:
    Session.ping_seconds = int(os.environ["CLIENT_PING_SECONDS"])  # type: ignore[misc,assignment]


def configuration(broker: str) -> dict[str, Any]:
    """The channels `kept:` have a history."""
    return {"url": broker, "history": {"kept:": {"messages": 10_000, "seconds": 600}}}


class Numbers(BaseSocketServer):
    """Passes on what is published on `room:` and `kept:` channels, and answers requests."""

    config = configuration(os.environ.get("CLIENT_BROKER", "memory://client"))

    async def authorize(self) -> None:
        refused = {"/ws/login": 401, "/ws/staff": 403}.get(self.scope["path"])
        if refused is not None:
            raise Reject(refused)

    def may_subscribe(self, channel: str) -> bool:
        return channel.startswith(("room:", "kept:"))

    @on("double")
    async def double(self, message: dict[str, Any]) -> int:
        return 2 * int(message["n"])

    @on("leave")
    async def leave(self, message: dict[str, Any]) -> None:
        await self.async_close(message["code"])

    @on("here")
    async def here(self, message: dict[str, Any]) -> None:
        await self.async_track("room:1", {"n": message["n"]})

    @on("say")
    async def say(self, message: dict[str, Any]) -> None:
        await self.async_broadcast("room:1", {"n": message["n"]})


sockets = Numbers.as_asgi()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await page(scope["path"], send)
    else:
        await sockets(scope, receive, send)


async def page(path: str, send: Any) -> None:
    name = Path(path).name or "numbers.html"
    if path.startswith("/token/"):
        token = channel_token("secret:1", user=None, expires_seconds=float(name))
        await respond(200, b"text/plain", token.encode(), send)
        return
    found = next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
    body = b"" if found is None else found.read_bytes()
    kind = TYPES.get(Path(name).suffix, b"text/plain")
    await respond(404 if found is None else 200, kind, body, send)


async def respond(status: int, kind: bytes, body: bytes, send: Any) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
