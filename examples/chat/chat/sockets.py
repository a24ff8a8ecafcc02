"""The socket class of the page. Each open tab has one object.

The tab itself subscribes to `room:...`, the messages of a room, which have a history. The server
subscribes it to `people:...`, which tells who is there, and to `tab:...`, its own channel.
"""

import secrets
from contextlib import suppress
from typing import Annotated

from msgspec import Meta, Struct

from django_sockets import PublishError, RequestError
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on

from .rooms import may_enter

MAX_TEXT = 1000


class Enter(Struct):
    room: str


class Say(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class ChatSocket(BaseSocketServer):
    """A tab makes the requests "enter" and "say", and sends "writing"."""

    room = None

    def connect(self):
        self.user = self.scope["user"]
        self.id = secrets.token_hex(4)
        self.subscribe(f"tab:{self.id}")

    def may_subscribe(self, channel):
        kind, _, name = channel.partition(":")
        return kind == "room" and may_enter(self.user, name)

    @on("enter")
    def enter(self, message: Enter):
        self.leave()
        if not may_enter(self.user, message.room):
            raise RequestError("forbidden", "You may not enter this room.")
        self.subscribe(f"people:{message.room}")
        self.room = message.room
        self.tell_others("entered")
        return {"id": self.id}

    @on("say")
    def say(self, message: Say):
        if self.room is None:
            raise RequestError("no_room", "Enter a room first.")
        # If the broker is down, the request is answered with the error "unavailable".
        self.broadcast(f"room:{self.room}", self.event("said", text=message.text))

    @on("writing")
    def writing(self):
        self.tell_others("writing")

    def disconnect(self):
        self.leave()

    def gap(self, channels, reason):
        self.tell_others("entered")  # The replies name the users in the room.

    async def async_handle_received_broadcast(self, channel, data):
        if data["kind"] == "entered":
            # There is no list of users: each socket in the room replies to the new one.
            await self.async_broadcast(f"tab:{data['id']}", self.event("here"))
        await super().async_handle_received_broadcast(channel, data)

    def leave(self):
        if self.room is not None:
            self.tell_others("left")
            self.unsubscribe(f"people:{self.room}")
            self.room = None

    def tell_others(self, kind):
        if self.room is not None:
            with suppress(PublishError):  # If the broker is down, others cannot be informed.
                self.broadcast(f"people:{self.room}", self.event(kind), exclude_self=True)

    def event(self, kind, **more):
        return {"kind": kind, "id": self.id, "name": self.user.username, "room": self.room, **more}
