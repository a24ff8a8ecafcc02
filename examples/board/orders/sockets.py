"""The socket class of the page: each `@on` method answers one kind of request.

A page subscribes with the token that its view has signed. So there is no `may_subscribe`: pages
cannot subscribe to any other channel. The tokens of the staff allow presence, too: the staff sees
who of them looks at the board.
"""

import uuid
from contextlib import suppress
from typing import Annotated

from django.contrib.auth import get_user_model
from msgspec import Meta, Struct

from django_sockets import PresenceError, RequestError
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on

from . import changes
from .channels import STAFF


class Place(Struct):
    reference: uuid.UUID
    item: Annotated[str, Meta(min_length=1, max_length=40)]


class Change(Struct):
    id: int
    version: Annotated[int, Meta(ge=1, lt=2**31)]  # The version that the page shows.


class BoardSocket(BaseSocketServer):
    async def connect(self):
        user = self.scope["user"]
        if user.is_staff:
            with suppress(PresenceError):  # If the broker is down, the board works all the same.
                await self.async_track(STAFF, {"name": user.username})

    @on("place")
    def place(self, message: Place):
        return changes.place(self.scope["user"], message.reference, message.item).as_data()

    @on("advance")
    def advance(self, message: Change):
        self.require_staff()
        return changes.advance(message.id, message.version).as_data()

    @on("cancel")
    def cancel(self, message: Change):
        return changes.cancel(self.scope["user"], message.id, message.version).as_data()

    def require_staff(self):
        # The user of the scope is as old as the connection. The right may have been taken away.
        users = get_user_model().objects.filter(pk=self.scope["user"].pk)
        if not users.filter(is_staff=True).exists():
            raise RequestError("forbidden", "Only the staff may do this.")
