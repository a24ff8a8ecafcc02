"""uvicorn as the server of `manage.py runserver`. Only that command imports this module."""

from __future__ import annotations

import asyncio
import atexit
import logging
import socket
import threading
import weakref
from typing import Any

import uvicorn

from ..connection.handshake import EXPLAIN
from ..servers.installed import websocket_protocol

__all__ = ["UvicornServer"]

GRACE_SECONDS = 2
"""The longest that the end of the server waits for open connections."""
_NO_HANDSHAKE = "ASGI callable returned without completing handshake"


class UvicornServer:
    """Has the methods of `WSGIServer` that `django.core.servers.basehttp.run` calls.

    Raises:
        OSError: on construction, if the address cannot be used.
    """

    def __init__(self, address: tuple[str, int], _: object = None, *, ipv6: bool = False) -> None:
        self._socket = socket.create_server(
            address,
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
        self.server_port: int = self._socket.getsockname()[1]
        self._app: Any = None
        self._ended = threading.Event()

    def set_app(self, app: Any) -> None:
        async def explaining(scope: Any, receive: Any, send: Any) -> None:
            # A developer tries again at once, and needs the reason each time.
            await app({**scope, EXPLAIN: True}, receive, send)

        self._app = explaining

    def serve_forever(self) -> None:
        """Serve until Ctrl-C on the main thread, or until the process exits on another one."""
        _log_like_django()
        config = uvicorn.Config(
            self._app,
            ws=websocket_protocol(),
            log_config=None,
            log_level="info",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = uvicorn.Server(config)
        if threading.current_thread() is not threading.main_thread():
            # The reloader runs on the main thread and ends the process while this thread runs.
            atexit.register(self._stop, server)
        try:
            server.run(sockets=[self._socket])
        finally:
            self._ended.set()

    def _stop(self, server: uvicorn.Server) -> None:
        """Close the sockets and run `disconnect` before the process ends."""
        server.should_exit = True
        self._ended.wait(2 * GRACE_SECONDS)


class _ToDjango(logging.Handler):
    """Logs requests of uvicorn in the format of Django's server; drops its other messages.

    Warnings and errors of uvicorn are passed on.
    """

    server = logging.getLogger("django.server")

    def __init__(self) -> None:
        super().__init__()
        self._refused: weakref.WeakSet[Any] = weakref.WeakSet()

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        if record.name == "uvicorn.access" and len(arguments) == 5:
            _, method, path, version, status = arguments
            self._log('"%s %s HTTP/%s" %s', (method, path, version, status), status)
        elif str(record.msg).startswith('%s - "WebSocket %s"') and len(arguments) in (2, 3):
            status = arguments[2] if len(arguments) == 3 else None
            if status is None:
                status = 403 if str(record.msg).endswith("403") else 101
            if status != 101:
                self._refused.add(_connection())
            self._log('"WEBSOCKET %s" %s', (arguments[1], status), status)
        elif str(record.msg).startswith(_NO_HANDSHAKE) and _connection() in self._refused:
            pass  # uvicorn 0.54 logs this after every refusal with the application's own status.
        elif record.levelno >= logging.WARNING:
            self.server.handle(record)

    def _log(self, message: str, arguments: tuple[Any, ...], status: Any) -> None:
        bad = isinstance(status, int) and status >= 400
        level = logging.WARNING if bad else logging.INFO
        self.server.log(level, message, *arguments, extra={"status_code": status})


def _connection() -> object:
    """The current task, which stands for the connection: uvicorn logs all its lines in one task."""
    return asyncio.current_task()


class _Ours(logging.Handler):
    """Prints the log of this library on the console of the server."""

    def emit(self, record: logging.LogRecord) -> None:
        _ToDjango.server.handle(record)


def _log_like_django() -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers = [_ToDjango()]
    logger.propagate = False
    ours = logging.getLogger("django_sockets")
    if ours.level == logging.NOTSET:  # The project's LOGGING does not mention it.
        ours.setLevel(logging.INFO)  # INFO has the refused websockets and the broker in use.
        if not ours.hasHandlers():
            ours.addHandler(_Ours())
