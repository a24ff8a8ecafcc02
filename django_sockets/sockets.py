"""BaseSocketServer: the lifecycle of one websocket connection."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .codec import encode, send_event
from .conf import Source, check_hosts, load_config
from .connection.asgi import AsgiApp
from .connection.client_subscriptions import ClientSubscriptions
from .connection.handshake import FORBIDDEN, deny, origin_refusal, refusal, report_error
from .connection.limits import TokenBucket, check_limits, check_subprotocol
from .connection.origin import check_allowed_hosts, check_origins
from .connection.outbox import Outbox
from .connection.overflow import CLOSE, Inbox, Overflow, check_policy
from .connection.receive_loop import NO_CODE, ReceiveLoop
from .decoding import LARGE_CHARACTERS
from .delivery.eager import Late, until_late
from .delivery.events import OVERFLOW, EventQueue, Gap
from .delivery.flow_control import STUCK_SECONDS, Backlog
from .delivery.hold import NOT_YET, Hold
from .delivery.message import Delivery
from .delivery.send_queue import SendQueue
from .errors import BrokerError, CallError, ChannelError, EncodeError, NotAllowed, SubscribeError
from .hub.control import Control, check_close_code, control_of
from .hub.hub import Hub
from .log import LogThrottle, shown, whereabouts
from .runtime.async_hygiene import tidied
from .runtime.background import (
    EXIT_SECONDS,
    BackgroundLoop,
    at_exit,
    background_loop,
    not_at_exit,
    shared_hub,
    worker_pool,
)
from .runtime.hooks import call_in_thread, is_coroutine_function, keep_functions, takes_code
from .runtime.sync_calls import Calls, Operation, running_loop
from .typed import Dispatch, invalid_message, message_id, taken_types
from .url import BrokerOptions

__all__ = ["BaseSocketServer"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)
"""For what is logged with a traceback: of each line that raises, enough to go by."""
_first_call = threading.Lock()
"""For what the first plain call of a socket makes: it may come from any thread."""

T = TypeVar("T")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

NORMAL, GOING_AWAY, BAD_DATA, POLICY, TOO_BIG, INTERNAL_ERROR, RESTART, TRY_AGAIN = (
    1000, 1001, 1007, 1008, 1009, 1011, 1012, 1013,
)  # fmt: skip
"""Close codes of RFC 6455, section 7.4.1, and of the IANA registry."""
IDLE = 4408
"""Close code: nothing came for too long. From the range for applications, after HTTP's 408."""
UNAVAILABLE = 503
"""HTTP status (RFC 9110, section 15.6.4)."""


class BaseSocketServer(ClientSubscriptions):
    """One websocket connection. Subclass it and override what you need.

    `connect`, `receive`, `disconnect`, `authorize`, `error`, `decode_error` and `gap` may be `def`
    or `async def`. A `def` runs on a worker thread, where blocking and Django's ORM are fine; an
    `async def` runs on the event loop. Handlers of one socket never run side by side, and see
    frames in the order received; other sockets are never held up. An `async def` one runs in the
    task that the server has for the connection: the next one finds the context variables that it
    has set, and a server that loses patience cancels it.

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

    hold_broadcasts: bool = True
    """Broadcasts wait, in order, until `connect` has returned: the client gets what `connect` sends
    first, and every change after it. False: they are sent at once, also while it runs."""
    hold_seconds: float | None = None
    """They wait for no longer than this; None for the setting `hold_seconds`, 5. A `connect` that
    takes longer, or waits for a broadcast itself, calls `release`."""

    as_asgi: ClassVar[Any]

    # What most sockets never have. An instance that sets more than 30 attributes, those of the
    # application's class among them, gets a dict of its own (CPython 3.11 to 3.13).
    _warned: tuple[str, ...] = ()
    _overflow: Overflow | None = None
    _bucket: TokenBucket | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    _finished: asyncio.Future[None] | None = None
    _in_thread: asyncio.Task[Any] | None = None
    _slow = False
    _invalid_id: str | int | float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_functions(cls, ("ws_encoder", "ws_decoder"))
        taken_types(cls)  # Raises for two methods that take the same type.
        check_policy(cls.overflow)
        check_limits(cls)
        _check_lists(cls, cls)

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
        self._tags: dict[str, str] | None = None
        if "django_sockets.tags" in scope:
            self._tags = dict(scope["django_sockets.tags"] or ())
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
        if _sets_its_own(type(self)):  # The class was checked when it was made.
            self.configure()
            check_limits(self)
            check_policy(self.overflow)
            _check_lists(type(self), self)
        # Without a local variable, which an error report would show.
        self._config = load_config(
            self.config if self.config is not None or self.hosts is None else {"hosts": self.hosts}
        )
        self._asgi_receive = receive
        self._asgi_send = send
        self._home = running_loop() or background_loop()
        self._home_calls: Calls | None = None
        self._dispatch = _dispatch_of(type(self))
        self._hub: Hub | None = None
        self._control: Control | None = None
        self._queue: EventQueue | Hold | None = None
        self._outbox = Outbox(self, send)
        self._inbox: Inbox | None = None
        self._receive_loop = ReceiveLoop(self)
        self._serving = False
        self._closing = False
        self.is_alive = True

    @property
    def tags(self) -> dict[str, str]:
        """Name -> text, such as {"user": "7"}: what `django_sockets.closing` finds the socket by.

        Middleware gives them; more may be added until `connect` has returned.
        """
        if self._tags is None:  # Most sockets have none.
            self._tags = {}
        return self._tags

    @tags.setter
    def tags(self, tags: dict[str, str]) -> None:
        self._tags = tags

    @property
    def _calls(self) -> Calls:
        if self._home_calls is None:
            with _first_call:  # Another thread may have come first.
                if self._home_calls is None:
                    timeout_seconds = self._config.settings.sync_call_timeout_seconds
                    self._home_calls = Calls(self._home, timeout_seconds)
        return self._home_calls

    def _awaited(self, operation: Operation[T]) -> Awaitable[T]:
        if self._home_calls is None and running_loop() is self._home:
            return operation()  # Nothing is scheduled that it would have to wait for.
        return super()._awaited(operation)

    # To be overridden

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
        self._warn_once("receive", "%s got a frame and has no receive method")

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
        if isinstance(exc, NotAllowed):
            return self._from_hook(lambda: self.async_close(POLICY))
        report_error(self.scope, exc)
        return self._from_hook(lambda: self.async_close(INTERNAL_ERROR))

    def decode_error(self, exc: Exception, /) -> Any:
        """A frame could not be decoded, or does not fit what the class declares.

        Closes with 1007; with `answer_invalid` it sends what is wrong instead, as
        `{"error": {"type": "invalid_message", "message": "Expected `int`, ..."}}`, with the
        `"id"` of the message if it has one.
        """
        if not self.answer_invalid:
            return self._from_hook(lambda: self.async_close(BAD_DATA))
        answer = invalid_message(exc, self._invalid_id)
        return self._from_hook(lambda: self.async_send(answer))

    def gap(self, channels: Sequence[str], reason: str, /) -> Any:
        """Broadcasts on these channels may be missing at this point: send the state anew.

        Those that come while it runs follow it.
        """

    async def async_handle_received_broadcast(self, channel: str, data: Any, /) -> None:
        """A broadcast arrived; sends it to the client.

        `data` is shared by all sockets of the process: do not change it.
        """
        await self.async_send(data)

    # Talking to the client

    def send(self, data: Any, raw: bool = False) -> None:
        """Send data to this client; with `raw`, a `str` or `bytes` as it is.

        Raises:
            EncodeError: the data has no JSON form.
        """
        self._calls.plain(lambda: self.async_send(data, raw))

    async def async_send(self, data: Any, raw: bool = False) -> None:
        """See `send`; returns when the server has taken it. Does nothing once the socket ended."""
        event = self._event(data, raw)
        await self._awaited(lambda: self._send_event(event))

    def close(self, code: int = NORMAL) -> None:
        """Close the connection. `disconnect` runs after the present handler has returned.

        Args:
            code: 1000, a number from 3000 to 4999, or one of the standard's own that can be sent:
                1001 to 1003, 1007 to 1014.

        Raises:
            ConfigurationError: it is none of these; also a ValueError.
        """
        check_close_code(code, standard=True)
        self._calls.plain(lambda: self.async_close(code))

    async def async_close(self, code: int = NORMAL) -> None:
        """See `close`; returns when the close frame was sent."""
        check_close_code(code, standard=True)
        await self._awaited(lambda: self._close(code))

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """The next broadcast, for a socket whose listeners were not started.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed, or the listeners handle broadcasts themselves.
        """
        queue = self._queue
        if not isinstance(queue, EventQueue) or self._serving:
            raise CallError(
                "subscribe first; once listeners run, override async_handle_received_broadcast"
            )
        while True:
            event = await self._awaited(queue.next)
            if event is None:
                raise CallError("the socket has ended")
            if not isinstance(event, Gap):
                return event.channel, event.data()
            await self._call(self.gap, event.channels, event.reason)

    def release(self) -> None:
        """Let the broadcasts through that wait for `connect`; they follow what was sent before.

        For a `connect` that does not return, that takes longer than `hold_seconds`, or that waits
        for a broadcast: call it after the present state was sent. Later broadcasts do not wait any
        more. Otherwise nothing waits, and it does nothing.

        Raises:
            CallError: the event loop did not do it in time.
        """
        self._calls.plain(self._release)

    async def async_release(self) -> None:
        """See `release`; returns when what has waited was handed on."""
        await self._awaited(self._release)

    # Running

    def start_listeners(self) -> None:
        """Serve the connection in the background; returns at once.

        For scripts and tests: neither receiving nor delivery waits for a connect event.
        """
        if running_loop() is self._home:
            _spawn(self._serve())
            return
        self._home.call_soon_threadsafe(lambda: _spawn(self._serve()))

    async def async_start_listeners(self) -> None:
        """Serve the connection until it has ended; see `start_listeners`."""
        if running_loop() is self._home:
            await self._serve()
        else:
            future = asyncio.run_coroutine_threadsafe(self._serve_here(), self._home)
            await asyncio.wrap_future(future)

    async def _serve_here(self) -> None:
        """`_serve`, all of it on the loop that runs this."""
        await self._serve()

    async def _admitted(self) -> bool:
        """Begin the handshake of an ASGI server; False if it was refused. Else comes `_serve`."""
        receive, send = self._asgi_receive, self._asgi_send
        if receive is None or send is None:
            raise TypeError("an ASGI application needs receive and send")
        event = await receive()
        if event["type"] != "websocket.connect":
            return False
        self._outbox.hold()
        connections = self._shared_hub().connections
        if connections.draining:
            self._count("refused_draining")
            await deny(self.scope, send, UNAVAILABLE)
            return False
        connections.add(self)
        admitted = False
        try:
            if self._tags or type(self).authorize is not BaseSocketServer.authorize:
                status = await self._in_time(self._admit())
            else:
                status = origin_refusal(self.scope, self.allowed_origins, self.allowed_hosts)
            if self._closing and self._shared_hub().connections.draining:
                status = UNAVAILABLE
            if status is not None or self._closing:
                await deny(self.scope, send, status or FORBIDDEN)
            else:
                self._receive_loop.push(event)
                admitted = True
        finally:
            if not admitted:
                self._leave()
                connections.discard(self)
        return admitted

    async def _admit(self) -> int | None:
        """The HTTP status to refuse with, or None once the socket is found by its tags."""
        status = origin_refusal(self.scope, self.allowed_origins, self.allowed_hosts)
        if status is None:
            status = await refusal(self.scope, lambda: self._call(self.authorize))
        if status is None and not self._closing:
            await self._join()
        return status

    async def _in_time(self, admission: Coroutine[Any, Any, int | None]) -> int | None:
        task = asyncio.ensure_future(admission)
        try:
            await asyncio.wait([task], timeout=self.handshake_timeout_seconds)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        if self._in_thread is not None:
            self._in_thread.cancel()  # If it still waits for a thread, it need not run.
        self._note("handshake_timeouts", "refused a handshake: authorize takes too long")
        return UNAVAILABLE

    def _serve(self) -> Coroutine[Any, Any, None]:
        """Serve the connection until it has ended."""
        if self._serving:
            raise CallError("the listeners of this socket were started already")
        self._serving = True
        # Now, and not when the coroutine begins: a subscription may be made before that.
        self._start_delivery()
        return self._receive_loop.serve()

    def _begin(self) -> None:
        if type(self._home) is BackgroundLoop:
            worker_pool(self._config.settings).keep_spare()
            self._finished = self._home.create_future()
            at_exit(self._at_exit)
        if self._tags and self._control is None:
            _spawn(self._join())
        if self.idle_timeout_seconds is not None:
            self._watch_idle()
        if self._asgi_receive is None:
            self._warn_once("receive side", "%s has no receive callable: it hears nothing")

    def _over(self, code: int) -> asyncio.Task[None]:
        return _spawn(self._finish(code))

    async def _finish(self, code: int) -> None:
        try:
            await self._conclude(code)
        finally:
            if self._hub is not None:
                self._hub.connections.discard(self)
            if self._finished is not None:
                self._finished.set_result(None)
            not_at_exit(self._at_exit)

    async def _conclude(self, code: int) -> None:
        """What must be gone goes first; then the frames in hand are handled, then `disconnect`."""
        self.is_alive = False
        self._discard_held()
        self._leave()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._hub is not None:
            await self._hub.remove(self)
        if self._inbox is not None:
            self._inbox.end()
        self._outbox.end()
        # Only the exit of the interpreter cannot wait for a handler that never returns.
        await self._receive_loop.finish(EXIT_SECONDS / 2 if self._outbox.muted else None)
        if self._in_thread is not None and not self._outbox.muted:
            await self._outlive(self._in_thread)
        try:
            if takes_code(type(self).disconnect):
                await self._call(self.disconnect, code)
            else:
                await self._call(self.disconnect)
        except Exception as exc:
            await self._failed(exc)

    async def _outlive(self, call: asyncio.Task[Any]) -> None:
        """Wait for a thread: who waited for it was cancelled, and it cannot be."""
        await asyncio.wait([call])
        error = call.exception()
        if isinstance(error, Exception):
            await self._failed(error)

    async def _at_exit(self) -> None:
        self._outbox.mute()
        self._end(GOING_AWAY)
        if self._finished is not None:
            await asyncio.wait([self._finished])

    def _end(self, code: int) -> None:
        """Note that the connection has ended; the first code counts."""
        if self._serving:
            self._receive_loop.end(code)

    # Frames from the client

    def _handle(self, event: MutableMapping[str, Any]) -> Coroutine[Any, Any, None]:
        if event["type"] == "websocket.connect":
            return self._handle_connect()
        return self._handle_frame(event)

    async def _handle_connect(self) -> None:
        accept: dict[str, Any] = {"type": "websocket.accept"}
        subprotocol = self._agreed_subprotocol()
        if subprotocol is not None:
            accept["subprotocol"] = subprotocol
        sending = self._outbox.accept if self._outbox.held else self._send_event
        try:
            await until_late(sending(accept), self.handshake_timeout_seconds)
        except Late:
            self._note("handshake_timeouts", "gave a client up that does not take the accept")
            self._end(GOING_AWAY)
            return
        if self._queue is not None:
            self._outbox.seal()  # The hub must ask `on_delivery` until the hold is over.
        known = None if self._tags is None else dict(self._tags)
        try:
            try:
                await self._call(self.connect)
            finally:
                if self._tags != known:
                    await self._join()
        except Exception as exc:
            await self._failed(exc)
        if self._queue is None:
            return
        if self._home_calls is not None and self._home_calls.scheduled:
            _spawn(self._release_after_calls())
        elif not self._release_empty():
            await self._release()

    async def _handle_frame(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] != "websocket.receive":
            text = "ignored an ASGI event of type %s"
            _throttle.log(logging.WARNING, "event", text, shown(event["type"]))
            return
        if self.rate_limit_per_second is not None and not self._may_send():
            self._note("closed_rate_limit", "closed with 1008: the client sends too often")
            await self.async_close(POLICY)
            return
        frame = event.get("text")
        if frame is None:
            frame = event.get("bytes") or b""
        if len(frame) > LARGE_CHARACTERS:
            await asyncio.sleep(0)  # Others have a turn between two frames that take long to read.
        try:
            name, args = self._dispatch.read(frame, self.ws_decoder)
        except Exception as exc:
            self._note_undecoded(exc)
            if self.answer_invalid:
                self._invalid_id = message_id(frame, self.ws_decoder)
            await self._call(self.decode_error, exc)
            return
        await self._call(getattr(self, name), *args)

    def _too_big(self) -> None:
        """Called by the frames: a larger one than `max_message_bytes` has arrived."""
        _spawn(self._close(TOO_BIG))
        self._note("closed_too_big", "closed with 1009: a frame of the client is too large")

    def _may_send(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._bucket is None:
            rate = self.rate_limit_per_second or math.inf
            self._bucket = TokenBucket(rate, self.rate_limit_burst or max(1.0, rate), now)
        return self._bucket.take(now)

    def _watch_idle(self) -> None:
        """Close a client that sends nothing; one that waits for a handler is not idle."""
        if self.idle_timeout_seconds is None or self._closing:
            return
        loop = asyncio.get_running_loop()
        quiet = 0.0 if self._receive_loop.busy else loop.time() - self._receive_loop.heard_at
        if quiet >= self.idle_timeout_seconds:
            _spawn(self._close(IDLE))
            self._note("closed_idle", "closed with 4408: the client sends nothing")
        else:
            self._idle_timer = loop.call_later(self.idle_timeout_seconds - quiet, self._watch_idle)

    def _agreed_subprotocol(self) -> str | None:
        """The class's own; but what middleware agreed on if the client did not offer that."""
        agreed: str | None = self.scope.get("django_sockets.subprotocol")
        if agreed is None or self.subprotocol in (self.scope.get("subprotocols") or ()):
            return self.subprotocol
        return agreed

    def _call(self, handler: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run a hook: on the loop if it is `async def`, else on a worker thread."""
        function = getattr(handler, "__func__", handler)
        if function in _PLAIN_DEFAULTS:
            return _returned(handler(*args))
        if function in _AWAITABLE_DEFAULTS:
            awaitable: Awaitable[Any] = handler(*args)
            return awaitable
        if is_coroutine_function(function):
            return tidied(handler(*args))
        return self._call_in_thread(handler, args)

    async def _call_in_thread(self, handler: Callable[..., Any], args: Sequence[Any]) -> Any:
        handshake = self._outbox.held
        call = call_in_thread(self._config.settings, handler, args, handshake=handshake)
        self._in_thread = thread = _spawn(call)
        await asyncio.wait([thread])
        if self._in_thread is thread:
            self._in_thread = None
        return thread.result()

    def _from_hook(self, operation: Operation[None]) -> Awaitable[None] | None:
        """Run it for a hook's default: at once on a worker thread, else to be awaited."""
        if running_loop() is not None:
            return operation()
        return self._calls.plain(operation)

    async def _failed(self, exc: Exception) -> None:
        name = type(self).__name__
        if isinstance(exc, (BrokerError, ChannelError, NotAllowed)):
            # Its message says it all; an outage, or one client, can make it come often.
            _throttle.log(logging.ERROR, name, "%s: a handler failed: %s", name, exc)
        else:
            self._log_failure("a handler failed", exc)
        try:
            await self._call(self.error, exc)
        except Exception as failure:
            report_error(self.scope, failure)
            self._log_failure("error() failed itself", failure)
            await self.async_close(INTERNAL_ERROR)

    def _log_failure(self, what: str, exc: Exception) -> None:
        """With its traceback, but not for each frame of a client that has found out how."""
        name = type(self).__name__
        key = f"{name} {what} {whereabouts(exc)}"
        _failures.log(logging.ERROR, key, "%s: %s", name, what, exc_info=exc)

    # Events to the client

    def _event(self, data: Any, raw: bool) -> dict[str, Any]:
        if raw:
            if not isinstance(data, (str, bytes, bytearray, memoryview)):
                raise EncodeError(f"raw=True sends str or bytes, not {type(data).__name__}")
            return send_event(data)
        if self.ws_encoder is not None:
            return send_event(self.ws_encoder(data), self.ws_encoder_is_bytes)
        payload, is_text = encode(data)
        return send_event(payload.decode() if is_text else payload)

    async def _send_event(self, event: MutableMapping[str, Any]) -> None:
        if not self.is_alive or self._closing:
            return
        if not self._outbox.held:
            await self._outbox.run(event)
        # `authorize` cannot wait for the accept that waits for it.
        elif not self._outbox.put(
            event, _size_bytes(event.get("text") or event.get("bytes") or b"")
        ):
            raise CallError("too much is sent before the handshake is accepted (outbox_messages)")

    async def _close(self, code: int) -> None:
        if self._closing or not self.is_alive:
            return
        self._closing = True
        self._discard_held()
        self._receive_loop.stop()
        try:
            await self._outbox.close(code)
        finally:
            self._end(code)

    def _new_backlog(self) -> Backlog:
        return Backlog(self.outbox_messages, self.outbox_bytes, self._shared_hub().congestion)

    def _no_send(self) -> None:
        self._warn_once("send side", "%s has no send callable: nothing is sent")

    def _client_gone(self, exc: Exception) -> None:
        # A server's `send` raises OSError for a client that has left (ASGI 2.4): no news. For
        # one that it has closed itself, for a bad frame, uvicorn raises RuntimeError: clients can
        # bring that about at will.
        name = type(self).__name__
        logger.debug("%s: sending to the client failed", name, exc_info=exc)
        if not isinstance(exc, OSError):
            text = "%s: sending to the client failed: %r"
            _throttle.log(logging.WARNING, f"{name} send", text, name, exc)
        self._end(NO_CODE)

    # Closed by its tags

    async def _join(self) -> None:
        """Be found by the tags it has now; without tags this costs nothing."""
        if self.is_alive and (self._tags or self._control is not None):
            self._control = control = control_of(self._shared_hub())
            await control.add(self, self.tags)

    def _leave(self) -> None:
        if self._control is not None:
            self._control.discard(self)

    def on_close_order(self, code: int) -> None:
        """Called by the control: somebody closes the sockets with a tag of this one."""
        _spawn(self._close(code))

    # Sent away

    def on_drain(self, patience_seconds: float) -> None:
        """Called by the hub's connections: the server is shutting down."""
        _spawn(self._drain(patience_seconds))

    async def _drain(self, patience_seconds: float) -> None:
        await self._receive_loop.settled(patience_seconds)
        if not self._closing and self.is_alive:
            self._count("closed_drain")
            await self._close(RESTART)

    # Broadcasts to the client

    def _shared_hub(self) -> Hub:
        if self._hub is None:
            self._hub = shared_hub(self._config, self._home)
        return self._hub

    def _add(self, names: list[str]) -> Coroutine[Any, Any, None]:
        if not self.is_alive:
            return _returned(None)
        hub = self._shared_hub()
        if self._too_many(names):
            problem = f"a socket may have {self.max_subscriptions} channels (max_subscriptions)"
            raise SubscribeError(self._config.url, problem, channels=names)
        if self._queue is NOT_YET:
            self._hold(hub)
        elif self._queue is None and not self._serving:
            self._queue = hub.new_queue()
        return hub.add(self, names, direct=self._direct())

    def _direct(self) -> SendQueue | None:
        """Where broadcasts may go past `on_delivery`, while nothing is queued there."""
        if isinstance(self._queue, EventQueue) or self._inbox is not None or not self._serving:
            return None
        return self._outbox if self.ws_encoder is None and self._asgi_send else None

    def _too_many(self, names: Sequence[str]) -> bool:
        owned = () if self._hub is None else self._hub.channels_of(self)
        if len(owned) + len(names) <= self.max_subscriptions:
            return False
        new = {name for name in names if name not in owned}
        return len(owned) + len(new) > self.max_subscriptions

    async def _remove(self, names: list[str]) -> None:
        hold = self._held()
        if hold is not None:
            hold.forget(names)
        if self._hub is not None:
            await self._hub.remove(self, names)

    def _start_delivery(self) -> None:
        """From now on broadcasts go to the client, or to the class's own hooks, in order."""
        cls = type(self)
        handles = cls.async_handle_received_broadcast
        if (
            handles is not BaseSocketServer.async_handle_received_broadcast
            or cls.gap is not BaseSocketServer.gap
        ):
            self._inbox = Inbox(self)
        queue, self._queue = self._queue, None
        pass_on = self._pass_on
        if self.hold_broadcasts and self._outbox.held:  # A server's socket: `connect` comes first.
            self._queue = NOT_YET
            if queue is not None:  # `authorize` has subscribed.
                pass_on = self._hold(self._shared_hub()).put
        if isinstance(queue, EventQueue):
            for event in queue.drain():
                pass_on(event)

    def on_delivery(self, delivery: Delivery) -> None:
        """Called by the hub with a broadcast."""
        if delivery.origin is not None and delivery.origin == self._origin:
            return
        if self._queue is not None:
            self._queue.on_delivery(delivery)
        else:
            self._pass_on(delivery)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Called by the hub where broadcasts may be missing."""
        if self._queue is not None:
            self._queue.on_gap(channels, reason)
        elif self._inbox is not None:
            self._inbox.offer(Gap(channels=tuple(channels), reason=reason))

    def _pass_on(self, event: Delivery | Gap) -> None:
        """To the hooks of the class, or to the client."""
        if self._inbox is not None:
            self._inbox.offer(event)
        elif isinstance(event, Delivery):
            self._push(event)

    async def _take(self, event: Delivery | Gap) -> None:
        """One event, in a class with hooks of its own."""
        try:
            if isinstance(event, Gap):
                await self._call(self.gap, event.channels, event.reason)
            elif (
                type(self).async_handle_received_broadcast
                is BaseSocketServer.async_handle_received_broadcast
            ):
                await self._send_on(event)
            else:
                await tidied(self.async_handle_received_broadcast(event.channel, event.data()))
        except Exception as exc:
            await self._failed(exc)

    def _push(self, delivery: Delivery) -> None:
        if self._asgi_send is None:
            self._no_send()
            return
        if self._closing:
            self._discarded(1)
        else:
            self._policy().put(self._outbox, self._event_of(delivery), len(delivery.payload))

    async def _send_on(self, delivery: Delivery) -> None:
        """`_push` for one that may wait: then what is too much waits in the inbox, before `gap`."""
        if self._asgi_send is None or self._closing or self._outbox.idle:
            self._push(delivery)
        else:
            await self._outbox.run(self._event_of(delivery))

    def _event_of(self, delivery: Delivery) -> MutableMapping[str, Any]:
        if self.ws_encoder is None:
            return delivery.event()
        return delivery.event_by(self.ws_encoder, self.ws_encoder_is_bytes)

    def _inbox_failed(self, exc: Exception) -> None:
        _spawn(self._failed(exc))

    # Broadcasts that wait for `connect`

    def _hold(self, hub: Hub) -> Hold:
        """From now on broadcasts wait, for at most `hold_seconds`."""
        self._queue = hold = Hold(self)
        hub.holds.add(hold, self.hold_seconds or self._config.settings.hold_seconds)
        return hold

    def _held(self) -> Hold | None:
        """What waits for `connect`, if something may."""
        queue = self._queue
        return queue if isinstance(queue, Hold) and queue is not NOT_YET else None

    async def _release(self) -> None:
        """Hand on what has waited for `connect`, in order; nothing waits any more after it."""
        if not self._release_empty():
            hold = self._held()
            if hold is not None and not (hold.passing or hold.closed):
                hold.passing = True
                # A task of its own: the caller may be cancelled, and may not leave it half done.
                await asyncio.wait([_spawn(self._hand_over(hold))])

    def _release_empty(self) -> bool:
        """End the hold and return True, unless something waits or nothing is held."""
        queue = self._queue
        if not isinstance(queue, Hold) or self._closing:
            return False
        if queue is not NOT_YET:
            if queue:
                return False
            self._shared_hub().holds.discard(queue)
        self._queue = None
        self._outbox.unseal()
        return True

    async def _hand_over(self, hold: Hold) -> None:
        hub = self._shared_hub()
        hub.holds.discard(hold)
        send_queue = self._outbox if self._inbox is None else self._inbox
        await hold.hand_over(self._pass_on, send_queue, hub.congestion)
        self._release_empty()

    async def _release_after_calls(self) -> None:
        """`_release`, when the plain calls that `async def connect` has made are done."""
        await self._calls.awaited(self._release)

    def _hold_expired(self) -> None:
        name = type(self).__name__
        text = (
            "%s: connect has not returned within %g s (hold_seconds); broadcasts no longer wait "
            "for it. Call self.release() in connect once the present state is sent"
        )
        seconds = self.hold_seconds or self._config.settings.hold_seconds
        _throttle.log(logging.WARNING, f"{name} {id(type(self))} hold", text, name, seconds)
        _spawn(self._release())

    def _overran(self, event: Delivery | Gap, first: bool) -> None:
        """Called by a hold: too much waits for `connect` or `gap`, and the oldest goes."""
        count = int(isinstance(event, Delivery))
        if self.overflow == CLOSE and type(self).gap is BaseSocketServer.gap:
            self._discarded(count)
            self._close_overflow("closed with 1013: too much waits for connect")
            return
        if count:
            self._count("dropped_overflow")
        if first:
            self._hole_began("too much waits for connect or gap")

    def _much_waits(self, hold: Hold) -> None:
        """Called by a hold: close the client, if it does not read what the hook sends."""
        if self.overflow == CLOSE and not (self._outbox.idle or hold.watched):
            hold.watched = True
            self._home.call_later(STUCK_SECONDS, self._look_at_client, hold)

    def _look_at_client(self, hold: Hold) -> None:
        hold.watched = False
        inbox = self._inbox
        in_force = self._queue is hold or (inbox is not None and inbox.waiting is hold)
        if in_force and not hold.closed and self._outbox.stuck:
            self._close_overflow()

    def _discard_held(self) -> None:
        hold = self._held()
        if hold is not None:
            hold.close()
            self._shared_hub().holds.discard(hold)

    # Clients that read too slowly

    def _policy(self) -> Overflow:
        if self._overflow is None:
            self._overflow = Overflow(
                self.overflow,
                self._too_slow,
                lambda count: self._count("dropped_overflow", count),
                self._hole_began,
            )
        return self._overflow

    def _too_slow(self, item: Any) -> None:
        self._discarded(not isinstance(item, Gap))
        self._close_overflow()

    def _close_overflow(self, what: str = "closed with 1013: the client reads too slowly") -> None:
        if not self._slow:
            self._slow = True
            self._note("closed_overflow", what)
            _spawn(self._close(TRY_AGAIN))

    def _hole_began(self, why: str = "the client reads too slowly") -> None:
        self._shared_hub().count_gap(OVERFLOW)
        name = type(self).__name__
        text = "%s: broadcasts are dropped: %s"
        _throttle.log(logging.WARNING, f"{name} dropped", text, name, why)

    def _discarded(self, count: int) -> None:
        if count:
            self._count("discarded", count)

    def _note(self, counter: str, what: str) -> None:
        """Count something that ended a connection; the log says it once per interval."""
        self._count(counter)
        name = type(self).__name__
        _throttle.log(logging.INFO, f"{name} {counter}", "%s: %s", name, what)

    def _note_undecoded(self, exc: Exception) -> None:
        # The error may quote the client: escaped, and cut.
        name = type(self).__name__
        text = "%s: a frame of the client could not be decoded: %s: %.300r"
        _throttle.log(logging.INFO, f"{name} decode", text, name, type(exc).__name__, str(exc))
        logger.debug("%s: a frame of the client could not be decoded", name, exc_info=exc)

    def _count(self, counter: str, count: int = 1) -> None:
        self._shared_hub().count(counter, count)

    # Odds and ends

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned += (key,)
            logger.warning(message, type(self).__name__)


async def _returned(result: Any) -> Any:
    return result


_at_work: set[asyncio.Task[None]] = set()
"""What sockets do beside their handlers: an event loop keeps its tasks by weak references only."""


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(work)
    _at_work.add(task)
    task.add_done_callback(_at_work.discard)
    return task


@functools.lru_cache(maxsize=1024)
def _sets_its_own(cls: type[BaseSocketServer]) -> bool:
    """Whether each socket of a class may change what was checked when the class was made."""
    base = BaseSocketServer
    if cls.configure is not base.configure or cls.__init__ is not base.__init__:
        return True
    return any(hasattr(getattr(cls, name), "__get__") for name in _CHECKS)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "allowed_origins": check_origins,
    "allowed_hosts": check_allowed_hosts,
    "hosts": lambda _, hosts: None if hosts is None else check_hosts(hosts),
    "subprotocol": check_subprotocol,
}


def _check_lists(cls: type[BaseSocketServer], owner: Any) -> None:
    """Check the options of a class, or of one of its sockets, that are lists, or must be none.

    Raises:
        ConfigurationError: one of them is a text in place of a list, or the other way round.
    """
    for name, check in _CHECKS.items():
        value = getattr(owner, name)
        if owner is cls and hasattr(value, "__get__"):
            continue  # A property, which each socket asks for itself.
        if owner is cls or value is not getattr(cls, name):
            check(f"{cls.__name__}.{name}", value)


@functools.lru_cache(maxsize=1024)
def _dispatch_of(cls: type[BaseSocketServer]) -> Dispatch:
    return Dispatch(cls, cls.receive is not BaseSocketServer.receive)


def _size_bytes(frame: str | bytes) -> int:
    if isinstance(frame, str) and not frame.isascii():
        return len(frame.encode(errors="surrogatepass"))
    return len(frame)


BaseSocketServer.as_asgi = AsgiApp.descriptor()
_AWAITABLE_DEFAULTS = frozenset({BaseSocketServer.error, BaseSocketServer.decode_error})
_PLAIN_DEFAULTS = frozenset(
    {
        BaseSocketServer.authorize,
        BaseSocketServer.connect,
        BaseSocketServer.receive,
        BaseSocketServer.disconnect,
        BaseSocketServer.gap,
        BaseSocketServer.may_subscribe,
    }
)
