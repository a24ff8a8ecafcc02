"""Turns: work of one event loop that must not overlap, first come first served.

Unlike `asyncio.Lock`, a free turn is taken without a coroutine.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Turns"]


class Turns:
    """One turn at a time.

    Attributes:
        taken: somebody has the turn, or waits for it.
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
                self.give_back()  # It was given the turn, and cannot use it.
            raise

    def give_back(self) -> None:
        """Let the next one begin."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.taken = False
