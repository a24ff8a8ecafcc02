"""The limit: an application that only uses the parser and the server's `send`."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit

import hiredis
from common import GREETS, rooms_of

BROKER = urlsplit(os.environ["BENCH_BROKER_URL"])
rooms: dict[bytes, list[Any]] = {}
writer: asyncio.StreamWriter | None = None
acknowledged: dict[bytes, asyncio.Event] = {}
tasks: list[Any] = []
opening: asyncio.Task[None] | None = None


async def open_broker() -> None:
    global writer
    reader, writer = await asyncio.open_connection(BROKER.hostname, BROKER.port)
    tasks.append(asyncio.create_task(read(reader)))


async def read(reader: asyncio.StreamReader) -> None:
    parser = hiredis.Reader()
    while data := await reader.read(262144):
        parser.feed(data)
        while (reply := parser.gets()) is not False:
            if reply[0] == b"message":
                event = {"type": "websocket.send", "text": reply[2].decode()}
                for send in rooms.get(reply[1], ()):
                    await send(event)
            elif reply[0] == b"subscribe":
                acknowledged[reply[1]].set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    global opening
    if opening is None:
        opening = asyncio.create_task(open_broker())
    await opening
    await receive()
    await send({"type": "websocket.accept"})
    names = [name.encode() for name in rooms_of(scope["path"])]
    new = [name for name in names if name not in acknowledged]
    acknowledged.update((name, asyncio.Event()) for name in new)
    if new:
        assert writer is not None
        writer.write(hiredis.pack_command((b"SUBSCRIBE", *new)))
    for name in names:
        await acknowledged[name].wait()
        rooms.setdefault(name, []).append(send)
    if GREETS:
        await send({"type": "websocket.send", "text": '"joined"'})
    while (await receive())["type"] != "websocket.disconnect":
        pass
    for name in names:
        rooms[name].remove(send)
