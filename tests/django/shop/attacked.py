"""Socket classes that tests attack over the network, on every server."""

import asyncio
import time

from django.core.asgi import get_asgi_application
from django.urls import path, re_path

from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter

PASSWORD = "Zaphod-beeblebrox"
SLOW_SECONDS = 3


class Counting(BaseSocketServer):
    """Answers with the number of items in a frame."""

    async def receive(self, data):
        await self.async_send(len(data))


class Floats(Counting):
    message_type = list[float]


class Working(BaseSocketServer):
    """Its handler runs from the first frame on."""

    async def receive(self, data):
        await self.async_send("working")
        await asyncio.sleep(3600)


class Plain(BaseSocketServer):
    """Answers from a worker thread."""

    def receive(self, data):
        self.send(len(data))


class Slow(Plain):
    """Uses a worker thread for a while before it accepts a client."""

    def authorize(self):
        time.sleep(SLOW_SECONDS)


class WithoutBroker(BaseSocketServer):
    """Its broker is down, and the URL has a password."""

    config = f"redis://app:{PASSWORD}@127.0.0.1:1?subscribe_timeout_seconds=0.2"

    async def connect(self):
        await self.async_subscribe("room")

    def receive(self, data):
        self.broadcast("room", data)

    async def error(self, exc):
        await self.async_send(str(exc))


class Partners(Counting):
    allowed_origins = ("https://*.partner.example", "capacitor://localhost")


routes = [
    path("ws/json/", Counting.as_asgi),
    path("ws/floats/", Floats.as_asgi),
    path("ws/work/", Working.as_asgi),
    path("ws/partners/", Partners.as_asgi),
    path("ws/plain/", Plain.as_asgi),
    path("ws/slow/", Slow.as_asgi),
    path("ws/nobroker/", WithoutBroker.as_asgi),
    re_path(r"^ws/any/[\s\S]*$", Counting.as_asgi),
]
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter(routes)})
