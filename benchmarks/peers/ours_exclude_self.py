"""This package, with messages that leave out the first socket.

The publisher of the benchmark takes that socket's id from a message on the channel "sender".
"""

from __future__ import annotations

import itertools

import ours

numbers = itertools.count()


class Socket(ours.Socket):
    async def connect(self) -> None:
        await super().connect()
        if not next(numbers):
            await self.async_broadcast("sender", "", exclude_self=True)


app = Socket.as_asgi
