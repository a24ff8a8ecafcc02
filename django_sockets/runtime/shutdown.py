"""Graceful shutdown: sockets are closed with 1012, spread over some seconds, then their brokers.

On SIGTERM, servers close websockets at once and tell the application afterwards or never. Therefore
the server's signal handler is wrapped: the drain runs first, then the server's handler. This
happens at lifespan start-up, or at the first handshake if there is no lifespan.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from types import FrameType
from typing import Any

from ..conf import Settings, default_config
from ..errors import ConfigurationError
from ..loops import forget_closed
from .shared_hubs import hubs_of_running_loop, set_draining

__all__ = ["chain_sigterm", "drain", "unchain_sigterm"]

logger = logging.getLogger("django_sockets")

_seen: dict[asyncio.AbstractEventLoop, None] = {}


async def drain(seconds: float | None = None) -> None:
    """Close all sockets of the running loop with 1012, and then their brokers.

    The closes are spread over `seconds`, so that the clients do not all reconnect at once. Each
    close waits for the handler that is running; `disconnect` runs as usual. From now on this loop
    refuses handshakes with 503. A hub whose handlers take longer stays open, and this is logged.

    Args:
        seconds: the length of the drain. Default: None, the setting `drain_seconds`.
    """
    set_draining()
    drains = [hub.drain(seconds) for hub in hubs_of_running_loop()]
    # An error of one hub must not shorten the drain of the others.
    for problem in await asyncio.gather(*drains, return_exceptions=True):
        if isinstance(problem, BaseException):
            raise problem


class _Chained:
    """A signal handler that drains and then calls the previous handler."""

    def __init__(self, loop: asyncio.AbstractEventLoop, previous: Any) -> None:
        self._loop = loop
        self.previous = previous
        self._task: asyncio.Task[None] | None = None
        self._called = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._called or self._loop.is_closed():
            self.previous(number, frame)  # A second signal skips the drain.
            return
        self._called = True
        # Python runs signal handlers between two bytecodes, and the loop may be asleep.
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._drain(), name="django_sockets drain")

    async def _drain(self) -> None:
        logger.info("SIGTERM: closing all websockets")
        try:
            await drain()
        except Exception:
            logger.exception("the drain failed")
        finally:
            self.previous(signal.SIGTERM, None)


def chain_sigterm(loop: asyncio.AbstractEventLoop) -> None:
    """Drain on SIGTERM before the server's handler runs. Only the first call for a loop acts.

    This does nothing outside the main thread, where Python has no signals, and with the setting
    `drain_on_signal=False`. It also does nothing if no Python handler is installed: the server then
    catches the signal in another way or in another process, and could not be called after a drain.

    Args:
        loop: the running loop.
    """
    if loop in _seen:
        return
    forget_closed(_seen)
    _seen[loop] = None  # The result holds for as long as the loop runs.
    if threading.current_thread() is not threading.main_thread():
        return
    try:
        settings = default_config().settings
    except ConfigurationError:  # The first use of the configuration reports it.
        settings = Settings()
    previous = signal.getsignal(signal.SIGTERM)
    if not settings.drains_on_signal or not callable(previous) or isinstance(previous, _Chained):
        return
    if "noop" in getattr(previous, "__name__", ""):
        return  # `loop.add_signal_handler` wakes the loop by a descriptor, not by this handler.
    signal.signal(signal.SIGTERM, _Chained(loop, previous))


def unchain_sigterm() -> None:
    """Restore the server's handler."""
    _seen.pop(asyncio.get_running_loop(), None)
    if threading.current_thread() is threading.main_thread():
        current = signal.getsignal(signal.SIGTERM)
        if isinstance(current, _Chained):
            signal.signal(signal.SIGTERM, current.previous)
