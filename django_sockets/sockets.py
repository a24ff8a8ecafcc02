"""BaseSocketServer: what an application subclasses. Options first, then hooks, then calls.

The machinery is in the folder `connection`; this class only passes calls on to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .conf import Source
from .connection.asgi import AsgiApp
from .connection.client_subscriptions import async_subscribe_for_client, subscribe_for_client
from .connection.close_codes import NO_CODE, NORMAL
from .connection.connection import Connection
from .connection.overflow import CLOSE
from .connection.socket_class import check_class
from .hub.control import check_close_code
from .runtime.channel_api import Channels, channel_list

__all__ = ["BaseSocketServer"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BaseSocketServer:
    """One websocket connection. Subclass it and override what you need.

    `connect`, `receive`, `disconnect`, `authorize`, `error`, `decode_error`, `gap` and
    `may_subscribe` may be `def` or `async def`. A `def` runs on a worker thread, where blocking and
    Django's ORM are fine; an `async def` runs on the event loop. Handlers of one socket never run
    side by side, and see frames in the order received; other sockets are never held up. An
    `async def` one runs in the task that the server has for the connection: the next one finds the
    context variables that it has set, and a server that loses patience cancels it.

    Plain calls such as `send` and `broadcast` may be made from any thread. On a thread without a
    running event loop they wait for the result and raise its error. On one that runs a loop they
    are scheduled, in order, and log a failure. The `async_` ones are the same calls for coroutines.

    A subclass may name its own methods and attributes as it likes: the public names below and
    `_connection` are the only ones in use.

    Args:
        scope: the ASGI scope.
        receive, send: the ASGI callables; None makes that side unavailable.
        config: a URL, a dict or a list of hosts; None for Django's `DJANGO_SOCKETS_CONFIG`, the
            environment's `DJANGO_SOCKETS_URL`, or memory://.
        hosts: a list of `{"address": URL}`, in place of `config`.
        ws_encoder: makes what is sent, `str` or `bytes`, from data; None for JSON.
        ws_encoder_is_bytes: what it makes goes out as a binary frame.
        ws_decoder: makes data from a received frame, `str` or `bytes`; None for JSON.
        subprotocol: the one to accept.

    Each of these may also be a class attribute or be set in `configure`. A function that takes the
    data alone, such as `ws_decoder = json.loads`, is called as a function; one that takes `self`
    and the data is called as a method.
    """

    # Options

    config: Source | None = None
    hosts: Sequence[Any] | None = None
    ws_encoder: Callable[..., str | bytes] | None = None
    ws_encoder_is_bytes: bool = False
    ws_decoder: Callable[..., Any] | None = None
    subprotocol: str | None = None

    message_type: Any = None
    """What `receive` gets: a msgspec Struct, a union of tagged ones, a dataclass or a TypedDict;
    None for plain data. See `django_sockets.typed`, also for methods that take one type each."""
    answer_invalid: bool = False
    """Answer a frame that does not fit with what is wrong with it, in place of closing."""

    allowed_origins: Sequence[str] = ()
    """Origins of other sites that may connect, such as "https://app.example.com"; "*" for all."""
    allowed_hosts: Sequence[str] = ()
    """Names under which browsers may reach this server, such as "chat.example.com", or
    ".example.com" with its subdomains; "*" for all. Without one: addresses, localhost and names
    without a dot. Where Django is configured, `ALLOWED_HOSTS` counts and this does not."""
    overflow: str = CLOSE
    """What happens when too much waits for a client that reads slowly: "close" it with 1013, or
    "drop_oldest" or "drop_newest" broadcasts and call `gap(reason="overflow")` at the hole."""
    outbox_messages: int = 256
    """Messages that may wait for a client that reads slowly."""
    outbox_bytes: int = 1024 * 1024
    """Bytes that may; an empty outbox takes one message of any size."""
    max_message_bytes: int = 1024 * 1024
    """A larger frame from the client closes the socket with 1009."""
    rate_limit_per_second: float | None = None
    """Frames of the client on average; more close the socket with 1008."""
    rate_limit_burst: int | None = None
    """Frames at once; None for those of a second."""
    handshake_timeout_seconds: float | None = 10.0
    """`authorize` and the accept must end within it; else the handshake is refused with 503."""
    idle_timeout_seconds: float | None = None
    """A client that sends no frame for so long is closed with 4408."""

    frames: str = "auto"
    """Whether broadcasts go to a server with prepared frames (docs/server-extension.md) as frames.
    "auto": unless middleware wraps the server's `send`. "always": past such middleware, too.
    "never": each message is an ASGI event."""
    compress: bool = True
    """Frames of 512 bytes and more are compressed for clients that can read it, once for all of
    them. Other servers decide themselves."""

    max_subscriptions: int = 1000
    """Channels of one socket."""

    hold_broadcasts: bool = True
    """Broadcasts wait, in order, until `connect` has returned: the client gets what `connect` sends
    first, and every change after it. False: they are sent at once, also while it runs."""
    hold_seconds: float | None = None
    """They wait for no longer than this; None for the setting `hold_seconds`, 5. A `connect` that
    takes longer, or waits for a broadcast itself, calls `release`."""

    as_asgi: ClassVar[Any]
    """The class as an ASGI application: `path("ws/", MySocket.as_asgi)`."""

    scope: Scope
    """The ASGI scope."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_class(cls)

    def __init__(
        self,
        scope: Scope,
        receive: Receive | None = None,
        send: Send | None = None,
        config: Source | None = None,
        *,
        hosts: Sequence[Any] | None = None,
        ws_encoder: Callable[[Any], str | bytes] | None = None,
        ws_encoder_is_bytes: bool | None = None,
        ws_decoder: Callable[[Any], Any] | None = None,
        subprotocol: str | None = None,
    ) -> None:
        self.scope = scope
        if config is not None:
            self.config = config
        if hosts is not None:
            self.hosts = hosts
        if ws_encoder is not None:
            self.ws_encoder = ws_encoder
        if ws_encoder_is_bytes is not None:
            self.ws_encoder_is_bytes = ws_encoder_is_bytes
        if ws_decoder is not None:
            self.ws_decoder = ws_decoder
        if subprotocol is not None:
            self.subprotocol = subprotocol
        self._connection = Connection(self, BaseSocketServer, receive, send)
        self.configure()
        self._connection.open()

    @property
    def is_alive(self) -> bool:
        """The connection has not ended."""
        return self._connection.is_alive

    @property
    def tags(self) -> dict[str, str]:
        """Name -> text, such as {"user": "7"}: what `django_sockets.closing` finds the socket by.

        Middleware gives them; more may be added until `connect` has returned.
        """
        return self._connection.tags

    @tags.setter
    def tags(self, tags: dict[str, str]) -> None:
        self._connection.tags = tags

    # Hooks: to be overridden

    def configure(self) -> None:
        """Set `self.hosts`, `self.config`, `self.ws_encoder` and so on; called on construction."""

    def authorize(self) -> Any:
        """Decide on the handshake, before it is accepted.

        Raise `Reject(status)` or return False to refuse it; any exception refuses it too.
        """

    def connect(self) -> Any:
        """The connection was accepted: subscribe to channels here, then send the present state.

        From the first subscription on, broadcasts wait until `connect` has returned, so that they
        reach the client after the state, whatever time passes in between. See `release`.
        """

    def receive(self, data: Any, /) -> Any:
        """The client sent `data`."""
        self._connection.warn_once("receive", "%s got a frame and has no receive method")

    if TYPE_CHECKING:
        # An override of this may have any parameters: `disconnect(self)` is one, too.
        def disconnect(self, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def disconnect(self, code: int = NO_CODE) -> Any:
            """The connection has ended; runs exactly once. May also be written without `code`."""

    def error(self, exc: Exception, /) -> Any:
        """A handler raised `exc`, which was logged; closes with 1011. Override it to go on.

        `NotAllowed` closes with 1008: it is the client's fault, and the client should not come
        back at once.
        """
        return self._connection.default_error(exc)

    def decode_error(self, exc: Exception, /) -> Any:
        """A frame could not be decoded, or does not fit what the class declares.

        Closes with 1007; with `answer_invalid` it sends what is wrong instead, as
        `{"error": {"type": "invalid_message", "message": "Expected `int`, ..."}}`, with the
        `"id"` of the message if it has one.
        """
        return self._connection.default_decode_error(exc)

    def gap(self, channels: Sequence[str], reason: str, /) -> Any:
        """Broadcasts on these channels may be missing at this point: send the state again.

        Broadcasts that arrive while it runs follow it.
        """

    def may_subscribe(self, channel: str, /) -> Any:
        """Whether the client may have a channel that it has asked for.

        Without an override, every request is refused.
        """
        return False

    async def async_handle_received_broadcast(self, channel: str, data: Any, /) -> None:
        """A broadcast arrived; sends it to the client.

        `data` is shared by all sockets of the process: do not change it.
        """
        await self.async_send(data)

    # Talking to the client

    def send(self, data: Any, raw: bool = False, *, compress: bool = True) -> None:
        """Send data to this client; with `raw`, a `str` or `bytes` as it is.

        Args:
            compress: False: the frame is not compressed; see the option `compress`.

        Raises:
            EncodeError: the data has no JSON form.
        """
        self._connection.calls.plain(lambda: self.async_send(data, raw, compress=compress))

    async def async_send(self, data: Any, raw: bool = False, *, compress: bool = True) -> None:
        """See `send`; returns when the server has taken it. Does nothing once the socket ended."""
        await self._connection.send(data, raw, compress)

    def close(self, code: int = NORMAL) -> None:
        """Close the connection. `disconnect` runs after the present handler has returned.

        Args:
            code: 1000, a number from 3000 to 4999, or one of the standard's own that can be sent:
                1001 to 1003, 1007 to 1014.

        Raises:
            ConfigurationError: it is none of these; also a ValueError.
        """
        check_close_code(code, standard=True)
        self._connection.calls.plain(lambda: self.async_close(code))

    async def async_close(self, code: int = NORMAL) -> None:
        """See `close`; returns when the close frame was sent."""
        check_close_code(code, standard=True)
        await self._connection.awaited(lambda: self._connection.close(code))

    # Broadcasting

    def broadcast(
        self, channel: Channels, data: Any, *, exclude_self: bool = False, compress: bool = True
    ) -> None:
        """Send data to everybody who is subscribed to a channel, or to several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.
            exclude_self: this socket does not get it; every other one does, wherever it is.
            compress: False: its frames are not compressed. Use it for messages that contain both a
                secret and text of somebody else.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: it did not certainly reach the server.
            CallError: the event loop did not do it in time.
        """
        self._connection.calls.plain(
            lambda: self.async_broadcast(
                channel, data, exclude_self=exclude_self, compress=compress
            )
        )

    async def async_broadcast(
        self, channel: Channels, data: Any, *, exclude_self: bool = False, compress: bool = True
    ) -> None:
        """See `broadcast`."""
        origin = self._connection.own_id() if exclude_self else None
        await self._connection.broadcast(channel, data, origin, compress)

    def broadcast_many(
        self,
        channels: Iterable[str | int],
        data: Any,
        *,
        exclude_self: bool = False,
        compress: bool = True,
    ) -> None:
        """`broadcast` to several channels."""
        self._connection.calls.plain(
            lambda: self.async_broadcast_many(
                channels, data, exclude_self=exclude_self, compress=compress
            )
        )

    async def async_broadcast_many(
        self,
        channels: Iterable[str | int],
        data: Any,
        *,
        exclude_self: bool = False,
        compress: bool = True,
    ) -> None:
        """See `broadcast_many`."""
        await self.async_broadcast(
            channel_list(channels), data, exclude_self=exclude_self, compress=compress
        )

    # Subscribing

    def subscribe(self, channel: Channels) -> None:
        """Receive what is broadcast to a channel, or to several; acknowledged on return.

        Raises:
            ChannelError, SubscribeError, CallError: this call has subscribed none of them.
        """
        self._connection.calls.plain(lambda: self.async_subscribe(channel))

    async def async_subscribe(self, channel: Channels) -> None:
        """See `subscribe`."""
        await self._connection.subscribe(channel)

    def unsubscribe(self, channel: Channels) -> None:
        """Receive nothing more from a channel, or from several."""
        self._connection.calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        await self._connection.unsubscribe(channel)

    def subscribe_for_client(self, channels: Channels) -> None:
        """`subscribe` to what the client asked for, if `may_subscribe` allows all of it.

        Args:
            channels: anything that came from the client; a channel, or a list of them.

        Raises:
            NotAllowed: for one of them, it is no channel, or they are too many; nothing was
                subscribed. Left uncaught it goes to `error`, which closes with 1008.
            SubscribeError, CallError: this call has subscribed none of them.
        """
        subscribe_for_client(self._connection, channels)

    async def async_subscribe_for_client(self, channels: Channels) -> None:
        """See `subscribe_for_client`."""
        await async_subscribe_for_client(self._connection, channels)

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """The next broadcast, for a socket whose listeners were not started.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed, or the listeners handle broadcasts themselves.
        """
        return await self._connection.delivery.receive()

    def release(self) -> None:
        """Let the broadcasts through that wait for `connect`; they follow what was sent before.

        For a `connect` that does not return, that takes longer than `hold_seconds`, or that waits
        for a broadcast: call it after the present state was sent. Later broadcasts do not wait any
        more. Otherwise nothing waits, and it does nothing.

        Raises:
            CallError: the event loop did not do it in time.
        """
        self._connection.calls.plain(self._connection.delivery.release)

    async def async_release(self) -> None:
        """See `release`; returns when what has waited was handed on."""
        await self._connection.awaited(self._connection.delivery.release)

    # Running without a server

    def start_listeners(self) -> None:
        """Serve the connection in the background; returns at once.

        For scripts and tests: neither receiving nor delivery waits for a connect event.
        """
        self._connection.start()

    async def async_start_listeners(self) -> None:
        """Serve the connection until it has ended; see `start_listeners`."""
        await self._connection.serve_anywhere()


def _connect(cls: type[BaseSocketServer], scope: Scope, receive: Receive, send: Send) -> Connection:
    return cls(scope, receive, send)._connection


BaseSocketServer.as_asgi = AsgiApp.descriptor(_connect)
