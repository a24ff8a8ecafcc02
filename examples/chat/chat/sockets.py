"""The socket class of the page. Each open tab has one object.

The tab itself subscribes to `room:...`, the messages of a room with a history and the users who are
present, and to `writing:...`, which tells who writes.
"""

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

    def may_subscribe(self, channel):
        kind, _, name = channel.partition(":")
        return kind in ("room", "writing") and may_enter(self.scope["user"], name)

    @on("enter")
    def enter(self, message: Enter):
        if self.room is not None:
            self.untrack(f"room:{self.room}")
            self.room = None
        if not may_enter(self.scope["user"], message.room):
            raise RequestError("forbidden", "You may not enter this room.")
        # All tabs of a user are one member. It leaves after the last of them has ended.
        self.track(f"room:{message.room}", {"name": self.name})
        self.room = message.room

    @on("say")
    def say(self, message: Say):
        if self.room is None:
            raise RequestError("no_room", "Enter a room first.")
        # If the broker is down, the request is answered with the error "unavailable".
        self.broadcast(f"room:{self.room}", {"name": self.name, "text": message.text})

    @on("writing")
    def writing(self):
        if self.room is not None:
            with suppress(PublishError):  # If the broker is down, others cannot be informed.
                self.broadcast(f"writing:{self.room}", {"name": self.name}, exclude_self=True)

    @property
    def name(self):
        return self.scope["user"].username
