"""A FIFO lock for work on one event loop that must not overlap.

Unlike with `asyncio.Lock`, taking a free turn needs no coroutine.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Turns"]


class Turns:
    """One turn at a time.

    Attributes:
        taken: a caller has the turn or waits for it.
    """

    def __init__(self) -> None:
        self.taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take the turn if it is free; False if it is not."""
        if self.taken:
            return False
        self.taken = True
        return True

    async def wait(self) -> None:
        """Take the turn after all others that wait. A cancelled call does not take it."""
        if self.take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # The cancelled call has got the turn and cannot use it.
            raise

    def give_back(self) -> None:
        """Give the turn to the next caller that waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.taken = False
