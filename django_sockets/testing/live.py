"""LiveSocketServer: serves an application on a real port, for tests with a browser."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import pip_command
from ..servers.installed import websocket_protocol
from .database import share_database, share_database_here

__all__ = ["LiveSocketServer"]

START_SECONDS = 10.0
STOP_SECONDS = 5.0
GRACE_SECONDS = 1
"""The longest that the server waits for open connections when it stops."""


class LiveSocketServer:
    """uvicorn with an ASGI application, on a thread of this process; use it with `with`.

    It runs in this process and therefore uses `override_broker`, `capture_broadcasts` and the
    test's database connections. It accepts connections on entering. On leaving it closes its
    sockets and stops.

    Args:
        app: the ASGI application.
        host: the address to listen on.
        static_files: whether to serve Django's static files under STATIC_URL, as `runserver` does.
            Default: None, if `django.contrib.staticfiles` is installed.

    Attributes:
        url, ws_url: "http://127.0.0.1:port" and "ws://127.0.0.1:port".

    Raises:
        RuntimeError: uvicorn is not installed, or the application did not start.
    """

    url: str
    ws_url: str

    def __init__(
        self, app: Any, *, host: str = "127.0.0.1", static_files: bool | None = None
    ) -> None:
        self._app = _with_static_files(app, static_files)
        self._host = host
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> LiveSocketServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        uvicorn = _uvicorn()
        with contextlib.ExitStack() as stack:
            stack.enter_context(share_database_here())
            listener = stack.enter_context(socket.socket())
            listener.bind((self._host, 0))
            port = listener.getsockname()[1]
            self.url, self.ws_url = f"http://{self._host}:{port}", f"ws://{self._host}:{port}"
            config = uvicorn.Config(
                self._serve,
                interface="asgi3",
                log_config=None,
                access_log=False,
                ws=websocket_protocol(),
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            server = _server(uvicorn, config)
            thread = threading.Thread(
                target=server.run,
                args=([listener],),
                name="django_sockets live server",
                daemon=True,
            )
            thread.start()
            stack.callback(_stop, server, thread)
            if not server.up.wait(START_SECONDS) or not server.started:
                raise RuntimeError(
                    "the application did not start: the reason is in its log"
                ) from server.problem
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """Close the open connections and stop, within `2 * STOP_SECONDS`."""
        self._stack.close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or "django.db" not in sys.modules:
            await self._app(scope, receive, send)
            return
        from asgiref.sync import ThreadSensitiveContext

        # Each request gets one thread for its `def` code, as with Django's ASGI handler.
        async with ThreadSensitiveContext(), share_database():
            await self._app(scope, receive, send)


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ImportError:
        raise RuntimeError(
            f"LiveSocketServer needs uvicorn: run {pip_command('runserver')}"
        ) from None
    return uvicorn


def _server(uvicorn: Any, config: Any) -> Any:
    class Server(uvicorn.Server):  # type: ignore[misc]
        """Sets an event when it has started, so that nothing has to poll."""

        def __init__(self) -> None:
            super().__init__(config)
            self.up = threading.Event()
            self.problem: BaseException | None = None

        async def startup(self, sockets: Any = None) -> None:
            try:
                await super().startup(sockets)
            finally:
                self.up.set()

        def run(self, sockets: Any = None) -> None:
            try:
                super().run(sockets)
            except BaseException as exc:
                self.problem = exc
            finally:
                self.up.set()

    return Server()


def _stop(server: Any, thread: threading.Thread) -> None:
    server.should_exit = True
    thread.join(STOP_SECONDS)
    if thread.is_alive():
        server.force_exit = True
        thread.join(STOP_SECONDS)
    if thread.is_alive():
        raise AssertionError(f"the server did not stop within {2 * STOP_SECONDS:g} s")


def _with_static_files(app: Any, wanted: bool | None) -> Any:
    conf = sys.modules.get("django.conf")
    if wanted is None:
        wanted = (
            conf is not None
            and conf.settings.configured
            and "django.contrib.staticfiles" in conf.settings.INSTALLED_APPS
        )
    if not wanted:
        return app
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

    static: Callable[..., Any] = ASGIStaticFilesHandler(app)

    async def split(scope: Any, receive: Any, send: Any) -> None:
        # Django's handler treats every scope as an HTTP request.
        await (static if scope["type"] == "http" else app)(scope, receive, send)

    return split
