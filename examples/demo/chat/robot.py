"""A robot that counts in the room, so that one person can see what a second tab would write."""

import asyncio
import secrets

from django_sockets import BrokerError
from django_sockets.broadcaster import Broadcaster

from .messages import ROOM, message

NUMBERS = 20
PAUSE_SECONDS = 0.6

_task = None


def start():
    """Let the robot count, unless it is counting already. Returns whether it has begun."""
    global _task
    if _task is not None and not _task.done():
        return False
    _task = asyncio.create_task(count(), name="robot")
    return True


async def count():
    broadcaster = Broadcaster()
    for number in range(1, NUMBERS + 1):
        try:
            text = f"{number} of {NUMBERS}"
            await broadcaster.async_broadcast(ROOM, message(secrets.token_hex(8), "Robot", text))
        except BrokerError:
            return  # The tabs are told that they may have missed messages.
        await asyncio.sleep(PAUSE_SECONDS)
