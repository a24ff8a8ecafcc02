"""One stream of server-sent events: a subscriber of the hub that makes the bytes of a response.

The format is that of the WHATWG standard for HTML, section 9.2. The data of an event is a frame of
the protocol `django-sockets.v1`, see docs/server-sent-events.md.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping

from ...conf import Config
from ...connection.close_codes import RESTART, TRY_AGAIN, reconnection
from ...connection.tasks import spawn
from ...delivery.events import HISTORY, EventQueue, Gap, Presence
from ...delivery.flow_control import Backlog
from ...delivery.message import Delivery
from ...errors import BrokerError, ThreadError
from ...history import Recovery
from ...hub.control import control_of
from ...hub.hub import Hub
from ...log import LogThrottle
from ...middleware.watch import Watched, watching
from ...protocol.frames import READY_FRAME, bye_frame, gap_frame, unsubscribed_frame
from ...runtime.shared_hubs import shared_hub
from ...runtime.shutdown import chain_sigterm
from ...url import BrokerOptions
from .event_ids import event_id

__all__ = ["EventStream", "StreamRequest"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

QUEUE_MESSAGES = 256
QUEUE_BYTES = 1024 * 1024
"""The most that waits for a client that does not read; the same as the outbox of a websocket."""
CHUNK_BYTES = 64 * 1024
"""Events that are ready are sent together, up to this size."""
START_SECONDS = 10.0
"""The longest time between the end of the view and the first event. Middleware runs in between."""
KEEPALIVE = b":\n\n"
"""A comment. Clients ignore it."""


@dataclasses.dataclass(frozen=True)
class StreamRequest:
    """The channels of one client, and where to begin.

    Attributes:
        config: the broker.
        channels: 1 to `MAX_CHANNELS` names, without repetitions.
        since: channel -> position after which the stream begins.
        resync: channels that the client had before, and whose position is not known. They begin
            with a gap.
        replay: the number of last messages for channels in neither of the two.
        tags: names and values by which `close_sockets` finds the stream.
        watched: the session that must stay valid; or None.
        prepare: awaited before the first event is sent; or None.
        expires: channel -> seconds until the right to it ends.
        keepalive_seconds: the longest time without a byte.
        retry_seconds: the mean time after which a browser connects again.
    """

    config: Config
    channels: tuple[str, ...]
    since: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resync: tuple[str, ...] = ()
    replay: int = 0
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: Watched | None = None
    prepare: Callable[[], Awaitable[None]] | None = None
    expires: Mapping[str, float] = dataclasses.field(default_factory=dict)
    keepalive_seconds: float = 15.0
    retry_seconds: float = 3.0


class EventStream:
    """The body of one response, as an async iterator of bytes.

    `begin` subscribes. All subscriptions have ended after the iteration, after `aclose`, or soon
    after `close`. If the iteration does not begin within `START_SECONDS`, because a middleware has
    dropped the response, the stream ends by itself.
    """

    takes_frames = False
    wrapped_send = None

    def __init__(self, request: StreamRequest) -> None:
        self._request = request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hub: Hub | None = None
        self._queue: EventQueue | None = None
        self._positions: dict[str, str | None] = {}
        self._broken: dict[str, str | None] = {}
        self._first = b""
        self._last = b""
        self._unstarted: asyncio.TimerHandle | None = None
        self._expires_at = float("inf")
        self._patience: asyncio.TimerHandle | None = None
        self._left = contextlib.ExitStack()
        self._closed = False

    # The iteration

    async def begin(self) -> None:
        """Subscribe. Call it once, before the response begins: a browser then calls `onopen`."""
        self._loop = loop = asyncio.get_running_loop()
        try:
            self._first = await self._begin()
        except BaseException:
            await self.aclose()
            raise
        if not self._closed:
            self._unstarted = loop.call_later(START_SECONDS, self._close_soon)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            if self._unstarted is not None:
                self._unstarted.cancel()
                self._unstarted = None
                if self._request.prepare is not None:
                    await self._request.prepare()
            chunk, self._first = self._first, b""
            chunk = chunk or (b"" if self._closed else await self._next())
            if not chunk:
                raise StopAsyncIteration
        except BaseException:
            await self.aclose()
            raise
        return chunk

    async def _begin(self) -> bytes:
        """Subscribe, and return the first events."""
        request = self._request
        loop = asyncio.get_running_loop()
        chain_sigterm(loop)
        self._hub = hub = shared_hub(request.config)
        if hub.connections.draining:
            return await self._later(RESTART)
        self._queue = queue = EventQueue(QUEUE_MESSAGES, QUEUE_BYTES, hub.congestion, hub.count_gap)
        hub.connections.add(self, is_stream=True)
        self._left.callback(hub.connections.discard, self)
        try:
            if request.watched is not None:
                self._left.enter_context(watching(request.watched))
            if request.tags:
                self._left.callback(control_of(hub).discard, self)
                await control_of(hub).add(self, request.tags)
            recoveries = await hub.add(
                queue, request.channels, since=request.since, replay=request.replay
            )
        except (BrokerError, ThreadError) as exc:
            text = "server-sent events: a stream could not begin: %s"
            _throttle.log(
                logging.WARNING,
                f"events {request.config.url}",
                text,
                exc,
                extra={"broker": request.config.url, "reason": exc},
            )
            return await self._later(TRY_AGAIN)
        if request.expires:
            self._expires_at = loop.time() + min(request.expires.values())
        self._place(recoveries)
        return self._head()

    def _place(self, recoveries: Mapping[str, Recovery]) -> None:
        """Find the positions at the beginning. Messages from the history follow behind them."""
        for name, recovery in recoveries.items():
            since = self._request.since.get(name)
            if since is None:
                self._positions[name] = None if recovery.count else recovery.position
            else:
                self._positions[name] = since
                if not recovery.recovered:
                    self._broken[name] = recovery.position

    def _head(self) -> bytes:
        resync = self._request.resync
        # The gap comes before the new positions: a client that gets only a part asks once more.
        gap = _event(gap_frame(resync, HISTORY)) if resync else b""
        return _retry(self._request.retry_seconds) + gap + self._with_id(READY_FRAME)

    async def _later(self, code: int) -> bytes:
        """Ask the client to connect again. A browser does not, after an HTTP status of 503."""
        await self.aclose()
        return _bye(code)

    async def _next(self) -> bytes:
        """The next events or a comment; nothing at the end."""
        queue, loop = self._queue, self._loop
        if queue is None or loop is None:
            return b""
        if not queue.ready:
            expires_in = max(0.0, self._expires_at - loop.time())
            await queue.wait(min(self._request.keepalive_seconds, expires_in))
        if loop.time() >= self._expires_at:
            self._expire()
        if not queue.ready and not queue.closed:
            return KEEPALIVE
        events: list[bytes] = []
        size = 0
        while queue.ready and size < CHUNK_BYTES:
            event = await queue.next()
            if event is not None and not isinstance(event, Presence):
                events.append(self._event_of(event))
                size += len(events[-1])
        if not queue.ready and self._last:
            events.append(self._last)
            self._last = b""
        return b"".join(events)

    # Events

    def _event_of(self, event: Delivery | Gap) -> bytes:
        if isinstance(event, Gap):
            frame = gap_frame(event.channels, event.reason)
            found = [name for name in event.channels if name in self._broken]
            if event.reason != HISTORY or not found:
                return _event(frame)
            for name in found:
                self._positions[name] = self._broken.pop(name)
            return self._with_id(frame)
        position = event.position
        frame = event.client_payload() if event.is_text else _binary_frame(event, position)
        if position is None:
            return _event(frame)
        self._positions[event.channel] = position
        return self._with_id(frame)

    def _with_id(self, frame: bytes) -> bytes:
        return b"id: %b\n%b" % (event_id(self._positions).encode(), _event(frame))

    @property
    def unsent(self) -> Backlog | None:
        """See `hub.connections.Connection`."""
        return None if self._queue is None else self._queue.unsent

    @property
    def class_name(self) -> str:
        """See `hub.connections.Connection`."""
        return "events_view"

    @property
    def user(self) -> str | None:
        """See `hub.connections.Connection`."""
        return self._request.tags.get("user")

    # The end

    def _end(self, last: bytes) -> None:
        """Let the stream end behind the queued events, and then `last`."""
        if self._queue is not None and not self._last:
            self._last = last
            self._queue.close()

    def _expire(self) -> None:
        self._expires_at = float("inf")
        names = self._request.expires
        self._end(b"".join(_event(unsubscribed_frame(name, "expired", True)) for name in names))

    def on_drain(self, patience_seconds: float) -> None:
        """See `hub.connections.Connection`."""
        self._end(_bye(RESTART))
        # A client that does not read is not waited for.
        if self._loop is not None and self._patience is None and not self._closed:
            self._patience = self._loop.call_later(patience_seconds, self._close_soon)

    def on_close_order(self, code: int) -> None:
        """See `hub.control.Member`. The browser connects again, and the view decides."""
        self._end(_bye(code))

    def on_revoke_order(self, channels: Collection[str]) -> None:
        """See `hub.control.Member`. The other channels end, too, and the view decides again."""
        gone = [name for name in self._request.channels if name in channels]
        if gone:
            frames = [_event(unsubscribed_frame(name, "revoked", False)) for name in gone]
            self._end(b"".join(frames))

    def close(self) -> None:
        """End the stream, on any thread. Django calls it when the response has ended."""
        if self._loop is not None and not self._closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_soon)

    def _close_soon(self) -> None:
        if not self._closed:
            spawn(self.aclose()).set_name("django_sockets event stream")

    async def aclose(self) -> None:
        """End all subscriptions. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._patience, self._unstarted):
            if timer is not None:
                timer.cancel()
        hub, queue = self._hub, self._queue
        if hub is None or queue is None:
            return
        queue.close()
        queue.drain()
        with self._left:
            try:
                await hub.remove(queue)
            except BrokerError as exc:
                logger.debug(
                    "server-sent events: unsubscribing failed: %s", exc, extra={"reason": exc}
                )


def _event(frame: bytes) -> bytes:
    # JSON has line breaks only as white space. Each line of an event has its own field.
    if b"\n" in frame or b"\r" in frame:
        frame = b"\ndata: ".join(frame.splitlines())
    return b"data: %b\n\n" % frame


def _binary_frame(delivery: Delivery, position: str | None) -> bytes:
    """A broadcast of bytes: server-sent events are text."""
    data = base64.b64encode(delivery.payload).decode()
    frame: dict[str, object] = {"channel": delivery.channel, "data": data, "base64": True}
    if position is not None:
        frame["position"] = position
    return json.dumps(frame).encode()


def _retry(seconds: float) -> bytes:
    """The field `retry`, with a jitter: otherwise all browsers come back at the same moment."""
    return b"retry: %d\n\n" % round(1000 * random.uniform(0.5 * seconds, 1.5 * seconds))  # noqa: S311


def _bye(code: int) -> bytes:
    """The last event: when to connect again. A browser always does, and the view decides."""
    _, (least, most) = reconnection(code)
    milliseconds = round(1000 * random.uniform(max(0.1, least), most))  # noqa: S311
    frame = bye_frame(code, True, (least, most))
    return b"retry: %d\n%b" % (milliseconds, _event(frame))
