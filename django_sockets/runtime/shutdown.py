"""Ending a process without a jolt: sockets are closed with 1012 over a while, the broker last.

Servers close websockets at once on SIGTERM and tell the application afterwards, if at all. So the
server's own signal handler is wrapped: first the drain, then the server's handler. It is wrapped at
lifespan start-up, or at the first handshake where a server or an application has no lifespan.
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

    The closes are spread over the time, so that the clients do not all come back at once; each
    waits for the handler at work. `disconnect` runs as always. From now on this loop refuses
    handshakes with 503. A hub whose handlers take longer stays open, and the log says so.

    Args:
        seconds: None for the setting `drain_seconds`.
    """
    set_draining()
    drains = [hub.drain(seconds) for hub in hubs_of_running_loop()]
    # One that fails leaves the others their time.
    for problem in await asyncio.gather(*drains, return_exceptions=True):
        if isinstance(problem, BaseException):
            raise problem


class _Chained:
    """A signal handler: drains, and then calls the one that was there before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, previous: Any) -> None:
        self._loop = loop
        self.previous = previous
        self._task: asyncio.Task[None] | None = None
        self._called = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._called or self._loop.is_closed():
            self.previous(number, frame)  # A second signal means: now.
            return
        self._called = True
        # Python handlers run between any two steps of the loop, which may be asleep.
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
    """Drain on SIGTERM before the server's handler runs; at most once for each event loop.

    Args:
        loop: the running one.

    Nothing happens outside the main thread, where Python has no signals; with the setting
    `drain_on_signal=False`; and where no handler of Python's is installed: then the server catches
    the signal in another way or in another process, and nobody could be called afterwards.
    """
    if loop in _seen:
        return
    forget_closed(_seen)
    _seen[loop] = None  # Whatever is found now holds for as long as the loop runs.
    if threading.current_thread() is not threading.main_thread():
        return
    try:
        settings = default_config().settings
    except ConfigurationError:  # Said where it is used.
        settings = Settings()
    previous = signal.getsignal(signal.SIGTERM)
    if not settings.drains_on_signal or not callable(previous) or isinstance(previous, _Chained):
        return
    if "noop" in getattr(previous, "__name__", ""):
        return  # `loop.add_signal_handler`: the loop is woken by a descriptor, past this handler.
    signal.signal(signal.SIGTERM, _Chained(loop, previous))


def unchain_sigterm() -> None:
    """Put the server's handler back."""
    _seen.pop(asyncio.get_running_loop(), None)
    if threading.current_thread() is threading.main_thread():
        current = signal.getsignal(signal.SIGTERM)
        if isinstance(current, _Chained):
            signal.signal(signal.SIGTERM, current.previous)
