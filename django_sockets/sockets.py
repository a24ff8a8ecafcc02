"""BaseSocketServer: the class that applications subclass. Options first, then hooks, then calls.

The folder `connection` does the work. This class passes calls on to it.
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
from .connection.tracking import track, untrack
from .delivery.events import Members
from .hub.control import check_close_code
from .runtime.channel_api import (
    NOT_GIVEN,
    Channels,
    Since,
    channel_list,
    uncompressed,
    watching,
)

__all__ = ["BaseSocketServer"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BaseSocketServer:
    """One websocket connection. Subclass it and override what you need.

    `connect`, `receive`, `disconnect`, `authorize`, `error`, `decode_error`, `gap`, `presence` and
    `may_subscribe` may be `def` or `async def`. A `def` runs on a worker thread, where it may block
    and use Django's ORM. An `async def` runs on the event loop. The handlers of one socket run one
    at a time, in the order of the frames. They do not delay other sockets. `async def` handlers run
    in the server's task for the connection. Context variables that one of them sets are therefore
    visible in the next one, and the server can cancel a handler, for example at its shutdown.

    Plain calls such as `send` and `broadcast` may be made from any thread. On a thread without a
    running event loop, they wait for the result and raise its error. On a thread that runs an event
    loop, they are scheduled in order, and a failure is logged. The methods that begin with `async_`
    are the same calls for coroutines.

    A client that offers the subprotocol `django-sockets.v1` gets the same messages in frames that
    also carry replies, gaps and positions; see docs/client-protocol.md. A class with a `ws_encoder`
    or `ws_decoder` does not speak this protocol.

    A subclass may use any other names for its methods and attributes: this class uses only the
    public names below and `_connection`.

    Args:
        scope: the ASGI scope.
        receive, send: the ASGI callables; None makes that side unavailable.
        config: a URL, a dict or a list of hosts; None for Django's `DJANGO_SOCKETS_CONFIG`, the
            environment's `DJANGO_SOCKETS_URL`, or memory://.
        hosts: a list of `{"address": URL}`, instead of `config`.
        ws_encoder: data -> the `str` or `bytes` to send; None for JSON.
        ws_encoder_is_bytes: send the result of the encoder as a binary frame.
        ws_decoder: the `str` or `bytes` of a received frame -> data; None for JSON.
        subprotocol: the subprotocol to accept.

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
    """The type of the argument of `receive`: a msgspec Struct, a union of tagged Structs, a
    dataclass or a TypedDict; None for plain data. See `django_sockets.typed`, too."""
    answer_invalid: bool = False
    """Answer an invalid frame with an error message, instead of closing the socket."""

    allowed_origins: Sequence[str] = ()
    """Origins of other sites that may connect, such as "https://app.example.com"; "*" for all."""
    allowed_hosts: Sequence[str] = ()
    """Names under which browsers may reach this server, such as "chat.example.com", or
    ".example.com" for a domain with its subdomains; "*" for all. If it is empty, IP addresses,
    localhost and names without a dot are allowed. With Django, `ALLOWED_HOSTS` is used instead."""
    overflow: str = CLOSE
    """The policy for a client that reads too slowly: "close" closes the socket with 1013.
    "drop_oldest" and "drop_newest" drop broadcasts and call `gap(reason="overflow")` there."""
    outbox_messages: int = 256
    """The most messages that wait for a client that reads slowly."""
    outbox_bytes: int = 1024 * 1024
    """The most bytes that wait for such a client. An empty outbox takes one message of any size."""
    max_message_bytes: int = 1024 * 1024
    """A larger frame from the client closes the socket with 1009."""
    rate_limit_per_second: float | None = None
    """The most frames of the client per second, on average; more close the socket with 1008."""
    rate_limit_burst: int | None = None
    """The most frames at once; None for the number of one second."""
    handshake_timeout_seconds: float | None = 10.0
    """Time limit of `authorize` and the accept; afterwards the handshake is refused with 503."""
    idle_timeout_seconds: float | None = None
    """If the client sends no frame for this time, the socket is closed with 4408. Clients of the
    protocol `django-sockets.v1` answer pings, so only those that are gone are closed."""

    frames: str = "auto"
    """Whether broadcasts go to a server with prepared frames (docs/server-extension.md) as frames.
    "auto": unless middleware wraps the server's `send`. "always": past such middleware, too.
    "never": each message is an ASGI event."""
    compress: bool = True
    """Frames of 512 bytes and more are compressed for clients that can read it, once for all of
    them. Other servers decide themselves."""

    max_subscriptions: int = 1000
    """The most channels of one socket."""

    hold_broadcasts: bool = True
    """Broadcasts wait, in order, until `connect` has returned. The client therefore gets the
    messages of `connect` first, and then every change. False: they are also sent while it runs."""
    hold_seconds: float | None = None
    """The longest time that broadcasts wait for `connect`; None for the setting `hold_seconds`, by
    default 5. A `connect` that takes longer, or that waits for a broadcast, calls `release`."""

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
        """Name -> text, such as {"user": "7"}. `django_sockets.closing` finds the socket by them.

        Middleware sets tags. The application may add more until `connect` has returned.
        """
        return self._connection.tags

    @tags.setter
    def tags(self, tags: dict[str, str]) -> None:
        self._connection.tags = tags

    # Hooks, which an application overrides

    def configure(self) -> None:
        """Set `self.hosts`, `self.config`, `self.ws_encoder` and so on; called on construction."""

    def authorize(self) -> Any:
        """Decide whether the handshake is accepted.

        Raise `Reject(status)` or return False to refuse it. Any other exception refuses it, too.
        For a client of the protocol `django-sockets.v1`, a handshake refused with 400 to 499 is
        accepted and closed with 4000 plus the status, because a browser cannot see the status.
        """

    def connect(self) -> Any:
        """The connection was accepted: subscribe to channels here, then send the present state.

        From the first subscription on, broadcasts wait until `connect` has returned. They therefore
        reach the client after the state. See `release`.
        """

    def receive(self, data: Any, /) -> Any:
        """The client sent `data`.

        The result, and that of a method with `@on`, is the reply to a request of the protocol
        `django-sockets.v1`. For other messages it is ignored. Raise `RequestError` to refuse.
        """
        self._connection.warn_once("receive", "%s received a frame, but has no receive method")

    if TYPE_CHECKING:
        # An override may have other parameters, as in `disconnect(self)`.
        def disconnect(self, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def disconnect(self, code: int = NO_CODE) -> Any:
            """The connection has ended. Called once. An override may omit the parameter `code`."""

    def error(self, exc: Exception, /) -> Any:
        """A handler raised `exc`, which was logged. The default closes the socket with 1011.

        For `NotAllowed` it closes with 1008, because the client made the mistake and should not
        reconnect at once. Override the method to keep the socket open. After a request of the
        protocol `django-sockets.v1` the default does nothing: the request gets an error as reply.
        """
        return self._connection.default_error(exc)

    def decode_error(self, exc: Exception, /) -> Any:
        """A frame could not be decoded, or does not match its declared type.

        The default closes the socket with 1007. With `answer_invalid` it sends an answer instead:
        `{"error": {"type": "invalid_message", "message": "Expected `int`, ..."}}`, with the
        `"id"` of the message if it has one.
        """
        return self._connection.default_decode_error(exc)

    def gap(self, channels: Sequence[str], reason: str, /) -> Any:
        """Broadcasts on these channels may be missing at this point: send the state again.

        Broadcasts that arrive while `gap` runs are handled after it. Clients of the protocol
        `django-sockets.v1` are told of a gap before this method is called.
        """

    if TYPE_CHECKING:
        # An override may have a parameter more.
        def presence(self, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def presence(self, channel: str, joined: Members, left: Members, /) -> Any:
            """Members of a channel have joined or left: see `subscribe` with `presence=True`.

            Each join and each leave comes once, in the order of the broadcasts of the channel.
            After a gap, one call has the difference to the members that were known before.

            An override may have one parameter more, `updated`. It gets the members that stay and
            whose infos have changed. Without it, the method is not called for such a change alone.

            Args:
                joined: key of the member -> [info of each of its connections].
                left: the same, with the last infos.
            """

    def may_subscribe(self, channel: str, /) -> Any:
        """Whether the client may subscribe to a channel. The default refuses every request.

        It is called by `subscribe_for_client`, and for the channels that a client of the protocol
        `django-sockets.v1` names. Signed channels are admitted without it.

        An override may have one parameter more, `presence=False`. It is True if the client asks for
        the members of the channel, too. Without the parameter, a client that may subscribe may also
        see the members.
        """
        return False

    async def async_handle_received_broadcast(self, channel: str, data: Any, /) -> None:
        """A broadcast arrived. The default sends it to the client.

        An override may have one parameter more, `*, position=None`. It gets the place behind the
        broadcast in the history of its channel, for a later `since`; None if it was not kept.

        All sockets of the process share `data`: do not change it.
        """
        session = self._connection.session
        if session is None:
            await self.async_send(data)
        else:
            await session.send_broadcast(channel, data)

    # Sending to the client

    def send(self, data: Any, raw: bool = False, *, compress: bool = True) -> None:
        """Send data to this client.

        Args:
            data: anything with a JSON form, or bytes for a binary frame.
            raw: send `data`, a `str` or `bytes`, unchanged. For a client of the protocol
                `django-sockets.v1`, a `str` that is not JSON is encoded as JSON.
            compress: False: the frame is not compressed; see the option `compress`.

        Raises:
            EncodeError: the data has no JSON form.
        """
        self._connection.calls.plain(lambda: self.async_send(data, raw, **uncompressed(compress)))

    async def async_send(self, data: Any, raw: bool = False, *, compress: bool = True) -> None:
        """See `send`. Returns when the server has accepted the frame, or the socket has ended."""
        await self._connection.send(data, raw, compress)

    def close(self, code: int = NORMAL) -> None:
        """Close the connection. `disconnect` runs after the present handler has returned.

        Args:
            code: 1000, a number from 3000 to 4999, or another code that the standard allows to
                send: 1001 to 1003, 1007 to 1014.

        Raises:
            ConfigurationError: the code is not one of these. It is also a ValueError.
        """
        check_close_code(code, standard=True)
        self._connection.calls.plain(lambda: self.async_close(code))

    async def async_close(self, code: int = NORMAL) -> None:
        """See `close`. Returns when the close frame was sent."""
        check_close_code(code, standard=True)
        await self._connection.awaited(lambda: self._connection.close(code))

    # Broadcasting

    def broadcast(
        self, channel: Channels, data: Any, *, exclude_self: bool = False, compress: bool = True
    ) -> None:
        """Send data to all subscribers of one channel, or of several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.
            exclude_self: this socket does not get the data; all other subscribers do.
            compress: False: the frames are not compressed. Use it for messages that contain both a
                secret and text of somebody else.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: the data did not reach the server, or it is unknown whether it did.
            CallError: the event loop did not finish the call in time.
        """
        self._connection.calls.plain(
            lambda: self.async_broadcast(
                channel, data, exclude_self=exclude_self, **uncompressed(compress)
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
                channels, data, exclude_self=exclude_self, **uncompressed(compress)
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
            channel_list(channels), data, exclude_self=exclude_self, **uncompressed(compress)
        )

    # Subscribing

    def subscribe(
        self,
        channel: Channels,
        *,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Any:
        """Subscribe to one channel, or to several. Returns when the server has acknowledged them.

        With `since` or `replay`, the socket first gets messages from the history, and then the live
        messages; none is missing or repeated in between. If messages behind a position are missing
        in the history, `gap(channels, "history")` is called before the first message. In `connect`
        it is not called: the result tells.

        Args:
            since: the position of the last message that the client has; for several channels, a
                dict of channel -> position. None stands for no position, as for a new client.
            replay: the number of latest messages to send, on channels without a position.
            presence: also watch the members of the channels. `Recovery.presence` has the present
                members; `presence` is called with each later change. The socket itself is not a
                member, unless it calls `track`.

        Returns:
            None without `since`, `replay` and `presence`. With one of them, the `Recovery` of the
            channel, or, for a list of channels, a dict of channel -> `Recovery`.

        Raises:
            ChannelError, SubscribeError, CallError: this call has subscribed to none of them.
            PositionError: `since` is not a position; ConfigurationError: it is one position for
                several channels, or the broker has no presence; ValueError: `replay` is negative.
        """
        calls = self._connection.calls
        if since is NOT_GIVEN and replay is None and not presence:
            return calls.plain(lambda: self.async_subscribe(channel))
        return calls.result(
            lambda: self.async_subscribe(channel, since=since, replay=replay, **watching(presence))
        )

    async def async_subscribe(
        self,
        channel: Channels,
        *,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Any:
        """See `subscribe`."""
        recoveries = await self._connection.subscribe(channel, since, replay, presence)
        return None if since is NOT_GIVEN and replay is None and not presence else recoveries

    def unsubscribe(self, channel: Channels) -> None:
        """Unsubscribe from one channel, or from several. Nothing more arrives on them."""
        self._connection.calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        await self._connection.unsubscribe(channel)

    def subscribe_for_client(
        self,
        channels: Channels,
        *,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Any:
        """Subscribe to channels that the client asks for, if `may_subscribe` allows all of them.

        Args:
            channels: one channel or a list, as it came from the client. It may be anything.
            since: positions, as for `subscribe`; as they came from the client.
            replay, presence: see `subscribe`.

        Returns:
            See `subscribe`.

        Raises:
            NotAllowed: one of the channels is refused or not valid, there are too many, or `since`
                is no position. Nothing was subscribed to. If it is not caught, `error` closes the
                socket with 1008.
            SubscribeError, CallError: this call has subscribed to none of them.
        """
        return subscribe_for_client(self._connection, channels, since, replay, presence)

    async def async_subscribe_for_client(
        self,
        channels: Channels,
        *,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Any:
        """See `subscribe_for_client`."""
        return await async_subscribe_for_client(self._connection, channels, since, replay, presence)

    # Presence

    def track(self, channel: str | int, info: Any = None, key: str | int | None = None) -> None:
        """Be present on a channel, until `untrack` or the end of the connection.

        The socket need not be subscribed to the channel. Several connections with one key, on any
        process, are one member, such as two tabs of one user. A second call for a channel replaces
        info and key. When the connection ends, the member stays for `presence_grace_seconds`, so
        that nobody sees a client leave that reconnects.

        Args:
            info: anything with a JSON form, at most `max_presence_bytes` as JSON.
            key: names the member, at most 255 bytes. Default: None, the tag "user" of the socket,
                or without it an id of the connection, which is the `session` in the `hello` of the
                protocol `django-sockets.v1`.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge, PresenceError, CallError: nothing changed.
            ConfigurationError: the key is not valid, or the broker has no presence.
        """
        self._connection.calls.plain(lambda: self.async_track(channel, info, key))

    async def async_track(
        self, channel: str | int, info: Any = None, key: str | int | None = None
    ) -> None:
        """See `track`."""
        await track(self._connection, channel, info, key)

    def untrack(self, channel: str | int) -> None:
        """Stop being present on a channel, at once. At other times the call has no effect.

        Raises:
            ChannelError, CallError: the name is not valid, or the event loop did not finish the
                call in time.
        """
        self._connection.calls.plain(lambda: self.async_untrack(channel))

    async def async_untrack(self, channel: str | int) -> None:
        """See `untrack`."""
        await untrack(self._connection, channel)

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """Wait for the next broadcast, on a socket whose listeners were not started.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed, or the listeners handle broadcasts themselves.
        """
        return await self._connection.delivery.receive()

    def release(self) -> None:
        """Send the broadcasts that wait for `connect`, after the messages that were sent before.

        Call it in a `connect` that does not return, that takes longer than `hold_seconds`, or that
        waits for a broadcast, after it has sent the present state. Later broadcasts do not wait.
        At other times the call has no effect.

        Raises:
            CallError: the event loop did not finish the call in time.
        """
        self._connection.calls.plain(self._connection.delivery.release)

    async def async_release(self) -> None:
        """See `release`. Returns when the waiting broadcasts were passed on."""
        await self._connection.awaited(self._connection.delivery.release)

    # Running without a server

    def start_listeners(self) -> None:
        """Serve the connection in the background. Returns at once.

        It is for scripts and tests: frames and broadcasts are handled without a connect event.
        """
        self._connection.start()

    async def async_start_listeners(self) -> None:
        """Serve the connection until it has ended. See `start_listeners`."""
        await self._connection.serve_anywhere()


def _connect(cls: type[BaseSocketServer], scope: Scope, receive: Receive, send: Send) -> Connection:
    return cls(scope, receive, send)._connection


BaseSocketServer.as_asgi = AsgiApp.descriptor(_connect)
