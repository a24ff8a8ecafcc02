"""Connection: the life of one websocket, from the handshake to its end.

`BaseSocketServer` is what an application subclasses; it holds one `Connection` and passes its calls
on. The application's object is `Connection.socket`: its options and its hooks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias

from ..codec import encode, send_event
from ..conf import load_config
from ..errors import CallError, EncodeError
from ..hub.control import Control, control_of
from ..hub.hub import Hub
from ..log import LogThrottle
from ..runtime import (
    EXIT_SECONDS,
    BackgroundLoop,
    at_exit,
    background_loop,
    not_at_exit,
    shared_hub,
    worker_pool,
)
from ..runtime.hooks import takes_code
from ..runtime.sync_calls import running_loop
from ..url import BrokerOptions
from .admission import handle_connect
from .client_delivery import ClientDelivery
from .close_codes import (
    GOING_AWAY,
    RESTART,
    TOO_BIG,
)
from .frame_handler import IdleTimer, handle_frame
from .hook_calls import HookCalls
from .limits import TokenBucket
from .outbox import Outbox
from .receive_loop import ReceiveLoop
from .socket_class import Socket, check_options, socket_class
from .tasks import spawn

__all__ = ["Connection"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

ORIGIN_BYTES = 8
_first_origin = threading.Lock()


class Connection(HookCalls):
    """One websocket. Its methods belong to its home loop, apart from the calls of the application.

    Args:
        socket: the application's object.
        base: the library's class, whose methods are the defaults of the hooks.
        asgi_receive, asgi_send: the ASGI callables; None makes that side unavailable.

    Attributes:
        is_alive: the connection has not ended.
        serving: the listeners were started.
        closing: a close frame is on its way.
        hub: the hub it publishes and subscribes with; None until something needs it.
        origin: the id that leaves this socket out of a broadcast; None until it is used.
        rate: the rate limit, once a frame has come.
    """

    __slots__ = (
        "_control",
        "_finished",
        "_idle_timer",
        "_tags",
        "asgi_receive",
        "asgi_send",
        "closing",
        "delivery",
        "hub",
        "is_alive",
        "origin",
        "rate",
        "receive_loop",
        "serving",
    )

    def __init__(
        self,
        socket: Socket,
        base: type[Socket],
        asgi_receive: Receive | None,
        asgi_send: Send | None,
    ) -> None:
        super().__init__()
        self.socket = socket
        self.definition = socket_class(type(socket), base)
        self.asgi_receive = asgi_receive
        self.asgi_send = asgi_send
        tags = socket.scope.get("django_sockets.tags")
        self._tags: dict[str, str] | None = dict(tags) if tags else None
        self._control: Control | None = None
        self._finished: asyncio.Future[None] | None = None
        self._idle_timer: IdleTimer | None = None
        self.hub: Hub | None = None
        self.origin: bytes | None = None
        self.rate: TokenBucket | None = None
        self.delivery = ClientDelivery(self, socket)
        self.outbox = Outbox(self.delivery, asgi_send)
        self.receive_loop = ReceiveLoop(self)
        self.serving = False
        self.closing = False
        self.is_alive = True

    def open(self) -> None:
        """Read the options of the socket; called once, when `configure` has set them.

        Raises:
            ConfigurationError: one of them has a wrong value.
        """
        socket = self.socket
        if self.definition.own_options:  # Otherwise they were checked with the class.
            check_options(socket)
        # Without a local variable, which an error report would show.
        self.config = load_config(
            socket.config
            if socket.config is not None or socket.hosts is None
            else {"hosts": socket.hosts}
        )
        self.home = running_loop() or background_loop()

    def shared_hub(self) -> Hub:
        """The hub of the home loop."""
        if self.hub is None:
            self.hub = shared_hub(self.config, self.home)
        return self.hub

    # Serving

    def start(self) -> None:
        """Serve in the background; returns at once."""
        if running_loop() is self.home:
            spawn(self.serve())
        else:
            self.home.call_soon_threadsafe(lambda: spawn(self.serve()))

    async def serve_anywhere(self) -> None:
        """`serve`, awaited on any event loop."""
        if running_loop() is self.home:
            await self.serve()
        else:
            future = asyncio.run_coroutine_threadsafe(self._serve_here(), self.home)
            await asyncio.wrap_future(future)

    async def _serve_here(self) -> None:
        """`serve`, all of it on the loop that runs this."""
        await self.serve()

    def serve(self) -> Coroutine[Any, Any, None]:
        """Serve the connection until it has ended; await what it returns."""
        if self.serving:
            raise CallError("the listeners of this socket were started already")
        self.serving = True
        # Now, and not when the coroutine begins: a subscription may be made before that.
        self.delivery.start()
        return self.receive_loop.serve()

    def begin(self) -> None:
        """Called by the receive loop before anything is read."""
        if type(self.home) is BackgroundLoop:
            worker_pool(self.config.settings).keep_spare()
            self._finished = self.home.create_future()
            at_exit(self._at_exit)
        if self._tags and self._control is None:
            spawn(self.join_tags())
        if self.socket.idle_timeout_seconds is not None:
            self._idle_timer = IdleTimer(self)
        if self.asgi_receive is None:
            self.warn_once("receive side", "%s has no receive callable: it hears nothing")

    # Frames from the client

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Called by the receive loop with each event except the final disconnect."""
        if event["type"] == "websocket.connect":
            return handle_connect(self)
        return handle_frame(self, event)

    def too_big(self) -> None:
        """Called by the receive loop: a frame is larger than `max_message_bytes`."""
        spawn(self.close(TOO_BIG))
        self.note("closed_too_big", "closed with 1009: a frame of the client is too large")

    # Events to the client

    def send(self, data: Any, raw: bool) -> Awaitable[None]:
        """See `BaseSocketServer.send`; await what it returns."""
        socket = self.socket
        if raw:
            if not isinstance(data, (str, bytes, bytearray, memoryview)):
                raise EncodeError(f"raw=True sends str or bytes, not {type(data).__name__}")
            event = send_event(data)
        elif socket.ws_encoder is not None:
            event = send_event(socket.ws_encoder(data), socket.ws_encoder_is_bytes)
        else:
            payload, is_text = encode(data)
            event = send_event(payload.decode() if is_text else payload)
        return self.awaited(lambda: self.send_event(event))

    async def send_event(self, event: Event) -> None:
        """Send an event behind those that wait; nothing once the connection ends."""
        if not self.is_alive or self.closing:
            return
        if not self.outbox.held:
            await self.outbox.run(event)
        # `authorize` cannot wait for the accept that waits for it.
        elif not self.outbox.put(
            event, _size_bytes(event.get("text") or event.get("bytes") or b"")
        ):
            raise CallError("too much is sent before the handshake is accepted (outbox_messages)")

    async def close(self, code: int) -> None:
        """Send a close frame behind what waits for the client, and end."""
        if self.closing or not self.is_alive:
            return
        self.closing = True
        self.delivery.discard_held()
        self.receive_loop.stop()
        try:
            await self.outbox.close(code)
        finally:
            self.end(code)

    # The end

    def end(self, code: int) -> None:
        """Note that the connection has ended; the first code counts."""
        if self.serving:
            self.receive_loop.end(code)

    def over(self, code: int) -> asyncio.Task[None]:
        """Called by the receive loop, which reads nothing more."""
        return spawn(self._finish(code))

    async def _finish(self, code: int) -> None:
        try:
            await self._conclude(code)
        finally:
            if self.hub is not None:
                self.hub.connections.discard(self)
            if self._finished is not None:
                self._finished.set_result(None)
            not_at_exit(self._at_exit)

    async def _conclude(self, code: int) -> None:
        """Unsubscribe first; then let the frames in hand be handled; then call `disconnect`."""
        self.is_alive = False
        self.delivery.discard_held()
        self.leave_tags()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self.delivery.end()
        self.outbox.end()
        # Only the exit of the interpreter cannot wait for a handler that never returns.
        await self.receive_loop.finish(EXIT_SECONDS / 2 if self.outbox.muted else None)
        if not self.outbox.muted:
            await self.finish_thread_call()
        try:
            if takes_code(type(self.socket).disconnect):
                await self.call(self.socket.disconnect, code)
            else:
                await self.call(self.socket.disconnect)
        except Exception as exc:
            await self.failed(exc)

    async def _at_exit(self) -> None:
        self.outbox.mute()
        self.end(GOING_AWAY)
        if self._finished is not None:
            await asyncio.wait([self._finished])

    def on_drain(self, patience_seconds: float) -> None:
        """Called by the hub's connections: the server shuts down."""
        spawn(self._drain(patience_seconds))

    async def _drain(self, patience_seconds: float) -> None:
        await self.receive_loop.settled(patience_seconds)
        if not self.closing and self.is_alive:
            self.count("closed_drain")
            await self.close(RESTART)

    # Tags

    @property
    def tags(self) -> dict[str, str]:
        """See `BaseSocketServer.tags`."""
        if self._tags is None:  # Most sockets have none.
            self._tags = {}
        return self._tags

    @tags.setter
    def tags(self, tags: dict[str, str]) -> None:
        self._tags = tags

    @property
    def has_tags(self) -> bool:
        """It has a tag."""
        return bool(self._tags)

    def copy_of_tags(self) -> dict[str, str] | None:
        """The present tags; None if there is none, as for most sockets."""
        return dict(self._tags) if self._tags else None

    async def join_tags(self) -> None:
        """Be found by the tags it has now; without tags this costs nothing."""
        if self.is_alive and (self._tags or self._control is not None):
            self._control = control = control_of(self.shared_hub())
            await control.add(self, self.tags)

    def leave_tags(self) -> None:
        """Be found by no tag any more."""
        if self._control is not None:
            self._control.discard(self)

    def on_close_order(self, code: int) -> None:
        """Called by the control: somebody closes the sockets with a tag of this one."""
        spawn(self.close(code))

    # Channels

    def add(self, names: list[str]) -> Coroutine[Any, Any, None]:
        """Subscribe, unless the connection has ended; await what it returns."""
        return self.delivery.add(names) if self.is_alive else _nothing()

    async def remove(self, names: list[str]) -> None:
        """Unsubscribe."""
        await self.delivery.remove(names)

    def own_id(self) -> bytes:
        """The id that leaves this socket out of a broadcast."""
        if self.origin is None:
            with _first_origin:  # Another thread may have come first.
                if self.origin is None:
                    self.origin = os.urandom(ORIGIN_BYTES)
        return self.origin

    # Counters

    def note(self, counter: str, what: str) -> None:
        """Count the reason for which a connection ends; the log has it once per interval."""
        self.count(counter)
        name = type(self.socket).__name__
        _throttle.log(logging.INFO, f"{name} {counter}", "%s: %s", name, what)

    def count(self, counter: str, count: int = 1) -> None:
        """Add to a counter of the hub."""
        self.shared_hub().count(counter, count)


async def _nothing() -> None:
    """In place of a subscription."""


def _size_bytes(frame: str | bytes) -> int:
    if isinstance(frame, str) and not frame.isascii():
        return len(frame.encode(errors="surrogatepass"))
    return len(frame)
