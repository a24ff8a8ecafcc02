"""This package."""

from __future__ import annotations

import os

from django_sockets.sockets import BaseSocketServer


class Socket(BaseSocketServer):
    config = f"redis://127.0.0.1:{os.environ['BENCH_BROKER_PORT']}"

    async def connect(self) -> None:
        await self.async_subscribe(self.scope["path"].strip("/"))
        await self.async_send("joined")


app = Socket.as_asgi
