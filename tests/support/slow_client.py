"""A client that stops reading when a test says so, for tests of slow connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

from django_sockets.connection.server_frames import EXTENSION
from django_sockets.testing.prepared_frames import events


class Reluctant:
    """A connection inside the process. Its ASGI `send` waits while the client does not read.

    With `prepared_frames`, it offers the extension `websocket.frames`, too.

    Attributes:
        got: the data that the client has read.
        close_code: the code of the close frame; None before it.
    """

    prepared_frames: ClassVar[bool] = False

    def __init__(self, application: Any, subprotocols: Sequence[str] = ()) -> None:
        self._subprotocols = list(subprotocols)
        self._application = application
        self._to_app: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._reads = asyncio.Event()
        self._reads.set()
        self._changed = asyncio.Event()
        self.got: list[Any] = []
        self.close_code: int | None = None

    async def __aenter__(self) -> Reluctant:
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": []}
        scope["subprotocols"] = self._subprotocols
        if self.prepared_frames:
            frames = {"write": self._write, "drain": self._drain, "send": self._send, "deflate": 0}
            scope["extensions"] = {EXTENSION: frames}
        self.task = asyncio.ensure_future(self._application(scope, self._to_app.get, self._send))
        self.say({"type": "websocket.connect"})
        return self

    async def __aexit__(self, *_: object) -> None:
        self.say({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait_for(self.task, 5)

    def say(self, event: MutableMapping[str, Any]) -> None:
        self._to_app.put_nowait(event)

    def stop_reading(self) -> None:
        self._reads.clear()

    def go_on_reading(self) -> None:
        self._reads.set()

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "websocket.close":
            self.close_code = event["code"]
        else:
            await self._reads.wait()
        if event["type"] == "websocket.send":
            self.got.append(json.loads(event["text"]))
        self._changed.set()

    def _write(self, frames: bytes) -> bool:
        if not self._reads.is_set() or self.close_code is not None:
            return False
        for event in events(frames):
            self.got.append(json.loads(event["text"]))
        self._changed.set()
        return True

    async def _drain(self) -> None:
        await self._reads.wait()
        if self.close_code is not None:
            raise ConnectionError("closed")

    async def until(self, condition: Any) -> None:
        """Wait until the condition is true. It is tested after each event that is sent."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), 5)
