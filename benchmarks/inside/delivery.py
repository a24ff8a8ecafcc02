"""CPU time per delivery inside one process, without a server.

The key "ours" measures from the hub's `deliver` to a `send` that only counts; "limit" measures a
loop that calls this `send`. `delivery_published` measures version 3.1.0 in the same way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer

TEXT = b'{"text": "' + b"x" * 188 + b'"}'
SCOPE = {"type": "websocket", "path": "/", "headers": []}


class Socket(BaseSocketServer):
    config = "memory://benchmark"

    async def connect(self) -> None:
        await self.async_subscribe("room")
        self.scope["joined"].set()


class Client:
    """A connection whose `send` counts."""

    def __init__(self) -> None:
        self.sent = 0
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._events.put_nowait({"type": "websocket.connect"})

    async def send(self, event: Any) -> None:
        self.sent += 1

    async def connect(self) -> asyncio.Task[None]:
        joined = asyncio.Event()
        app = Socket.as_asgi
        task = asyncio.create_task(app({**SCOPE, "joined": joined}, self._events.get, self.send))
        await joined.wait()
        return task

    def leave(self) -> None:
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1000})


async def delivery_us(sockets: int = 500, messages: int = 200) -> float:
    """CPU microseconds for each delivery, of broadcasts to this number of sockets."""
    clients = [Client() for _ in range(sockets)]
    tasks = [await client.connect() for client in clients]
    hub = shared_hub(load_config(Socket.config))
    publisher = Publisher()
    batch = [("room", publisher.headers(["room"], True)[0] + TEXT) for _ in range(messages)]
    before = sum(client.sent for client in clients)
    started = time.process_time()
    await hub.deliver(batch)
    spent = time.process_time() - started
    if sum(client.sent for client in clients) - before != sockets * messages:
        raise RuntimeError("a delivery was late: all must be finished when `deliver` returns")
    for client in clients:
        client.leave()
    await asyncio.gather(*tasks)
    await close_shared_hubs()
    return spent / (sockets * messages) * 1e6


async def reference_us(sockets: int = 500, messages: int = 200) -> float:
    """CPU microseconds of a loop that awaits every client's `send`."""
    clients = [Client() for _ in range(sockets)]
    event = {"type": "websocket.send", "text": TEXT.decode()}
    started = time.process_time()
    for _ in range(messages):
        for client in clients:
            await client.send(event)
    return (time.process_time() - started) / (sockets * messages) * 1e6


if __name__ == "__main__":
    measure = {"ours": delivery_us, "limit": reference_us}[sys.argv[1]]
    print(json.dumps({"cpu_us_per_delivery": asyncio.run(measure(messages=2000))}))
