"""Reads server-sent events as a browser does, from an ASGI application without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

WAIT_SECONDS = 10


class Event(NamedTuple):
    """One event, and the id of the stream at this event."""

    frame: Any
    last_id: str
    has_id: bool


class EventParser:
    """The fields of a stream, by the rules of the WHATWG standard for HTML, section 9.2.6."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self._rest = ""

    def feed(self, text: str) -> list[Event]:
        assert "\r" not in text  # The standard allows it; ours must not need it.
        found = []
        *blocks, self._rest = (self._rest + text).split("\n\n")
        for block in blocks:
            lines, has_id = [], False
            for line in block.split("\n"):
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match field:
                    case "data":
                        lines.append(value)
                    case "id":
                        self.last_id, has_id = value, True
                    case "retry":
                        self.retry = int(value)
                    case "":
                        self.comments += 1
                    case _:
                        raise AssertionError(line)
            if lines:
                found.append(Event(json.loads("\n".join(lines)), self.last_id, has_id))
        return found


class Stream:
    """One response. `reads` decides whether the client takes more bytes."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.parser = EventParser()
        self.reads = asyncio.Event()
        self.reads.set()
        self.blocked = asyncio.Event()
        self.written = asyncio.Event()
        self.gone = asyncio.Event()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.reads.is_set():
            self.blocked.set()
            await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode().lower(): value.decode() for name, value in message["headers"]
            }
            self.started.set()
            return
        body = message.get("body", b"")
        self.body += body
        if self.headers["content-type"] == "text/event-stream":
            for event in self.parser.feed(body.decode()):
                self._events.put_nowait(event)
        self.written.set()
        if not message.get("more_body"):
            self.ended.set()

    async def wrote(self) -> None:
        """Wait for more bytes, which may be a comment."""
        self.written.clear()
        await asyncio.wait_for(self.written.wait(), WAIT_SECONDS)

    async def next(self) -> Event:
        return await asyncio.wait_for(self._events.get(), WAIT_SECONDS)

    async def frame(self) -> Any:
        return (await self.next()).frame

    async def frames(self, count: int) -> list[Any]:
        return [await self.frame() for _ in range(count)]

    async def end(self) -> list[Any]:
        """The rest of the frames of a stream that the server ends."""
        await asyncio.wait_for(self.ended.wait(), WAIT_SECONDS)
        found = []
        while not self._events.empty():
            found.append(self._events.get_nowait().frame)
        return found


def scope_of(
    path: str, query: Any = (), headers: dict[str, str] | None = None, method: str = "GET"
) -> dict[str, Any]:
    fields = {"host": "testserver", **(headers or {})}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": urlencode(query).encode(),
        "headers": [(name.encode(), value.encode("latin1")) for name, value in fields.items()],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }


@asynccontextmanager
async def opened(
    application: Any,
    path: str = "/",
    *,
    last_id: str | None = None,
    query: Any = (),
    headers: dict[str, str] | None = None,
    method: str = "GET",
) -> AsyncIterator[Stream]:
    """A request. It ends with the block, as if the client had left."""
    headers = dict(headers or {})
    if last_id is not None:
        headers["last-event-id"] = last_id
    stream = Stream()
    scope = scope_of(path, query, headers, method)
    task = asyncio.ensure_future(application(scope, stream.receive, stream.send))
    try:
        waiting = asyncio.ensure_future(stream.started.wait())
        await asyncio.wait([task, waiting], timeout=WAIT_SECONDS, return_when="FIRST_COMPLETED")
        waiting.cancel()
        if task.done():
            task.result()
        yield stream
    finally:
        stream.gone.set()
        await asyncio.wait_for(task, WAIT_SECONDS)
