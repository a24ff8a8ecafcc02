"""The socket class of the page. Each open tab has one object."""

import secrets
from contextlib import suppress

from django_sockets import PublishError
from django_sockets.sockets import BaseSocketServer

ROOM = "lobby"
MAX_NAME = 30
MAX_TEXT = 1000


class ChatSocket(BaseSocketServer):
    """The page sends `{"join": name}` once, then `{"say": text}`."""

    name = ""

    def connect(self):
        self.id = secrets.token_hex(4)  # A tab recognizes its own messages by this id.
        self.subscribe(ROOM)

    def receive(self, data):
        match data:
            case {"join": str(name)} if name.strip() and not self.name:
                self.name = name.strip()[:MAX_NAME]
                self.send({"kind": "welcome", "id": self.id})
                self.tell_all("joined")
            case {"say": str(text)} if text.strip() and self.name:
                try:
                    self.tell_all("said", text=text.strip()[:MAX_TEXT])
                except PublishError:
                    self.send({"kind": "failed", "text": text})

    def disconnect(self):
        if self.name:
            with suppress(PublishError):  # If the broker is down, others cannot be informed.
                self.tell_all("left")

    def gap(self, channels, reason):
        self.send({"kind": "gap"})

    def tell_all(self, kind, **more):
        self.broadcast(ROOM, {"kind": kind, "id": self.id, "name": self.name, **more})
