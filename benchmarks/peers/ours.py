"""This package."""

from __future__ import annotations

import os

from common import GREETS, rooms_of

from django_sockets.sockets import BaseSocketServer


class Socket(BaseSocketServer):
    config = os.environ["BENCH_BROKER_URL"]

    async def connect(self) -> None:
        await self.async_subscribe(rooms_of(self.scope["path"]))
        if GREETS:
            await self.async_send("joined")


app = Socket.as_asgi
