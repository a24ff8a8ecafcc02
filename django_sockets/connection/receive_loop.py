"""The frames of one client: handled one at a time and in order, in the task of the server.

While a handler takes long, a task beside it reads a little ahead, so that a client that leaves is
noticed. A client that sends faster than its handlers work has to wait.
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

BESIDE_SECONDS = 0.1
"""How long a handler may be at work before somebody else reads. Most are done long before that, and
a task for each frame would be the largest part of what a short handler costs."""
READ_AHEAD = 16
"""Frames read while a handler is busy. In bytes, reading ends with the frame that makes them
`max_message_bytes` in all."""
FRAMES_IN_A_ROW = 16
"""Frames that a client may have waiting and nobody else on the event loop has a turn in between."""
_NOTHING: deque[tuple[Event, int]] = deque(maxlen=0)
"""In place of a queue where no frame ever waited."""


class FrameOptions(Protocol):
    """The options of a socket class that the receive loop reads.

    Attributes:
        max_message_bytes: the largest frame.
    """

    max_message_bytes: int


class Listener(Protocol):
    """The connection, as its receive loop knows it.

    It is an object and no set of callables, so that an idle connection is small.

    Attributes:
        home: the event loop of the connection.
        asgi_receive: the ASGI callable; None: nothing is received.
    """

    home: asyncio.AbstractEventLoop
    asgi_receive: Receive | None

    @property
    def socket(self) -> FrameOptions:
        """The application's object."""

    def begin(self) -> None:
        """Prepare; called before anything is read."""

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Handle any event except the final disconnect."""

    async def failed(self, exc: Exception) -> None:
        """Report that handling an event raised this; must not raise itself."""

    def too_big(self) -> None:
        """End soon, because a frame is too large. Nothing more is handled."""

    def over(self, code: int) -> asyncio.Task[None]:
        """Begin to end: nothing more is read. Frames that were read may still be handled."""


class ReceiveLoop:
    """The way from an ASGI `receive` to a handler, on one event loop.

    Attributes:
        heard_at: loop time at which the client was last heard.
        code: the close code, once the connection has ended.
    """

    __slots__ = (
        "_arrival",
        "_beside",
        "_cancelled",
        "_ending",
        "_event",
        "_idle",
        "_owner",
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
        # What others wait for, where they do.
        self._idle: asyncio.Future[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self.heard_at = 0.0
        self.code: int | None = None

    def push(self, event: Event, size_bytes: int = 0) -> None:
        """Have an event handled after those that wait."""
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

        It is done in the task of its caller, the server's. A server that cancels that task cancels
        the handler at work, too.
        """
        owner = self._owner
        loop = owner.home
        receive = owner.asgi_receive or loop.create_future
        task = asyncio.current_task(loop)
        earlier = cancelling(task)
        at_work = _at_work.get(loop) or _at_work_on(loop)
        in_a_row = 0
        try:
            self.heard_at = loop.time()
            owner.begin()
            self._task = task
            while True:
                while self._event is not None:
                    at_work.add(self, self.heard_at)
                    try:
                        await owner.handle(self._event)
                    except Exception as exc:
                        await owner.failed(exc)
                    at_work.discard(self)
                    in_a_row += 1
                    if in_a_row == FRAMES_IN_A_ROW:
                        in_a_row = 0
                        await asyncio.sleep(0)
                    self._event = self._next()
                if self._idle is not None:
                    _wake(self._idle)
                if self.code is not None:
                    break
                if self._beside is not None:
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
                raise  # Somebody else wants the task to end.
        else:
            if self._cancelled:
                uncancel(task)  # The server's `receive` has kept it to itself.
        finally:
            self._event = None
            if self._idle is not None:
                _wake(self._idle)
            self.end(GOING_AWAY)
            ending = self._ending or owner.over(self.code or GOING_AWAY)
            # A server that loses patience now cancels only us.
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
            ascii_text = text is not None and text.isascii()  # By far the most.
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
        _failures.log(logging.ERROR, key, "the server's receive failed", exc_info=exc)
        self.end(INTERNAL_ERROR)

    def read_beside(self) -> None:
        """The handler at work takes long: read on in another task."""
        if self._beside is None and self.code is None:
            self._beside = self._owner.home.create_task(self._read_beside())

    async def _read_beside(self) -> None:
        loop = self._owner.home
        receive = self._owner.asgi_receive or loop.create_future
        try:
            # Until the handlers have caught up: then who waits for an arrival reads on.
            while self._arrival is None and self.code is None:
                self._heard(await receive())
                while self._enough_waits():
                    self._taken = loop.create_future()
                    await self._taken
        except Exception as exc:
            self._receive_failed(exc)
        finally:
            self._beside = None
            if self._arrival is not None:
                _wake(self._arrival)

    def _enough_waits(self) -> bool:
        return (
            len(self._waiting) >= READ_AHEAD
            or 0 < self._waiting_bytes >= self._owner.socket.max_message_bytes
        )

    def end(self, code: int) -> None:
        """The connection has ended: read nothing more. The first code counts."""
        if self.code is not None:
            return
        self.code = code
        if self._task is None:
            return  # It has not begun, and is to end at once.
        self._ending = self._owner.over(code)
        current = asyncio.current_task()
        if self._reading and self._task is not current:
            self._cancelled = True
            self._task.cancel()
        if self._beside is not None and self._beside is not current:
            self._beside.cancel()

    def stop(self) -> None:
        """Handle nothing more after the event in hand."""
        self._stopped = True
        self._waiting = _NOTHING
        self._waiting_bytes = 0
        if self._taken is not None:
            _wake(self._taken)

    @property
    def busy(self) -> bool:
        """An event is at hand or waits."""
        return self._event is not None

    async def settled(self, timeout_seconds: float) -> None:
        """Handle nothing after the event at hand, and wait for that, at most so long."""
        self.stop()
        await self._until_idle(timeout_seconds)

    async def finish(self, timeout_seconds: float | None) -> None:
        """Wait until what was read is handled; after the timeout, give up on it."""
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


class _AtWork:
    """The frames that are being handled on one event loop; what takes long is read beside."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._since: dict[ReceiveLoop, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, frames: ReceiveLoop, since: float) -> None:
        self._since[frames] = since
        if self._timer is None:
            self._timer = self._loop.call_at(since + BESIDE_SECONDS, self._look)

    def discard(self, frames: ReceiveLoop) -> None:
        self._since.pop(frames, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for frames, since in list(self._since.items()):
            if now < since + BESIDE_SECONDS:
                self._timer = self._loop.call_at(since + BESIDE_SECONDS, self._look)
                return
            del self._since[frames]
            try:
                frames.read_beside()
            except Exception:
                logger.exception("reading on beside a handler failed")


_at_work: dict[asyncio.AbstractEventLoop, _AtWork] = {}


def _at_work_on(loop: asyncio.AbstractEventLoop) -> _AtWork:
    forget_closed(_at_work)
    return _at_work.setdefault(loop, _AtWork(loop))
