"""CPU time per delivery of django-sockets 3.1.0, without a server.

It measures from the queue that the reader fills to a `send` that only counts: reading and msgpack
are not included.
"""

import asyncio
import json
import time

from django_sockets.sockets import BaseSocketServer

SOCKETS = 500
MESSAGES = 200
DATA = {"text": "x" * 188}


class Socket(BaseSocketServer):
    async def connect(self):
        self.scope["connected"].set()


class Client:
    def __init__(self):
        self.sent = 0
        self.connected, self.done = asyncio.Event(), asyncio.Event()
        events = asyncio.Queue()
        events.put_nowait({"type": "websocket.connect"})
        self.socket = Socket({"connected": self.connected}, events.get, self.send)

    async def send(self, event):
        self.sent += event["type"] == "websocket.send"
        if self.sent == MESSAGES:
            self.done.set()


async def main():
    clients = [Client() for _ in range(SOCKETS)]
    tasks = [asyncio.create_task(client.socket.async_start_listeners()) for client in clients]
    for client in clients:
        await client.connected.wait()
    started = time.process_time()
    for client in clients:
        queue = client.socket.pubsub_layer.queue
        for _ in range(MESSAGES):
            queue.put_nowait({"channel": "room", "data": DATA})
    for client in clients:
        await client.done.wait()
    spent = time.process_time() - started
    print(json.dumps({"cpu_us_per_delivery": spent / (SOCKETS * MESSAGES) * 1e6}))
    for task in tasks:
        task.cancel()


asyncio.run(main())
