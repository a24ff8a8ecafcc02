"""One client of the protocol: its frames are read here, and answered or passed to handlers.

Pings are answered while the frames are read, ahead of the handlers. All other frames are handled
one after the other, as the frames of clients without the protocol are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from ..errors import NotAllowed, RequestError
from .entries import Admission, entries_of, names_of
from .frames import (
    MESSAGE,
    PING,
    PING_FRAME,
    PONG,
    READY_FRAME,
    RENEW,
    SUBSCRIBE,
    UNSUBSCRIBE,
    ClientFrame,
    error_frame,
    hello_frame,
    ok_frame,
    pong_frame,
    read_frame,
)
from .negotiation import VERSION
from .owner import SessionOwner
from .presence import lists_ahead
from .problems import (
    FORBIDDEN,
    INTERNAL,
    LIMIT,
    TOO_MANY_REQUESTS,
    UNKNOWN_FRAME,
    BrokenFrame,
    InvalidFrame,
    Problem,
)
from .requests import answer_message, problem_of
from .subscriptions import Subscriptions
from .timers import timers_on

__all__ = ["CLIENT_FRAME", "MAX_OPEN", "PING_SECONDS", "Session"]

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]

CLIENT_FRAME = "django_sockets.client_frame"
"""The type of the events with the frames that handlers take."""
PING_SECONDS = 25
MAX_OPEN = 8
"""The most frames with an id that may be unanswered."""
FRAMES_IN_A_ROW = 16
"""The most frames that are answered while reading before other tasks of the loop may run."""


class Session:
    """The protocol on one connection. It belongs to the event loop of the connection.

    Args:
        owner: the connection.
        receive: the ASGI callable of the server.
    """

    __slots__ = (
        "_in_a_row",
        "_next_ping",
        "_open",
        "_owner",
        "_ready",
        "_receive",
        "_second",
        "_stopped",
        "_timers",
        "subscriptions",
    )

    def __init__(self, owner: SessionOwner, receive: Receive) -> None:
        self._owner = owner
        self._receive = receive
        self._open: set[int] = set()
        self._in_a_row = 0
        self._ready = False
        self._stopped = False
        self._timers = timers_on(owner.home)
        self._second: int | None = None
        self._next_ping = math.inf
        self.subscriptions = Subscriptions(owner)

    # The beginning and the end

    @property
    def ping_seconds(self) -> int:
        """The longest time between two pings."""
        idle_seconds = self._owner.idle_timeout_seconds
        if idle_seconds is None:
            return PING_SECONDS
        return max(1, int(min(PING_SECONDS, idle_seconds / 2)))

    def hello(self) -> bytes:
        """The first frame."""
        owner = self._owner
        return hello_frame(
            VERSION,
            owner.session_name,
            ping_seconds=self.ping_seconds,
            pong=owner.idle_timeout_seconds is not None,
            message_bytes=owner.max_message_bytes,
            requests=MAX_OPEN,
            subscriptions=owner.max_subscriptions,
        )

    def begin(self) -> None:
        """Begin to send pings: the handshake is accepted."""
        # The clients that reconnect after a restart do not all get their pings in one second.
        spread = 0.5 + (id(self) // 64 % 64) / 128
        self._next_ping = self._owner.home.time() + self.ping_seconds * spread
        self._set_timer()

    def ready(self) -> None:
        """Tell the client that `connect` has returned. Later calls have no effect."""
        if not self._ready and not self._stopped:
            self._ready = True
            self._owner.control(READY_FRAME)

    async def send_broadcast(self, channel: str, data: Any) -> None:
        """Send data as a broadcast. The hook for broadcasts calls it."""
        await self._owner.send_broadcast(channel, data)

    def end(self) -> None:
        """The connection ends."""
        self._stopped = True
        if self._second is not None:
            self._timers.discard(self, self._second)

    # The timer

    def _set_timer(self) -> None:
        end = self.subscriptions.next_end
        when = min(self._next_ping, end if end == math.inf else math.ceil(end))
        if self._second is not None:
            self._timers.discard(self, self._second)
        self._second = None if self._stopped else self._timers.add(self, when)

    def wake(self, now: float) -> None:
        """See `Alarm`."""
        self._second = None
        if now >= math.floor(self._next_ping):
            self._next_ping = now + self.ping_seconds
            self._owner.ping(PING_FRAME)
        self.subscriptions.expire(now)
        self._set_timer()

    # Reading

    async def receive(self) -> Event:
        """The next event for the receive loop of the connection, in place of the ASGI callable."""
        while True:
            event = await self._receive()
            if event["type"] != "websocket.receive" or self._is_too_large(event):
                return event
            frame = None
            if not self._stopped:
                if self._owner.heard():
                    frame = await self._take(event)
                else:
                    self._stopped = True
            if frame is not None:
                self._in_a_row = 0
                return {**event, "type": CLIENT_FRAME, "frame": frame}
            self._in_a_row += 1
            if self._in_a_row == FRAMES_IN_A_ROW:
                self._in_a_row = 0
                await asyncio.sleep(0)

    def _is_too_large(self, event: Event) -> bool:
        text: str = event.get("text") or ""
        most = self._owner.max_message_bytes
        if len(text) * 4 <= most:
            return False
        return len(text) > most or len(text.encode(errors="surrogatepass")) > most

    async def _take(self, event: Event) -> ClientFrame | None:
        """Read a frame, and answer it if that needs no handler."""
        text = event.get("text")
        try:
            if text is None:
                raise BrokenFrame
            frame = read_frame(text)
        except BrokenFrame:
            self._stopped = True
            await self._answer(Problem("invalid_frame", "It is no JSON object in a text frame."))
            self._owner.broken()
            return None
        except InvalidFrame as exc:
            if exc.request_id in self._open:
                exc.request_id = None
            await self._answer(exc.problem, exc.request_id)
            return None
        if frame.kind == PING:
            self._owner.pong(pong_frame(frame.number))
            return None
        if frame.kind == PONG:
            return None
        request_id = frame.request_id
        if request_id is None:
            return frame if frame.kind == MESSAGE else None
        if request_id in self._open:
            text = f"The id {request_id} is unanswered."
            await self._answer(Problem("repeated_id", text))
        elif len(self._open) >= MAX_OPEN:
            await self._answer(TOO_MANY_REQUESTS, request_id)
        else:
            self._open.add(request_id)
            return frame
        return None

    async def _answer(self, problem: Problem, request_id: int | None = None) -> None:
        await self._owner.send(error_frame(problem, request_id))

    # Handling

    async def handle(self, frame: ClientFrame) -> None:
        """Handle a frame. It raises no errors of the application."""
        request_id = frame.request_id
        try:
            if frame.kind == MESSAGE:
                answer = await answer_message(self._owner, request_id, frame.body)
                if answer is not None:
                    await self._owner.send(answer)
            elif request_id is not None:
                await self._manage(frame, request_id)
        except InvalidFrame as exc:
            await self._answer(exc.problem, request_id)
        finally:
            if request_id is not None:
                self._open.discard(request_id)

    async def _manage(self, frame: ClientFrame, request_id: int) -> None:
        if frame.kind == SUBSCRIBE:
            await self._subscribe(frame, request_id)
        elif frame.kind == UNSUBSCRIBE:
            await self.subscriptions.unsubscribe(names_of(frame.body, request_id))
            await self._owner.send(ok_frame(request_id, {}))
        elif frame.kind == RENEW:
            entries = entries_of(frame.body, ("channel", "token"), request_id)
            if not all(entry.get("channel") and entry.get("token") for entry in entries):
                raise InvalidFrame("renew needs the channel and the token of each.", request_id)
            if len(entries) > self._owner.max_subscriptions:
                await self._answer(LIMIT, request_id)
                return
            answers = await self.subscriptions.renew(entries, self._admission())
            await self._owner.send(ok_frame(request_id, {"channels": answers}))
            self._set_timer()
        else:
            await self._answer(UNKNOWN_FRAME, request_id)

    async def _subscribe(self, frame: ClientFrame, request_id: int) -> None:
        entries = entries_of(frame.body, ("channel", "token"), request_id)
        if len(entries) > self._owner.max_subscriptions:
            # Checked before `may_subscribe` is called, which may make a query for each channel.
            await self._answer(LIMIT, request_id)
            return
        try:
            answers, arrival = await self.subscriptions.subscribe(entries, self._admission())
            try:
                for part in lists_ahead(answers):
                    await self._owner.send(part)
                await self._owner.send(ok_frame(request_id, {"channels": answers}))
                await arrival.release()
            except BaseException:
                arrival.cancel()
                raise
        finally:
            self.subscriptions.settle()
            self._set_timer()

    def _admission(self) -> Admission:
        return Admission(self._owner.identity, self._may_subscribe, self._owner.is_revoked)

    async def _may_subscribe(self, channel: str, presence: bool) -> Problem | None:
        try:
            return None if await self._owner.may_subscribe(channel, presence) else FORBIDDEN
        except NotAllowed:
            return FORBIDDEN
        except RequestError as exc:
            return problem_of(exc)
        except Exception as exc:
            await self._owner.subscribing_failed(exc)
            return INTERNAL
