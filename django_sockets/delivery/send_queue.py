"""A queue with a worker that exists only while there is something to wait for.

An idle socket costs no task and no queue, and neither does an item that is handled at once.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .eager import start
from .flow_control import Backlog

__all__ = ["SendQueue"]


class SendQueue(abc.ABC):
    """Items handled one at a time, in order, on one event loop. A subclass says how.

    Attributes:
        send: the hub may await this in place of `handle` while the queue is `idle` and `direct`.
        owner: the subscriber that the queue belongs to, where the hub may `send`.
        idle: no item is being handled. A caller that awaits `send` clears this, and calls `rest`
            afterwards.
        behind: an item waits behind the one that is being handled.
        held: nothing is handled until `release`.
        direct: the hub need not ask the owner: the queue is not held, not sealed and not ended.
    """

    __slots__ = (
        "_backlog",
        "_ended",
        "_worker",
        "behind",
        "direct",
        "held",
        "idle",
        "owner",
        "send",
    )

    send: Callable[[Any], Awaitable[None]]
    owner: Any

    def __init__(self) -> None:
        self._backlog: Backlog | None = None
        self._worker: asyncio.Task[None] | None = None
        self.held = False
        self._ended = False
        self.idle = True
        self.behind = False
        self.direct = True

    # What a subclass says

    @abc.abstractmethod
    async def handle(self, item: Any) -> None:
        """Handle an item; what it raises ends the send queue and goes to `failed`."""

    @abc.abstractmethod
    def failed(self, exc: Exception) -> None:
        """Called with the exception of `handle` or `send`."""

    @abc.abstractmethod
    def dropped(self, items: list[Any]) -> None:
        """Called with the items that were queued and are not handled any more."""

    @abc.abstractmethod
    def new_backlog(self) -> Backlog:
        """What items wait in; asked for once, when the first one has to."""

    # What waits

    def backlog(self) -> Backlog:
        """The items that wait."""
        if self._backlog is None:
            self._backlog = self.new_backlog()
            if self.idle and not self.held:
                self._backlog.rest()
        return self._backlog

    @property
    def full(self) -> bool:
        return self._backlog is not None and self._backlog.full

    @property
    def stuck(self) -> bool:
        """The item in hand has waited for so long that the consumer counts as slow."""
        return not self.idle and self._backlog is not None and self._backlog.stuck

    @property
    def empty(self) -> bool:
        """Nothing is queued."""
        return not self._backlog

    def evict(self) -> Any:
        """Drop and return the oldest item for which nobody waits; None if there is none."""
        entry = self.backlog().evict(_unawaited)
        return None if entry is None else entry[0]

    def put(self, item: Any, size_bytes: int) -> bool:
        """Handle an item without waiting; False if the send queue is full and its consumer slow."""
        if self._ended:
            self.dropped([item])
            return True  # Nobody is there any more to miss it.
        if self.idle and not self.held:
            self._begin(self._one(item))
            return True
        return self._queue((item, None), size_bytes)

    async def run(self, item: Any) -> None:
        """Handle an item behind the others; returns when that is done, or the queue has ended."""
        if self._ended:
            return
        if self.idle and not self.held:
            worker = self._begin(self._one(item))
            if worker is not None:
                await asyncio.wait([worker])
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # At most one for each caller that waits, so this is bounded without the backlog's limits.
        self._queue((item, done), 0, force=True)
        await done

    def _queue(self, entry: Any, size_bytes: int, *, force: bool = False) -> bool:
        if not self.backlog().put(entry, size_bytes, force=force):
            return False
        self.behind = not self.idle
        return True

    def forget(self) -> None:
        """Drop what is queued; callers of `run` return."""
        entries = self._backlog.clear() if self._backlog is not None else []
        for _, done in entries:
            if done is not None and not done.done():
                done.set_result(None)
        if entries:
            self.dropped([item for item, _ in entries])

    # When it is handled

    def hold(self) -> None:
        """Handle nothing that comes from now on, until `release`."""
        self.held = True
        self.direct = False

    def release(self) -> None:
        """Begin to handle what was held."""
        self.held = False
        self.direct = not self._ended
        if self._backlog is not None:
            self.rest()

    def seal(self) -> None:
        """Nothing is `direct` any more: `connect` is running, or the end is near."""
        self.direct = False

    def unseal(self) -> None:
        """Take `seal` back."""
        self.direct = not (self.held or self._ended)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Handle something at once, as far as that need not wait; returns what goes on with it."""
        self.idle = False
        try:
            worker = start(work, asyncio.get_running_loop())
        except asyncio.CancelledError:
            return None  # As for a task of its own: the item is done with.
        if worker is not None:
            self.wait_for(worker)
        return worker

    async def _one(self, item: Any) -> None:
        try:
            await self.handle(item)
        except Exception as exc:
            self.fail(exc)
        finally:
            self.rest()

    async def _all(self, backlog: Backlog) -> None:
        try:
            while backlog:
                item, done = backlog.take()
                try:
                    await self.handle(item)
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
        self.backlog().begin()

    def rest(self) -> None:
        """Nothing is in hand any more: go on with what waits."""
        self.idle = True
        self.behind = False
        self._worker = None
        if self._backlog is not None:
            self._backlog.rest()
            if self._backlog and not self._ended:
                self._begin(self._all(self._backlog))

    # How it ends

    def fail(self, exc: Exception) -> None:
        """`handle` or `send` has raised."""
        self.end()
        self.failed(exc)

    def end(self) -> None:
        """Handle nothing more; callers of `run` return. The item at hand is cancelled."""
        if self._ended:
            return
        self._ended = True
        self.direct = False
        self.forget()
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()


def _unawaited(entry: Any) -> bool:
    return entry[1] is None
