"""The socket class of the page. Each open tab has one object."""

import secrets
from contextlib import suppress
from typing import Annotated

from msgspec import Meta, Struct

from django_sockets import NotAllowed, PublishError
from django_sockets.closing import UNAUTHORIZED
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on

from .rooms import may_enter

MAX_TEXT = 1000


class Enter(Struct):
    room: str


class Say(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class ChatSocket(BaseSocketServer):
    """The page sends `{"type": "enter", "room": ...}`, then "say" and "writing"."""

    answer_invalid = True  # The reply to an invalid message describes the error.
    room = None

    def connect(self):
        self.user = self.scope["user"]
        self.id = secrets.token_hex(4)
        if not self.user.is_authenticated:
            # A page cannot tell a refused handshake from a broken network, but it sees close codes.
            self.close(UNAUTHORIZED)
            return
        self.subscribe(f"tab:{self.id}")

    def may_subscribe(self, channel):
        kind, _, name = channel.partition(":")
        return kind == "room" and may_enter(self.user, name)

    @on("enter")
    def enter(self, message: Enter):
        self.leave()
        try:
            self.subscribe_for_client(f"room:{message.room}")
        except NotAllowed:
            self.send({"kind": "refused", "room": message.room})
            return
        self.room = message.room
        self.send(self.event("welcome"))
        self.tell_others("entered")

    @on("say")
    def say(self, message: Say):
        if self.room is None:
            return
        try:
            self.broadcast(f"room:{self.room}", self.event("said", text=message.text))
        except PublishError:
            self.send({"kind": "failed", "text": message.text})

    @on("writing")
    def writing(self):
        self.tell_others("writing")

    def disconnect(self):
        self.leave()

    def gap(self, channels, reason):
        self.send({"kind": "gap"})
        self.tell_others("entered")  # The replies name the users in the room.

    async def async_handle_received_broadcast(self, channel, data):
        if data["kind"] == "entered":
            # There is no list of users: each socket in the room replies to the new one.
            await self.async_broadcast(f"tab:{data['id']}", self.event("here"))
        await self.async_send(data)

    def leave(self):
        if self.room is not None:
            self.tell_others("left")
            self.unsubscribe(f"room:{self.room}")
            self.room = None

    def tell_others(self, kind):
        if self.room is not None:
            with suppress(PublishError):  # If the broker is down, others cannot be informed.
                self.broadcast(f"room:{self.room}", self.event(kind), exclude_self=True)

    def event(self, kind, **more):
        return {"kind": kind, "id": self.id, "name": self.user.username, "room": self.room, **more}
