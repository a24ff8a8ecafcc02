"""A bounded queue of items that are handled one at a time.

An item is handled at once if the queue is idle. A worker task exists only while an item has to
wait, so an idle socket costs neither a task nor a backlog.
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
    """Items handled one at a time, in order, on one event loop. A subclass handles them.

    The fan-out may bypass `handle` while the queue is `idle` and `direct`. If there is a `write`,
    it passes the frames of messages to it, which never waits. Otherwise it awaits `send` itself. It
    then clears `idle`, and afterwards either sets `idle` again, if nothing is `behind`, or calls
    `rest`. No other code changes these attributes from outside.

    Attributes:
        send: the ASGI `send` that the fan-out may await.
        write: takes complete frames at once and returns True, or takes nothing and returns False;
            None for a server without prepared frames.
        window_bits: the kind of the frames for `write`; see `Run.frames`.
        collected: what the fan-out is about to write: None, one run or a list of runs.
        origin: the id that leaves the owner out of a broadcast, or None.
        owner: the subscriber that owns the queue. Only a queue for the fan-out needs it.
        idle: no item is being handled.
        behind: an item waits behind the item that is being handled.
        held: nothing is handled until `release`.
        direct: the fan-out may use `send`: the queue is not held, not sealed and not ended.
    """

    __slots__ = (
        "_backlog",
        "_ended",
        "_worker",
        "behind",
        "collected",
        "direct",
        "held",
        "idle",
        "origin",
        "owner",
        "send",
        "window_bits",
        "write",
    )

    send: Callable[[Any], Awaitable[None]]
    owner: Any

    def __init__(self) -> None:
        self._backlog: Backlog | None = None
        self._worker: asyncio.Task[None] | None = None
        self.write: Callable[[bytes], bool] | None = None
        self.window_bits = 0
        self.collected: Any = None
        self.origin: bytes | None = None
        self.held = False
        self._ended = False
        self.idle = True
        self.behind = False
        self.direct = True

    # For subclasses

    @abc.abstractmethod
    async def handle(self, item: Any) -> None:
        """Handle an item. An exception ends the queue and is passed to `failed`."""

    @abc.abstractmethod
    def failed(self, exc: Exception) -> None:
        """Called with an exception of `handle` or `send`."""

    @abc.abstractmethod
    def dropped(self, items: list[Any]) -> None:
        """Called with queued items that will not be handled."""

    @abc.abstractmethod
    def new_backlog(self) -> Backlog:
        """Make the backlog. Called once, when the first item has to wait."""

    def split(self, item: Any) -> tuple[Any, int, Any]:
        """The first message of an item, its size, and an item of the others or None."""
        return item, 0, None

    def take(self, backlog: Backlog) -> tuple[Any, asyncio.Future[None] | None]:
        """Remove and return the next item, and the future of its `run`.

        A subclass may join several items.
        """
        entry: tuple[Any, asyncio.Future[None] | None] = backlog.take()
        return entry

    # Queued items

    def backlog(self) -> Backlog:
        """The queued items."""
        if self._backlog is None:
            self._backlog = self.new_backlog()
            if self.idle and not self.held:
                self._backlog.rest()
        return self._backlog

    @property
    def unsent(self) -> Backlog | None:
        """The queued items; None if no item has ever waited. For any thread."""
        return self._backlog

    @property
    def full(self) -> bool:
        """The backlog has reached one of its limits."""
        return self._backlog is not None and self._backlog.full

    @property
    def stuck(self) -> bool:
        """The present item has taken so long that the consumer counts as slow. For any thread."""
        return not self.idle and self._backlog is not None and self._backlog.stuck

    @property
    def empty(self) -> bool:
        """Nothing is queued."""
        return not self._backlog

    def evict(self) -> Any:
        """Remove and return the oldest item without a waiting `run`; None if there is none."""
        return self.backlog().evict(self._split)

    def _split(self, entry: Any) -> tuple[Any, int, Any] | None:
        item, done = entry
        if done is not None:
            return None
        first, size_bytes, rest = self.split(item)
        return first, size_bytes, None if rest is None else (rest, None)

    def put(self, item: Any, size_bytes: int) -> bool:
        """Handle or queue an item; False if the queue is full and its consumer slow."""
        if self._ended:
            self.dropped([item])
            return True  # Not an overflow: the consumer is gone.
        if self.idle and not self.held:
            self._begin(self._one(item))
            return True
        return self._queue((item, None), size_bytes)

    def put_whole(self, item: Any, size_bytes: int, items: int) -> bool:
        """Handle or queue several items as one.

        Returns:
            False if they do not fit, or the owner has to see each of them.
        """
        if not (self.direct and self.backlog().fits(size_bytes, items)):
            return False
        if self.idle:
            self._begin(self._one(item))
            return True
        return self._queue((item, None), size_bytes, items=items)

    async def run(self, item: Any) -> None:
        """Handle an item after the queued ones. Returns when it is handled or the queue ended."""
        if self._ended:
            return
        if self.idle and not self.held:
            worker = self._begin(self._one(item))
            if worker is not None:
                await asyncio.wait([worker])
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Each caller waits for its item, so the number of callers bounds these items.
        self._queue((item, done), 0, force=True)
        await done

    def _queue(self, entry: Any, size_bytes: int, *, items: int = 1, force: bool = False) -> bool:
        if not self.backlog().put(entry, size_bytes, items=items, force=force):
            return False
        self.behind = not self.idle
        return True

    def forget(self) -> None:
        """Drop the queued items; callers of `run` return."""
        entries = self._backlog.clear() if self._backlog is not None else []
        for _, done in entries:
            if done is not None and not done.done():
                done.set_result(None)
        if entries:
            self.dropped([item for item, _ in entries])

    # Holding and handling

    def hold(self) -> None:
        """Queue all new items until `release`."""
        self.held = True
        self.direct = False

    def release(self) -> None:
        """Begin to handle the held items."""
        self.held = False
        self.direct = not self._ended
        if self._backlog is not None:
            self.rest()

    def seal(self) -> None:
        """Keep the fan-out from using `send`: `connect` is running, or the socket is closing."""
        self.direct = False

    def unseal(self) -> None:
        """Undo `seal`."""
        self.direct = not (self.held or self._ended)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Start a coroutine. Returns the task that continues it if it has to wait, else None."""
        self.idle = False
        try:
            worker = start(work, asyncio.get_running_loop())
        except asyncio.CancelledError:
            return None  # The item is finished, as if a task had been cancelled.
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
                item, done = self.take(backlog)
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
        """Record that the present item has to wait, and that this task continues it."""
        self._worker = worker
        self.backlog().begin()

    def rest(self) -> None:
        """Record that the present item is finished, and continue with the queued items."""
        self.idle = True
        self.behind = False
        self._worker = None
        if self._backlog is not None:
            self._backlog.rest()
            if self._backlog and not self._ended:
                self._begin(self._all(self._backlog))

    # The end

    def fail(self, exc: Exception) -> None:
        """End the queue because `handle` or `send` has raised."""
        self.end()
        self.failed(exc)

    def end(self) -> None:
        """End the queue: cancel the present item, drop the queued ones. Callers of `run` return."""
        if self._ended:
            return
        self._ended = True
        self.direct = False
        self.forget()
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()
