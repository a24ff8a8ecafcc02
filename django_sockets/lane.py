"""A mailbox with a worker that exists only while there is something to do.

An idle socket costs no task for its outbox.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .mailbox import Congestion, Mailbox

__all__ = ["Lane"]

if sys.version_info >= (3, 12):

    def _start_now(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine up to where it has to wait, which for a server's `send` is rare."""
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _start_now(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine soon; before 3.12 no task can begin at once."""
        return asyncio.get_running_loop().create_task(work)


class Lane:
    """Items handled one at a time, in order, on one event loop.

    Args:
        handle: awaited with each item; what it raises ends the lane and goes to `failed`.
        failed: called with the exception of `handle`.
        max_items, max_bytes, congestion: see `Mailbox`.
        dropped: called with the items that were queued and are not handled any more.

    Attributes:
        held: no item is handled until `release`.
    """

    __slots__ = (
        "_closed",
        "_dropped",
        "_failed",
        "_handle",
        "_mailbox",
        "_worker",
        "_working",
        "held",
    )

    def __init__(
        self,
        handle: Callable[[Any], Awaitable[None]],
        failed: Callable[[Exception], None],
        *,
        max_items: int,
        max_bytes: int,
        congestion: Congestion,
        held: bool = False,
        dropped: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._handle = handle
        self._failed = failed
        self._dropped = dropped
        self._mailbox = Mailbox(max_items, max_bytes, congestion)
        self._mailbox.rest()
        self._worker: asyncio.Task[None] | None = None
        self._working = False
        self._closed = False
        self.held = held

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        return self._mailbox.full

    @property
    def idle(self) -> bool:
        """Nothing is queued or at hand."""
        return not self._working and not self._mailbox

    @property
    def empty(self) -> bool:
        return not self._mailbox

    def evict(self) -> Any:
        """Drop and return the oldest item for which nobody waits; None if there is none."""
        entry = self._mailbox.evict(_unawaited)
        return None if entry is None else entry[0]

    def put(self, item: Any, size_bytes: int) -> bool:
        """Queue an item without waiting; False if the lane is full and its consumer slow."""
        if self._closed:
            return True  # Nobody is there any more to miss it.
        if not self._mailbox.put((item, None), size_bytes):
            return False
        self._start()
        return True

    async def run(self, item: Any) -> None:
        """Queue an item behind the others and return once it was handled, or the lane closed."""
        if self._closed:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # At most one for each caller that waits, so this is bounded without the mailbox's limits.
        self._mailbox.put((item, done), 0, force=True)
        self._start()
        await done

    def forget(self) -> None:
        """Drop what is queued; callers of `run` return."""
        entries = self._mailbox.clear()
        for _, done in entries:
            if done is not None and not done.done():
                done.set_result(None)
        if entries and self._dropped is not None:
            self._dropped([item for item, _ in entries])

    def release(self) -> None:
        """Begin to handle what was held."""
        self.held = False
        if self._mailbox:
            self._start()

    def _start(self) -> None:
        if not self._working and not self.held and not self._closed:
            self._working = True
            worker = _start_now(self._work())
            self._worker = None if worker.done() else worker

    async def _work(self) -> None:
        mailbox = self._mailbox
        try:
            while mailbox:
                item, done = mailbox.take()
                try:
                    await self._one(item)
                finally:
                    if done is not None and not done.done():
                        done.set_result(None)
        finally:
            mailbox.rest()
            self._working = False

    async def _one(self, item: Any) -> None:
        try:
            await self._handle(item)
        except Exception as exc:
            self.close()
            self._failed(exc)

    def close(self) -> None:
        """Handle nothing more; callers of `run` return. The item at hand is cancelled."""
        if self._closed:
            return
        self._closed = True
        self.forget()
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()


def _unawaited(entry: Any) -> bool:
    return entry[1] is None
