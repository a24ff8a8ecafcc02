"""A socket class as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..runtime import close_shared_hubs
from ..runtime.shutdown import chain_sigterm, unchain_sigterm
from ..runtime.startup import announce_default
from .admission import admit
from .connection import Connection
from .refusals import handshake_began, report_failure

__all__ = ["AsgiApp", "Receive", "Send"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Connect = Callable[[Any, MutableMapping[str, Any], Receive, Send], Connection]


class AsgiApp:
    """The ASGI 3 application `MySocket.as_asgi`. Each connection gets a `MySocket`.

    It is an object, because servers treat a bound method as an ASGI 2 application (uvicorn 0.54 and
    hypercorn 0.18 call `iscoroutinefunction` with `app.__call__`). A call without arguments returns
    the application itself, so that you may write `MySocket.as_asgi()` as in Channels.
    """

    def __init__(self, socket_class: Any, connect: Connect) -> None:
        self.socket_class = socket_class
        self._connect = connect
        # `app(...)` uses the class's `__call__`, which is a `def` because it may return the
        # application; a server that looks at `app.__call__` finds the coroutine function.
        self.__call__ = self._serve  # type: ignore[method-assign]

    @classmethod
    def descriptor(cls, connect: Connect) -> Any:
        """A class attribute that makes the application of the class it is looked up on.

        Args:
            connect: makes an object of that class, and returns its connection.
        """
        return _AsAsgi(connect)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or "scope" in kwargs:
            return self._serve(*args, **kwargs)
        if not kwargs:
            return self
        raise TypeError(
            f"as_asgi() takes no arguments, but got {', '.join(kwargs)}: set them as attributes of "
            f"{self.socket_class.__name__}, or in its configure method"
        )

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            began = handshake_began()
            try:
                connection = self._connect(self.socket_class, scope, receive, send)
            except BaseException:
                report_failure(began, self.socket_class)
                raise
            chain_sigterm(connection.home)
            if await admit(connection):
                await connection.serve()
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send, self.socket_class)
        else:
            await _not_http(send)


class _AsAsgi:
    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def __get__(self, instance: object, owner: type) -> AsgiApp:
        return AsgiApp(owner, self._connect)


async def _lifespan(receive: Receive, send: Send, socket_class: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            if _takes_default(socket_class):
                announce_default()
            chain_sigterm(asyncio.get_running_loop())
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            unchain_sigterm()
            await close_shared_hubs()
            await send({"type": "lifespan.shutdown.complete"})
            return


def _takes_default(socket_class: Any) -> bool:
    """Whether sockets of a class, or of one of its subclasses, have the default broker."""
    if socket_class.config is not None or socket_class.hosts is not None:
        return False
    subclasses = socket_class.__subclasses__()
    if not subclasses:
        # A `configure` of its own may name another broker.
        return bool(socket_class.configure.__module__ == "django_sockets.sockets")
    return any(_takes_default(subclass) for subclass in subclasses)


async def _not_http(send: Send) -> None:
    """Answer a plain HTTP request on a websocket's path (RFC 9110, section 15.5.22)."""
    headers = [(b"content-type", b"text/plain"), (b"upgrade", b"websocket")]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": b"This address speaks websocket.\n"})
