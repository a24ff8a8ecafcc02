"""A mailbox with a worker that exists only while there is something to wait for.

An idle socket costs no task for its outbox, and neither does an item that is handled at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .eager import start
from .mailbox import Congestion, Mailbox

__all__ = ["Lane"]


class Lane:
    """Items handled one at a time, in order, on one event loop.

    Args:
        handle: awaited with each item; what it raises ends the lane and goes to `failed`.
        failed: called with the exception of `handle`.
        max_items, max_bytes, congestion: see `Mailbox`.
        dropped: called with the items that were queued and are not handled any more.
        send: what the hub may await in place of `handle`, where the lane is `idle` and `direct`;
            None for the same.

    Attributes:
        send: as given.
        idle: nothing is in hand. Who awaits `send` takes this back, and calls `rest` after it.
        behind: something waits behind what is in hand.
        direct: what comes next need not ask the owner: the lane is neither held nor at its end.
        mailbox: what waits.
    """

    __slots__ = (
        "_closed",
        "_dropped",
        "_failed",
        "_handle",
        "_held",
        "_loop",
        "_worker",
        "behind",
        "direct",
        "idle",
        "mailbox",
        "send",
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
        send: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        self._handle = handle
        self.send = handle if send is None else send
        self._failed = failed
        self._dropped = dropped
        self._loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(max_items, max_bytes, congestion)
        self.mailbox.rest()
        self._worker: asyncio.Task[None] | None = None
        self._held = held
        self._closed = False
        self.idle = True
        self.behind = False
        self.direct = not held

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        return self.mailbox.full

    @property
    def empty(self) -> bool:
        """Nothing is queued."""
        return not self.mailbox

    def evict(self) -> Any:
        """Drop and return the oldest item for which nobody waits; None if there is none."""
        entry = self.mailbox.evict(_unawaited)
        return None if entry is None else entry[0]

    def put(self, item: Any, size_bytes: int) -> bool:
        """Queue an item without waiting; False if the lane is full and its consumer slow."""
        if self._closed:
            if self._dropped is not None:
                self._dropped([item])
            return True  # Nobody is there any more to miss it.
        if not self.mailbox.put((item, None), size_bytes):
            return False
        self._start()
        return True

    async def run(self, item: Any) -> None:
        """Queue an item behind the others and return once it was handled, or the lane closed."""
        if self._closed:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # At most one for each caller that waits, so this is bounded without the mailbox's limits.
        self.mailbox.put((item, done), 0, force=True)
        self._start()
        await done

    def forget(self) -> None:
        """Drop what is queued; callers of `run` return."""
        entries = self.mailbox.clear()
        for _, done in entries:
            if done is not None and not done.done():
                done.set_result(None)
        if entries and self._dropped is not None:
            self._dropped([item for item, _ in entries])

    def release(self) -> None:
        """Begin to handle what was held."""
        self._held = False
        self.direct = not self._closed
        self._start()

    def seal(self) -> None:
        """Nothing is `direct` any more: the end is near."""
        self.direct = False

    def _start(self) -> None:
        """Handle what waits, at once as far as that need not wait."""
        if not self.mailbox or self._held or self._closed:
            return
        if not self.idle:
            self.behind = True
            return
        self.idle = False
        try:
            worker = start(self._work(), self._loop)
        except asyncio.CancelledError:
            self.rest()  # As for a task of its own: the item is done with.
        else:
            if worker is not None:
                self.wait_for(worker)

    async def _work(self) -> None:
        mailbox = self.mailbox
        try:
            while mailbox:
                item, done = mailbox.take()
                try:
                    await self._handle(item)
                except Exception as exc:
                    self.fail(exc)
                finally:
                    if done is not None and not done.done():
                        done.set_result(None)
        finally:
            self.rest()

    def wait_for(self, worker: asyncio.Task[None]) -> None:
        """The item in hand has to wait; this task goes on with it."""
        self._worker = worker
        self.mailbox.begin()

    def rest(self) -> None:
        """Nothing is in hand any more: go on with what waits."""
        self.idle = True
        self.behind = False
        self._worker = None
        self.mailbox.rest()
        self._start()

    def fail(self, exc: Exception) -> None:
        """`handle` or `send` has raised."""
        self.close()
        self._failed(exc)

    def close(self) -> None:
        """Handle nothing more; callers of `run` return. The item at hand is cancelled."""
        if self._closed:
            return
        self._closed = True
        self.direct = False
        self.forget()
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()


def _unawaited(entry: Any) -> bool:
    return entry[1] is None
