"""A server's side of the extension `websocket.frames`, inside the process, for `SocketClient`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

__all__ = ["FrameServer", "events"]

WINDOW_BITS = 12
TEXT = 1


class FrameServer:
    """Turns the frames that an application writes into ASGI events.

    Args:
        take: called with each event.
        is_open: whether the websocket is open.
    """

    def __init__(
        self, take: Callable[[MutableMapping[str, Any]], None], is_open: Callable[[], bool]
    ) -> None:
        self._take = take
        self._is_open = is_open

    def extension(self, send: Any) -> dict[str, Any]:
        """The value for `scope["extensions"]["websocket.frames"]`."""
        return {
            "write": self.write,
            "drain": self.drain,
            "send": send,
            "deflate": WINDOW_BITS,
        }

    def write(self, frames: bytes) -> bool:
        """See docs/server-extension.md."""
        if not self._is_open():
            return False
        for event in events(frames):
            self._take(event)
        return True

    async def drain(self) -> None:
        """See docs/server-extension.md."""
        if not self._is_open():
            raise ConnectionError("the websocket is not open")


def events(frames: bytes) -> Iterator[dict[str, Any]]:
    """The `websocket.send` event of each frame.

    Raises:
        ValueError: they are not whole data frames as a server sends them.
    """
    at = 0
    while at < len(frames):
        first, size = frames[at], frames[at + 1]
        if first & 0xB0 != 0x80 or size > 127:
            raise ValueError(f"no whole data frame of a server: {frames[at : at + 2]!r}")
        at += 2
        if size >= 126:
            length = 2 if size == 126 else 8
            size = int.from_bytes(frames[at : at + length], "big")
            at += length
        payload = frames[at : at + size]
        if len(payload) < size:
            raise ValueError("a frame is incomplete")
        at += size
        if first & 0x40:
            payload = zlib.decompressobj(-WINDOW_BITS).decompress(payload + b"\x00\x00\xff\xff")
        if first & 0x0F == TEXT:
            yield {"type": "websocket.send", "text": payload.decode()}
        else:
            yield {"type": "websocket.send", "bytes": payload}
