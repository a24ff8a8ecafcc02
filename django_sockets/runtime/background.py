"""The library's own event loop, and publishing through the hub of the right loop.

There is at most one background thread in a process. Scripts run their listeners on it. Code without
a loop of its own that only publishes (a WSGI view, a worker of a task queue, code inside
`async_to_sync`) uses its hub.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from ..conf import Config
from ..forks import PerProcess
from ..hub.hub import Hub
from ..os_threads import OsThread, waiting
from .interpreter_exit import (
    call_before_exit,
    end_loop,
)
from .shared_hubs import (
    existing_hub,
    shared_hub,
)
from .thread_safe_loop import BackgroundLoop, run_loop

__all__ = ["background_loop", "publish", "through_hub"]

T = TypeVar("T")


class Background:
    """The background loop and its thread; None before the first use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: BackgroundLoop | None = None
        self.thread: OsThread | None = None
        self.started = threading.Event()

    def start(self) -> BackgroundLoop:
        """Return the loop, and start its thread if needed. The loop may not run yet.

        Raises:
            ThreadError: the thread cannot be started; the next call tries again.
        """
        with self.lock:
            if self.loop is not None and (self.loop.ends or not self.loop.is_closed()):
                return self.loop
            loop, started = BackgroundLoop(), threading.Event()
            try:
                self.thread = OsThread(
                    lambda: run_loop(loop, started),
                    name="django_sockets loop",
                    purpose="the event loop for calls from threads without one",
                )
            except BaseException:
                loop.close()
                raise
            self.started, self.loop = started, loop
            call_before_exit(end_background)
            return loop


per_process = PerProcess(Background)
"""The background loop of this process."""


def background_loop() -> BackgroundLoop:
    """Return the library's loop, which runs. The first call starts it.

    Raises:
        ThreadError: its thread cannot be started; the next call tries again.
    """
    current = per_process.current
    loop = current.loop
    if loop is None or not current.started.is_set() or (loop.is_closed() and not loop.ends):
        with waiting():
            loop = current.start()
            current.started.wait()
    return loop


def end_background() -> None:
    """Wait for the work on the background loop, and stop it. Called when the interpreter exits."""
    loop, thread = per_process.current.loop, per_process.current.thread
    if loop is not None and thread is not None and loop.is_running():
        end_loop(loop, thread)


def publish(
    config: Config,
    channels: Iterable[str],
    payload: bytes,
    *,
    is_text: bool,
    origin: bytes | None = None,
    compress: bool = True,
) -> Coroutine[Any, Any, None]:
    """Publish `through_hub`.

    Raises:
        ChannelError, PayloadTooLarge, PublishError: see `Hub.publish`.
    """
    hub = existing_hub(asyncio.get_running_loop(), config)
    if hub is not None:  # This saves two coroutines for each call.
        return hub.publish(channels, payload, is_text=is_text, origin=origin, compress=compress)
    return through_hub(
        config,
        lambda hub: hub.publish(
            channels, payload, is_text=is_text, origin=origin, compress=compress
        ),
    )


async def through_hub(config: Config, operation: Callable[[Hub], Awaitable[T]]) -> T:
    """Await `operation` with the hub of the running loop, or else of the background loop."""
    loop = asyncio.get_running_loop()
    hub = existing_hub(loop, config)
    if hub is not None:
        return await operation(hub)

    async def in_background() -> T:
        return await operation(shared_hub(config))

    target = background_loop()
    if target is loop:
        return await in_background()
    return await asyncio.wrap_future(target.schedule(in_background()))
