"""uvicorn with our protocol class on the test's own event loop, and an application to control it.

The test holds the server's end of each connection, so it can call the extension directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvicorn

from django_sockets.servers.uvicorn import WebSocketProtocol

__all__ = ["PATIENCE_SECONDS", "Peer", "Peers", "run_on", "serving", "soon"]

PATIENCE_SECONDS = 10.0


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


def run_on(loop: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on a new event loop: "asyncio" or "uvloop"."""
    if loop == "uvloop":
        import uvloop

        new = uvloop.new_event_loop()
    else:
        new = asyncio.new_event_loop()
    try:
        new.run_until_complete(main())
    finally:
        left = asyncio.all_tasks(new)
        for task in left:  # Only after a failure.
            task.cancel()
        if left:
            new.run_until_complete(asyncio.wait(left))
        new.run_until_complete(new.shutdown_asyncgens())
        new.close()


class Peer:
    """The server's end of one websocket, after its handshake."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self.raw_send = send
        self._receive = receive
        self.frames: Any = scope["extensions"].get("websocket.frames")
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def write(self, frames: bytes) -> bool:
        taken: bool = self.frames["write"](frames)
        return taken

    async def drain(self) -> None:
        await self.frames["drain"]()

    async def send(self, data: str | bytes) -> None:
        kind = "text" if isinstance(data, str) else "bytes"
        await self.raw_send({"type": "websocket.send", kind: data})

    async def close(self, code: int = 1000) -> None:
        await self.raw_send({"type": "websocket.close", "code": code})

    async def serve(self) -> None:
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                self.ended.set_result(event.get("code"))
                return
            self.received.put_nowait(event.get("text") or event.get("bytes"))


class Peers:
    """An ASGI application. `await peers.get()` is the next websocket that it accepted."""

    def __init__(self) -> None:
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        peer = Peer(scope, receive, send)
        await send({"type": "websocket.accept"})
        self._accepted.put_nowait(peer)
        await peer.serve()

    async def get(self) -> Peer:
        peer: Peer = await soon(self._accepted.get())
        return peer


@contextlib.asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Serve an application. The value is the URL and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    chosen = {
        "ws": WebSocketProtocol,
        "log_config": None,
        "lifespan": "off",
        "log_level": "warning",
        **options,
    }
    config = uvicorn.Config(app, timeout_graceful_shutdown=2, **chosen)
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve([listener]))
    scheme = "wss" if "ssl_certfile" in options else "ws"
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/", server
    finally:
        server.should_exit = True
        await soon(task)
        listener.close()
        for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            logging.getLogger(name).setLevel(logging.NOTSET)
