"""django-sockets 3.1.0, as published."""

import os

from common import GREETS

from django_sockets.sockets import BaseSocketServer


class Socket(BaseSocketServer):
    def configure(self):
        self.hosts = [{"address": os.environ["BENCH_BROKER_URL"]}]

    async def connect(self):
        await self.async_subscribe(self.scope["path"].strip("/"))
        if GREETS:
            await self.async_send("joined")


async def app(scope, receive, send):
    # uvicorn 0.54 would take the bound method for an ASGI 2 application.
    await Socket.as_asgi(scope, receive, send)
