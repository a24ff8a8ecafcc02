"""The socket class of the page. Each open tab has one object."""

import time
from typing import Annotated

from msgspec import Meta, Struct

from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on

from . import robot
from .messages import MAX_NAME, MAX_TEXT, ROOM, message


class Say(Struct):
    id: Annotated[str, Meta(min_length=1, max_length=40)]  # The tab has chosen it.
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class ChatSocket(BaseSocketServer):
    """A tab subscribes to the room, and makes the requests "say", "count" and "latest"."""

    async def connect(self):
        # By this time of the server, the tab recognizes messages from before its connection.
        await self.async_send({"now": time.time()})

    def may_subscribe(self, channel):
        return channel == ROOM

    @on("say")
    async def say(self, said: Say):
        # If the broker is down, the request is answered with the error "unavailable".
        await self.async_broadcast(ROOM, message(said.id, said.name, said.text))

    @on("count")
    async def count(self):
        return {"started": robot.start()}

    @on("latest")
    async def latest(self):
        """The kept messages. A tab asks for them when it may have missed some."""
        page = await Broadcaster().async_history(ROOM)
        return [kept.data for kept in page.messages]
