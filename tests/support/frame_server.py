"""A server inside the process that takes prepared frames and pauses when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from django_sockets.connection.server_frames import EXTENSION
from django_sockets.testing.prepared_frames import events

__all__ = ["FrameConnection"]


class FrameConnection:
    """One websocket of such a server.

    Attributes:
        got: the data of all messages, in the order in which they were written.
        writes: the number of messages in each write of frames.
        sizes: the bytes of each write.
        events: the number of messages that came as ASGI events.
        close_code: the code of the close frame; None before it.
        error: raised by the next write.
    """

    def __init__(self, application: Any, *, deflate: int = 0, path: str = "/") -> None:
        self.got: list[Any] = []
        self.writes: list[int] = []
        self.sizes: list[int] = []
        self.events = 0
        self.close_code: int | None = None
        self.error: Exception | None = None
        self._application = application
        self._deflate = deflate
        self._path = path
        self._to_app: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._accepted = asyncio.Event()
        self._reads = asyncio.Event()
        self._reads.set()

    async def __aenter__(self) -> FrameConnection:
        frames = {
            "write": self.write,
            "drain": self.drain,
            "send": self.send,
            "deflate": self._deflate,
        }
        scope = {
            "type": "websocket",
            "path": self._path,
            "headers": [],
            "extensions": {EXTENSION: frames},
        }
        self.task = asyncio.ensure_future(self._application(scope, self._to_app.get, self.send))
        self.say({"type": "websocket.connect"})
        await asyncio.wait_for(self._accepted.wait(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
        await asyncio.wait_for(self.task, 10)

    def say(self, event: MutableMapping[str, Any]) -> None:
        self._to_app.put_nowait(event)

    def leave(self) -> None:
        """The client is gone, as the server tells it to the application."""
        self.say({"type": "websocket.disconnect", "code": 1001})

    def stop_reading(self) -> None:
        self._reads.clear()

    def go_on_reading(self) -> None:
        self._reads.set()

    async def send(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "websocket.accept":
            self._accepted.set()
        elif event["type"] == "websocket.close":
            self.close_code = event["code"]
        else:
            await self._reads.wait()
            self.events += 1
            self.got.append(json.loads(event["text"]))

    def write(self, frames: bytes) -> bool:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.close_code is not None or not self._reads.is_set():
            return False
        messages = [json.loads(event["text"]) for event in events(frames)]
        self.writes.append(len(messages))
        self.sizes.append(len(frames))
        self.got += messages
        return True

    async def drain(self) -> None:
        await self._reads.wait()
        if self.close_code is not None:
            raise ConnectionError("closed")
