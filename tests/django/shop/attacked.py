"""Sockets that are attacked over the wire, on every server."""

import asyncio

from django.core.asgi import get_asgi_application
from django.urls import path, re_path

from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter


class Counting(BaseSocketServer):
    """Answers with the number of items in a frame."""

    async def receive(self, data):
        await self.async_send(len(data))


class Floats(Counting):
    message_type = list[float]


class Working(BaseSocketServer):
    """Is at work from the first frame on."""

    async def receive(self, data):
        await self.async_send("working")
        await asyncio.sleep(3600)


class Partners(Counting):
    allowed_origins = ("https://*.partner.example", "capacitor://localhost")


routes = [
    path("ws/json/", Counting.as_asgi),
    path("ws/floats/", Floats.as_asgi),
    path("ws/work/", Working.as_asgi),
    path("ws/partners/", Partners.as_asgi),
    re_path(r"^ws/any/[\s\S]*$", Counting.as_asgi),
]
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter(routes)})
