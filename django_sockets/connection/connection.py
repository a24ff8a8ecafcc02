"""Connection: the life of one websocket, from the handshake to its end.

Applications subclass `BaseSocketServer`. Each of its objects has one `Connection` and passes its
calls on to it. `Connection.socket` is the application's object, with its options and hooks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, MutableMapping
from functools import partial
from typing import Any, TypeAlias

from ..codec import encode, json_of
from ..conf import load_config
from ..delivery.client_payload import own_payload
from ..errors import CallError, EncodeError
from ..history import Recovery
from ..hub.connections import Unsent
from ..hub.control import Control, control_of, tag_texts
from ..hub.hub import Hub
from ..log import LogThrottle
from ..observer import ConnectionClosed, seam
from ..protocol.session import Session
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
from .outbox import Item, Outbox
from .receive_loop import ReceiveLoop
from .refusals import bye_payload
from .server_frames import server_frames, wrapper_of
from .socket_class import Socket, check_options, socket_class
from .tasks import spawn
from .tracking import end_tracking

__all__ = ["Connection"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

ORIGIN_BYTES = 8
_first_origin = threading.Lock()


class Connection(HookCalls):
    """One websocket. Its methods run on its home loop, except the calls of the application.

    Args:
        socket: the application's object.
        base: the library's class, whose methods are the defaults of the hooks.
        asgi_receive, asgi_send: the ASGI callables; None makes that side unavailable.

    Attributes:
        is_alive: the connection has not ended.
        serving: the listeners were started.
        closing: a close frame is on its way.
        hub: the hub that it publishes and subscribes with; None until it is needed.
        rate: the rate limit; None before the first frame.
        session: the client speaks the protocol `django-sockets.v1`; None for other clients.
        subprotocol: the name of the protocol for such a client.
        tracked: the channels on which it is present; None for most connections.
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
        "rate",
        "receive_loop",
        "serving",
        "session",
        "subprotocol",
        "tracked",
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
        self.rate: TokenBucket | None = None
        self.delivery = ClientDelivery(self, socket)
        self.outbox = Outbox(self.delivery, asgi_send)
        self.receive_loop = ReceiveLoop(self)
        self.session: Session | None = None
        self.subprotocol: str | None = None
        self.tracked: set[str] | None = None
        self.serving = False
        self.closing = False
        self.is_alive = True

    def open(self) -> None:
        """Read the options of the socket. Called once, after `configure` has set them.

        Raises:
            ConfigurationError: an option has a wrong value.
        """
        socket = self.socket
        if self.definition.own_options:  # Otherwise they were checked with the class.
            check_options(socket)
        # Not a local variable, because error reports show those.
        self.config = load_config(
            socket.config
            if socket.config is not None or socket.hosts is None
            else {"hosts": socket.hosts}
        )
        frames = server_frames(socket.scope, self.asgi_send, socket.frames)
        self.outbox.use_frames(frames, socket.compress)
        self.home = running_loop() or background_loop()

    def shared_hub(self) -> Hub:
        """The hub of the home loop."""
        if self.hub is None:
            self.hub = shared_hub(self.config, self.home)
        return self.hub

    # Serving

    def start(self) -> None:
        """Serve the connection in the background. Returns at once."""
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
        """`serve` as a coroutine, so that it begins on the home loop, too."""
        await self.serve()

    def serve(self) -> Coroutine[Any, Any, None]:
        """Serve the connection until it has ended. Await the result."""
        if self.serving:
            raise CallError("the listeners of this socket were started already")
        self.serving = True
        # At once, because a subscription may be made before the coroutine begins.
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
            self.warn_once("receive side", "%s has no receive callable, so it receives nothing")

    # Frames from the client

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Called by the receive loop with each event except the final disconnect."""
        if event["type"] == "websocket.connect":
            return handle_connect(self)
        return handle_frame(self, event)

    def too_big(self) -> None:
        """Called by the receive loop: a frame is larger than `max_message_bytes`."""
        spawn(self.close(TOO_BIG))
        self.note("closed_too_big", "closed with 1009: a frame of the client is too large", TOO_BIG)

    # Events to the client

    def send(self, data: Any, raw: bool, compress: bool = True) -> Awaitable[None]:
        """See `BaseSocketServer.send`. Await the result."""
        if raw:
            payload, is_text = _as_bytes(data)
            if is_text and self.session is not None:
                payload = json_of(payload)
        elif self.socket.ws_encoder is not None:
            payload, is_text = _as_bytes(self.socket.ws_encoder(data))
            is_text = is_text and not self.socket.ws_encoder_is_bytes
        else:
            payload, is_text = encode(data)
        if self.session is not None:
            payload = own_payload(payload, is_text)
        item = self.outbox.message(payload, is_text, compress)
        return self.awaited(partial(self.send_item, item, len(payload)))

    async def send_item(self, item: Item, size_bytes: int = 0) -> None:
        """Send an item behind those that wait; nothing once the connection ends."""
        if not self.is_alive or self.closing:
            return
        if not self.outbox.held:
            await self.outbox.run(item)
        # `authorize` cannot wait for the accept that waits for it.
        elif not self.outbox.put(item, size_bytes):
            raise CallError("too much is sent before the handshake is accepted (outbox_messages)")

    async def close(self, code: int) -> None:
        """Send a close frame behind the waiting messages, and end the connection."""
        if self.closing or not self.is_alive:
            return
        self.closing = True
        self.delivery.discard_held()
        self.receive_loop.stop()
        try:
            bye = None
            if self.session is not None:
                bye = self.outbox.message(bye_payload(code), is_text=True)
            await self.outbox.close(code, bye)
        finally:
            self.end(code)

    # The end

    def end(self, code: int) -> None:
        """Note that the connection has ended. Only the first code is kept."""
        if self.serving:
            self.receive_loop.end(code)

    def over(self, code: int) -> asyncio.Task[None]:
        """Called by the receive loop when it stops reading."""
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
        """Unsubscribe, wait until the frames that were read are handled, and call `disconnect`."""
        self.is_alive = False
        if (observer := seam.observer) is not None:
            observer.connection_closed(ConnectionClosed(socket=type(self.socket), code=code))
        self.delivery.discard_held()
        if self.session is not None:
            self.session.end()
        self.leave_tags()
        if self.tracked:
            end_tracking(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self.delivery.end()
        self.outbox.end()
        # The exit of the interpreter must not wait for a handler that never returns.
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

    @property
    def takes_frames(self) -> bool:
        return self.outbox.write is not None

    @property
    def wrapped_send(self) -> str | None:
        return None if self.takes_frames else wrapper_of(self.socket.scope, self.asgi_send)

    @property
    def unsent(self) -> Unsent | None:
        return self.delivery.unsent

    @property
    def class_name(self) -> str:
        """See `hub.connections.Connection`."""
        return type(self.socket).__name__

    @property
    def user(self) -> str | None:
        """See `hub.connections.Connection`."""
        user = self._tags and self._tags.get("user")
        return str(user) if user else None

    def on_drain(self, patience_seconds: float) -> None:
        """Called by `hub.connections` when the server shuts down."""
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
        """Whether it has a tag."""
        return bool(self._tags)

    def copy_of_tags(self) -> dict[str, str] | None:
        """The present tags; None if there is none, as for most sockets."""
        return dict(self._tags) if self._tags else None

    async def join_tags(self) -> None:
        """Register the present tags, so that orders to close find the socket."""
        if self.is_alive and (self._tags or self._control is not None):
            self._control = control = control_of(self.shared_hub())
            await control.add(self, self.tags)

    def leave_tags(self) -> None:
        """Remove the registration of `join_tags`."""
        if self._control is not None:
            self._control.discard(self)

    def on_close_order(self, code: int) -> None:
        """Called by the control when sockets with a tag of this one are closed."""
        spawn(self.close(code))

    def on_revoke_order(self, channels: Collection[str]) -> None:
        """Called by the control when the right to channels is taken back from a tag of this one."""
        if self.session is not None:
            self.session.subscriptions.revoke(channels)

    def is_revoked(self, channel: str, issued_at: float) -> bool:
        """Whether the right to a channel that was given at a time was taken back."""
        control = self._control
        if control is None:
            return False
        return control.revocations.cover(tag_texts(self.tags), channel, issued_at)

    # Channels

    def add(
        self,
        names: list[str],
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> Coroutine[Any, Any, dict[str, Recovery]]:
        """Subscribe, unless the connection has ended. Await the result."""
        if not self.is_alive:
            return _nothing(names, presence)
        return self.delivery.add(names, since, replay, presence)

    async def remove(self, names: list[str]) -> None:
        """Unsubscribe."""
        await self.delivery.remove(names)

    def publish(
        self,
        names: list[str],
        payload: bytes,
        is_text: bool,
        origin: bytes | None,
        compress: bool,
    ) -> Coroutine[Any, Any, None]:
        """Publish with the hub of the connection, once it has one."""
        if self.hub is None:
            return super().publish(names, payload, is_text, origin, compress)
        return self.hub.publish(names, payload, is_text=is_text, origin=origin, compress=compress)

    def own_id(self) -> bytes:
        """The id of this socket, for broadcasts that must not reach it."""
        outbox = self.outbox
        if outbox.origin is None:
            with _first_origin:  # Another thread may have come first.
                if outbox.origin is None:
                    outbox.origin = os.urandom(ORIGIN_BYTES)
        return outbox.origin

    # Counters

    def note(self, counter: str, what: str, code: int | None = None) -> None:
        """Count the reason why the connection ends, and log it at most once per interval.

        Args:
            code: the close code.
        """
        self.count(counter)
        name = type(self.socket).__name__
        extra = {"socket": name, "counter": counter, "code": code}
        # The message is also the `template` of the record, by which it is found.
        _throttle.log(logging.INFO, f"{name} {counter}", f"%s: {what}", name, extra=extra)

    def count(self, counter: str, count: int = 1) -> None:
        """Add to a counter of the hub."""
        self.shared_hub().count(counter, count)


async def _nothing(names: list[str], presence: object) -> dict[str, Recovery]:
    """The subscription of a connection that has ended."""
    return dict.fromkeys(names, Recovery(presence={} if presence else None))


def _as_bytes(data: Any) -> tuple[bytes, bool]:
    """The payload of a frame, and whether it is a text frame.

    Raises:
        EncodeError: the data is neither text nor bytes.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), False
    if not isinstance(data, str):
        raise EncodeError(f"a frame is made of str or bytes, not of {type(data).__name__}")
    try:
        return data.encode(), True
    except UnicodeEncodeError as exc:
        raise EncodeError(f"a text frame has to be valid UTF-8: {exc}") from exc
