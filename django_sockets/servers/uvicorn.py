"""uvicorn's websocket protocol with prepared frames: the ASGI extension `websocket.frames`.

Start it with `uvicorn --ws django_sockets.servers.uvicorn:WebSocketProtocol`.
docs/server-extension.md specifies the extension.

The class depends on few parts of uvicorn: `conn`, `transport`, `scope`, `writable` and the
methods that it overrides. If the installed uvicorn lacks one of them, or is too old, the class
logs one line and behaves as uvicorn's own class.

Only servers import this module.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from websockets.exceptions import InvalidState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.protocol import State

from .installed import sansio_protocol, uvicorn_problem

__all__ = ["WebSocketProtocol"]

logger = logging.getLogger("django_sockets")

EXTENSION = "websocket.frames"
WINDOW_BITS = 12
_OPEN = State.OPEN

# With context takeover, a connection keeps a compressor (about 18 KiB) and a decompressor, and a
# compressed frame fits only one connection. The factory has no state, so all connections share it.
_DEFLATE = [
    ServerPerMessageDeflateFactory(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        server_max_window_bits=WINDOW_BITS,
        client_max_window_bits=WINDOW_BITS,
        compress_settings={"memLevel": 5},
    )
]

if TYPE_CHECKING:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
else:
    WebSocketsSansIOProtocol = sansio_protocol()
    if WebSocketsSansIOProtocol is None:
        from uvicorn.protocols.websockets.auto import (
            AutoWebSocketsProtocol as WebSocketsSansIOProtocol,
        )


class _Support:
    """Whether the parts that only an instance has are as expected. One for the process.

    The first connection decides. `uvicorn_problem` has looked at the class before.
    """

    def __init__(self) -> None:
        self._checked = False
        self.offered = False

    def offers(self, protocol: WebSocketProtocol) -> bool:
        if not self._checked:
            self._checked = True
            problem = _instance_problem(protocol)
            self.offered = problem is None
            if problem is not None:
                _log(problem)
        return self.offered


def _log(problem: str) -> None:
    text = "prepared frames are off, each broadcast is framed for each connection: %s"
    logger.warning(text, problem, extra={"reason": problem})


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol that also offers `scope["extensions"]["websocket.frames"]`.

    If it compresses (uvicorn's option `ws_per_message_deflate`, default on), it does so without
    context on both sides: an idle connection keeps no compressor, and all connections can share
    one compressed frame.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._paused = False
        self._extensions: dict[str, Any] = {}
        conn = getattr(self, "conn", None)  # An unknown version may not have it.
        if conn is not None and getattr(conn, "available_extensions", None):
            conn.available_extensions = _DEFLATE

    def run_asgi(self) -> Coroutine[Any, Any, None]:
        # A coroutine of its own would stay in memory as long as the connection.
        if _support.offers(self):
            self._offer_frames()
        return super().run_asgi()

    def _offer_frames(self) -> None:
        scope: Any = self.scope
        frames = {
            "write": self._write_frames,
            "drain": self._drain_frames,
            "send": self.send,
            "deflate": self._window_bits(),
        }
        self._extensions = {**(scope.get("extensions") or {}), EXTENSION: frames}
        scope["extensions"] = self._extensions

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Else the protocol and its scope refer to each other, and only the garbage collector frees
        # them.
        self._extensions.pop(EXTENSION, None)
        if _support.offered:
            self.writable.set()  # Ends each `drain`.

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except InvalidState:
            # uvicorn 0.54 sends a second close frame to a client that has sent one and does not
            # read the rest. The error would end the shutdown for all other connections, too.
            self.transport.close()

    def _write_frames(self, frames: bytes | bytearray | memoryview) -> bool:
        # Not `writable.is_set()`, which is a call of a Python function for each message: the row
        # "private channels one message at a time" of docs/benchmarks.
        if self._paused or self.conn.state is not _OPEN or self.transport.is_closing():
            return False
        self.transport.write(frames)
        return True

    async def _drain_frames(self) -> None:
        while not self.writable.is_set():
            await self.writable.wait()
        if self.conn.state is not _OPEN or self.transport.is_closing():
            raise ConnectionError("the websocket is not open")

    def _window_bits(self) -> int:
        """The window for compressed frames: 12 bits, or 0 if the client cannot read these."""
        for extension in self.conn.extensions:
            bits = getattr(extension, "local_max_window_bits", 0)
            if bits >= WINDOW_BITS and getattr(extension, "local_no_context_takeover", False):
                return WINDOW_BITS
        return 0


def _instance_problem(protocol: Any) -> str | None:
    """Why this instance cannot offer prepared frames; None if it can.

    Called before anything is written, so the transport has not paused the protocol.
    """
    try:
        known = (
            isinstance(protocol.conn.state, State)
            and isinstance(protocol.conn.extensions, list)
            and isinstance(protocol.writable, asyncio.Event)
            and isinstance(protocol.scope, dict)
            and callable(protocol.transport.write)
            and isinstance(protocol.transport.is_closing(), bool)
        )
        if not known:
            return "this uvicorn is not known: a part of its protocol has another type"
        protocol.pause_writing()
        paused = not protocol.writable.is_set()
        protocol.resume_writing()
        if not (paused and protocol.writable.is_set()):
            return "this uvicorn is not known: it has another way to pause writing"
    except Exception as exc:  # Parts of an unknown version may fail in any way.
        return f"this uvicorn is not known: {exc}"
    return None


_support = _Support()
_problem = uvicorn_problem()
if _problem is not None:

    class _PlainProtocol(WebSocketsSansIOProtocol):
        """uvicorn's own protocol. The first connection logs why it has no prepared frames."""

        logged = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not _PlainProtocol.logged:
                _PlainProtocol.logged = True
                _log(str(_problem))
            super().__init__(*args, **kwargs)

    WebSocketProtocol = _PlainProtocol  # type: ignore[misc, assignment]
