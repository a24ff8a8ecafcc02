"""Receives the frames of one client and handles them one at a time, in the task of the server.

While a handler takes long, a second task reads a few frames ahead, so that the end of the
connection is noticed. If a client sends faster than its handlers work, TCP makes it wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol, TypeAlias

from ..log import LogThrottle, whereabouts
from ..loops import cancelling, forget_closed, uncancel
from ..url import BrokerOptions
from .close_codes import GOING_AWAY, INTERNAL_ERROR, NO_CODE

__all__ = ["Listener", "ReceiveLoop"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]

READ_AHEAD_AFTER_SECONDS = 0.1
"""If a handler takes longer than this, a second task begins to read. Most handlers return sooner. A
second task for each frame would cost more than a short handler itself."""
READ_AHEAD = 16
"""The most frames that are read while a handler runs. Reading also stops when these frames have
`max_message_bytes` in total."""
FRAMES_IN_A_ROW = 16
"""The most frames of one client that are handled before other tasks of the event loop may run."""
_NOTHING: deque[tuple[Event, int]] = deque(maxlen=0)
"""The queue of a client of which no frame has waited yet."""


class FrameOptions(Protocol):
    """The options of a socket class that the receive loop reads.

    Attributes:
        max_message_bytes: the largest frame.
    """

    max_message_bytes: int


class Listener(Protocol):
    """The interface of a connection for its receive loop.

    One object instead of several callables keeps an idle connection small.

    Attributes:
        home: the event loop of the connection.
        asgi_receive: the ASGI callable; None if the connection receives nothing.
    """

    home: asyncio.AbstractEventLoop
    asgi_receive: Receive | None

    @property
    def socket(self) -> FrameOptions:
        """The application's object."""

    def begin(self) -> None:
        """The loop begins. Called before anything is read."""

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Handle any event except the final disconnect."""

    async def failed(self, exc: Exception) -> None:
        """Report an error that `handle` raised. It must not raise."""

    def too_big(self) -> None:
        """Close the connection, because a frame is too large. Nothing more is handled."""

    def over(self, code: int) -> asyncio.Task[None]:
        """End the connection. Nothing more is read; frames that were read may still be handled."""


class ReceiveLoop:
    """The way from an ASGI `receive` to a handler, on one event loop.

    Attributes:
        heard_at: loop time at which the last event arrived.
        code: the close code, once the connection has ended.
    """

    __slots__ = (
        "_arrival",
        "_cancelled",
        "_ending",
        "_event",
        "_idle",
        "_owner",
        "_reader",
        "_reading",
        "_stopped",
        "_taken",
        "_task",
        "_waiting",
        "_waiting_bytes",
        "code",
        "heard_at",
    )

    def __init__(self, owner: Listener) -> None:
        self._owner = owner
        self._event: Event | None = None
        self._waiting = _NOTHING
        self._waiting_bytes = 0
        self._task: asyncio.Task[Any] | None = None
        self._reading = False
        self._cancelled = False
        self._stopped = False
        self._ending: asyncio.Task[None] | None = None
        # Futures and a task that exist only while something waits for them.
        self._idle: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self.heard_at = 0.0
        self.code: int | None = None

    def push(self, event: Event, size_bytes: int = 0) -> None:
        """Queue an event behind the waiting ones."""
        if self._stopped:
            return
        if self._event is None:
            self._event = event
            return
        if self._waiting is _NOTHING:
            self._waiting = deque()
        self._waiting.append((event, size_bytes))
        self._waiting_bytes += size_bytes

    async def serve(self) -> None:
        """Read and handle events until the client leaves, or until `end`.

        It runs in the task of its caller, the server. A server that cancels this task also cancels
        the running handler.
        """
        owner = self._owner
        loop = owner.home
        receive = owner.asgi_receive or loop.create_future
        task = asyncio.current_task(loop)
        earlier = cancelling(task)
        running_handlers = _running_handlers.get(loop) or _running_handlers_on(loop)
        in_a_row = 0
        try:
            self.heard_at = loop.time()
            owner.begin()
            self._task = task
            while True:
                while self._event is not None:
                    running_handlers.add(self, self.heard_at)
                    try:
                        await owner.handle(self._event)
                    except Exception as exc:
                        await owner.failed(exc)
                    running_handlers.discard(self)
                    in_a_row += 1
                    if in_a_row == FRAMES_IN_A_ROW:
                        in_a_row = 0
                        await asyncio.sleep(0)
                    self._event = self._next()
                if self._idle is not None:
                    _wake(self._idle)
                if self.code is not None:
                    break
                if self._reader is not None:
                    self._arrival = loop.create_future()
                    await self._arrival
                    self._arrival = None
                    continue
                self._reading = True
                try:
                    event = await receive()
                except Exception as exc:
                    self._receive_failed(exc)
                else:
                    self._heard(event)
                self._reading = False
        except asyncio.CancelledError:
            if not self._cancelled or uncancel(task) > earlier:
                raise  # The server cancelled the task.
        else:
            if self._cancelled:
                uncancel(task)  # The server's `receive` has swallowed the cancellation.
        finally:
            self._reading = False
            self._event = None
            if self._idle is not None:
                _wake(self._idle)
            self.end(GOING_AWAY)
            ending = self._ending or owner.over(self.code or GOING_AWAY)
            # If the server cancels this task now, `ending` continues.
            await asyncio.wait([ending])
            ending.result()

    def _next(self) -> Event | None:
        if not self._waiting:
            return None
        if self._taken is not None:
            _wake(self._taken)
        event, size_bytes = self._waiting.popleft()
        self._waiting_bytes -= size_bytes
        return event

    def _heard(self, event: Event) -> None:
        self.heard_at = self._owner.home.time()
        if event["type"] == "websocket.disconnect":
            self.end(event.get("code") or NO_CODE)
        elif not self._stopped:
            text: Any = event.get("text")
            ascii_text = text is not None and text.isascii()  # True for nearly every frame.
            size_bytes = len(text) if ascii_text else _size_bytes(event)
            if size_bytes > self._owner.socket.max_message_bytes:
                self.stop()
                self._owner.too_big()
            elif self._event is None:
                self._event = event
            else:
                self.push(event, size_bytes)

    def _receive_failed(self, exc: Exception) -> None:
        key = whereabouts(exc)
        _failures.log(
            logging.ERROR,
            key,
            "the server's receive failed",
            exc_info=exc,
            extra={"socket": type(self._owner.socket).__name__},
        )
        self.end(INTERNAL_ERROR)

    def read_ahead(self) -> None:
        """Read in another task, because the running handler takes long."""
        if self._reader is None and self.code is None:
            self._reader = self._owner.home.create_task(self._read_ahead())

    async def _read_ahead(self) -> None:
        loop = self._owner.home
        receive = self._owner.asgi_receive or loop.create_future
        try:
            # This ends when all frames are handled. `serve`, which waits for it, then reads again.
            while self._arrival is None and self.code is None:
                self._heard(await receive())
                while self._enough_waits():
                    self._taken = loop.create_future()
                    await self._taken
        except Exception as exc:
            self._receive_failed(exc)
        finally:
            self._reader = None
            if self._arrival is not None:
                _wake(self._arrival)

    def _enough_waits(self) -> bool:
        return (
            len(self._waiting) >= READ_AHEAD
            or 0 < self._waiting_bytes >= self._owner.socket.max_message_bytes
        )

    def end(self, code: int) -> None:
        """Stop reading, because the connection has ended. Only the first code is kept."""
        if self.code is not None:
            return
        self.code = code
        if self._task is None:
            return  # `serve` has not begun; it will end at once.
        self._ending = self._owner.over(code)
        current = asyncio.current_task()
        if self._reading and self._task is not current:
            # Later: this may run inside the first step of a send that this very task has made, and
            # a task that cancels itself would meet the cancellation at an await after the read.
            self._owner.home.call_soon(self._interrupt_read)
        if self._reader is not None and self._reader is not current:
            self._reader.cancel()

    def _interrupt_read(self) -> None:
        if self._reading and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def stop(self) -> None:
        """Handle no event after the present one."""
        self._stopped = True
        self._waiting = _NOTHING
        self._waiting_bytes = 0
        if self._taken is not None:
            _wake(self._taken)

    @property
    def busy(self) -> bool:
        """An event is being handled or waits."""
        return self._event is not None

    async def settled(self, timeout_seconds: float) -> None:
        """Handle no event after the present one, and wait for it, at most `timeout_seconds`."""
        self.stop()
        await self._until_idle(timeout_seconds)

    async def finish(self, timeout_seconds: float | None) -> None:
        """Wait until every read event is handled; after the timeout, cancel the handler."""
        if not await self._until_idle(timeout_seconds) and self._task is not None:
            self._task.cancel()

    async def _until_idle(self, timeout_seconds: float | None) -> bool:
        if self._event is None:
            return True
        if self._idle is None:
            self._idle = self._owner.home.create_future()
        await asyncio.wait([self._idle], timeout=timeout_seconds)
        return self._idle.done()


def _size_bytes(event: Event) -> int:
    """The size of a frame as it was sent."""
    text: str | None = event.get("text")
    if text is None:
        return len(event.get("bytes") or b"")
    return len(text.encode(errors="surrogatepass"))


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class _RunningHandlers:
    """The receive loops of one event loop whose handler runs now, the oldest first.

    If a handler takes longer than `READ_AHEAD_AFTER_SECONDS`, `read_ahead` is called. One timer
    serves all receive loops of the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._since: dict[ReceiveLoop, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, frames: ReceiveLoop, since: float) -> None:
        self._since[frames] = since
        if self._timer is None:
            self._timer = self._loop.call_at(since + READ_AHEAD_AFTER_SECONDS, self._look)

    def discard(self, frames: ReceiveLoop) -> None:
        self._since.pop(frames, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for frames, since in list(self._since.items()):
            if now < since + READ_AHEAD_AFTER_SECONDS:
                self._timer = self._loop.call_at(since + READ_AHEAD_AFTER_SECONDS, self._look)
                return
            del self._since[frames]
            try:
                frames.read_ahead()
            except Exception:
                logger.exception("reading ahead while a handler runs failed")


_running_handlers: dict[asyncio.AbstractEventLoop, _RunningHandlers] = {}


def _running_handlers_on(loop: asyncio.AbstractEventLoop) -> _RunningHandlers:
    forget_closed(_running_handlers)
    return _running_handlers.setdefault(loop, _RunningHandlers(loop))
