"""Calls the hooks of one socket, and reports their errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ..errors import BrokerError, ChannelError, NotAllowed, RequestError
from ..log import LogThrottle, whereabouts
from ..observer import seam
from ..runtime.channel_api import ChannelCalls
from ..runtime.hooks import call_hook, call_in_thread
from ..runtime.sync_calls import Calls, Operation, running_loop
from ..tracer import traced, tracing
from ..typed import invalid_message
from ..url import BrokerOptions
from .close_codes import BAD_DATA, INTERNAL_ERROR, POLICY
from .handshake import report_error
from .observed import observed_hook
from .outbox import Outbox
from .socket_class import Socket, SocketClass
from .tasks import spawn

__all__ = ["HookCalls"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)
"""For log lines with a traceback. The first lines of each kind are enough to find the cause."""
_first_call = threading.Lock()
"""The lock for making the `Calls` object of a socket, which may happen on any thread."""

T = TypeVar("T")


class HookCalls(ChannelCalls):
    """The calls that an application makes on one socket, and the calls of its hooks.

    Attributes:
        socket: the application's object.
        definition: the facts about its class.
        home: the event loop of the connection.
        outbox: the queue to the client.
        invalid_id: the `id` of the last invalid message.
    """

    __slots__ = (
        "_home_calls",
        "_in_thread",
        "_warned",
        "definition",
        "home",
        "invalid_id",
        "outbox",
        "socket",
    )

    socket: Socket
    definition: SocketClass
    home: asyncio.AbstractEventLoop
    outbox: Outbox

    def __init__(self) -> None:
        self._home_calls: Calls | None = None
        self._in_thread: asyncio.Task[Any] | None = None
        self._warned: tuple[str, ...] = ()
        self.invalid_id: str | int | float | None = None

    # The application's calls

    @property
    def calls(self) -> Calls:
        if self._home_calls is None:
            with _first_call:  # Another thread may have made it.
                if self._home_calls is None:
                    timeout_seconds = self.config.settings.sync_call_timeout_seconds
                    self._home_calls = Calls(self.home, timeout_seconds)
        return self._home_calls

    @property
    def calls_scheduled(self) -> bool:
        """Whether a plain call is scheduled and not finished yet."""
        return self._home_calls is not None and self._home_calls.scheduled

    def awaited(self, operation: Operation[T]) -> Awaitable[T]:
        if self._home_calls is None and running_loop() is self.home:
            return operation()  # No earlier call is scheduled.
        return self.calls.awaited(operation)

    # Calls of hooks

    def call(self, hook: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run a hook. See `call_hook`; the defaults of `BaseSocketServer` need no thread."""
        function = getattr(hook, "__func__", hook)
        if function in self.definition.plain_defaults:
            return _returned(hook(*args))
        if function in self.definition.awaitable_defaults:
            awaitable: Awaitable[Any] = hook(*args)
            return awaitable
        calling = call_hook(hook, args, self._call_in_thread)
        if (tracer := tracing.tracer) is not None:
            socket = self.socket
            span = tracer.hook(socket.scope, type(socket), function)
            calling = calling if span is None else traced(span, calling)
        if (observer := seam.observer) is None:
            return calling
        return observed_hook(observer, type(self.socket), function, calling)

    async def _call_in_thread(self, hook: Callable[..., Any], args: Sequence[Any]) -> Any:
        handshake = self.outbox.held
        call = call_in_thread(self.config.settings, hook, args, handshake=handshake)
        self._in_thread = thread = spawn(call)
        await asyncio.wait([thread])
        if self._in_thread is thread:
            self._in_thread = None
        return thread.result()

    def cancel_thread_call(self) -> None:
        """Cancel a call that waits for a worker thread. A running call cannot be stopped."""
        if self._in_thread is not None:
            self._in_thread.cancel()

    async def finish_thread_call(self) -> None:
        """Wait for a hook on a worker thread that continues although its task was cancelled."""
        call = self._in_thread
        if call is not None:
            await asyncio.wait([call])
            error = call.exception()
            if isinstance(error, Exception):
                await self.failed(error)

    def from_default(self, operation: Operation[None]) -> Awaitable[None] | None:
        """Run an operation for a default hook: on a worker thread, wait; else return it."""
        if running_loop() is not None:
            return operation()
        return self.calls.plain(operation)

    # The defaults of hooks

    def default_error(self, exc: Exception) -> Awaitable[None] | None:
        """See `BaseSocketServer.error`."""
        if isinstance(exc, NotAllowed):
            return self.from_default(lambda: self.socket.async_close(POLICY))
        report_error(self.socket.scope, exc)
        return self.from_default(lambda: self.socket.async_close(INTERNAL_ERROR))

    def default_decode_error(self, exc: Exception) -> Awaitable[None] | None:
        """See `BaseSocketServer.decode_error`."""
        if not self.socket.answer_invalid:
            return self.from_default(lambda: self.socket.async_close(BAD_DATA))
        answer = invalid_message(exc, self.invalid_id)
        return self.from_default(lambda: self.socket.async_send(answer))

    # Errors of hooks

    async def failed(self, exc: Exception) -> None:
        """Log an exception of a handler, and give it to the hook `error`."""
        if isinstance(exc, RequestError):
            answer = {"error": {"type": exc.code, "message": exc.message}}
            await self.socket.async_send(answer)
            return
        self._note(exc)
        try:
            await self.call(self.socket.error, exc)
        except Exception as failure:
            report_error(self.socket.scope, failure)
            self._log_failure("error() failed itself", failure)
            await self.socket.async_close(INTERNAL_ERROR)

    async def request_failed(self, exc: Exception) -> None:
        """Log an exception in the handling of a request, which gets its own answer.

        The hook `error` gets it, too, if the class has its own. The default would close the socket.
        """
        if type(self.socket).error is not self.definition.base.error:
            await self.failed(exc)
        else:
            self._note(exc)
            if not isinstance(exc, NotAllowed):
                report_error(self.socket.scope, exc)

    def _note(self, exc: Exception) -> None:
        name = type(self.socket).__name__
        if isinstance(exc, (BrokerError, ChannelError, NotAllowed)):
            # The message is enough. An outage, or one client, can cause many of these errors.
            _throttle.log(
                logging.ERROR,
                name,
                "%s: a handler failed: %s",
                name,
                exc,
                extra={"socket": name, "reason": exc},
            )
        else:
            self._log_failure("a handler failed", exc)

    def _log_failure(self, what: str, exc: Exception) -> None:
        """Log an error with its traceback, but not for each frame of a client that causes it."""
        name = type(self.socket).__name__
        key = f"{name} {what} {whereabouts(exc)}"
        extra = {"socket": name, "reason": exc}
        _failures.log(logging.ERROR, key, f"%s: {what}", name, exc_info=exc, extra=extra)

    def warn_once(self, key: str, message: str) -> None:
        """Log a warning with the name of the class, once for each key and socket."""
        if key not in self._warned:
            self._warned += (key,)
            logger.warning(
                message, type(self.socket).__name__, extra={"socket": type(self.socket).__name__}
            )


async def _returned(result: Any) -> Any:
    return result
