"""The hubs that sockets share: one for each event loop and configuration."""

from __future__ import annotations

import asyncio
import logging
import threading
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.

from ..conf import Config
from ..forks import PerProcess
from ..hub.hub import Hub, hub_on
from ..hub.process import hubs_of_process
from ..loops import forget_closed
from .startup import announce

__all__ = [
    "close_shared_hubs",
    "existing_hub",
    "hubs_of_running_loop",
    "local_hubs",
    "set_draining",
    "shared_hub",
]

logger = logging.getLogger("django_sockets")


class _SharedHubs:
    """The shared hubs of one process, and the loops that accept no more sockets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_loop: dict[asyncio.AbstractEventLoop, dict[Config, Hub]] = {}
        self.draining: dict[asyncio.AbstractEventLoop, None] = {}


_shared = PerProcess(_SharedHubs)


def shared_hub(config: Config, loop: asyncio.AbstractEventLoop | None = None) -> Hub:
    """The hub that the sockets of the running loop share. It is opened on first use.

    Args:
        loop: the running loop, if the caller knows it: before Python 3.12, asking for it costs a
            system call.
    """
    shared = _shared.current
    loop = loop or asyncio.get_running_loop()
    hubs = shared.by_loop.get(loop)
    if hubs is None:
        with shared.lock:
            forget_closed(shared.by_loop)
            hubs = shared.by_loop.setdefault(loop, {})
    hub = hubs.get(config)
    if hub is None or hub.closed:
        announce(config)
        hub = hubs[config] = Hub(config)
        hub.connections.draining = loop in shared.draining
    return hub


def existing_hub(loop: asyncio.AbstractEventLoop, config: Config) -> Hub | None:
    """The open hub of a loop for a configuration: the shared one, or one of `open_hub`."""
    hub = _shared.current.by_loop.get(loop, {}).get(config)
    return hub if hub is not None and not hub.closed else hub_on(loop, config)


def local_hubs() -> list[Hub]:
    """The open hubs of this process: one for each event loop and configuration, and of `open_hub`.

    The list includes the hubs of the library's own loop, through which code without a loop
    publishes, such as a view or a task. The hubs of the running loop come first, and among them
    the oldest. A forked child has none of the hubs of its parent. You may call this on any thread.
    Outside the thread of its loop, use only `config` and `stats` of a hub.
    """
    here = running_loop()
    hubs = [hub for hub in hubs_of_process() if not (hub.closed or hub.loop.is_closed())]
    return sorted(hubs, key=lambda hub: hub.loop is not here)


def hubs_of_running_loop() -> list[Hub]:
    """The open shared hubs of the running loop, one for each configuration."""
    return _open(_shared.current.by_loop.get(asyncio.get_running_loop(), {}))


def _open(hubs: dict[Config, Hub]) -> list[Hub]:
    return [hub for hub in list(hubs.values()) if not hub.closed]


def set_draining() -> None:
    """Refuse new sockets on the running loop from now on."""
    draining = _shared.current.draining
    forget_closed(draining)
    draining[asyncio.get_running_loop()] = None
    for hub in hubs_of_running_loop():
        hub.connections.draining = True


async def close_shared_hubs() -> None:
    """Close every shared hub of the running loop."""
    hubs = _shared.current.by_loop.pop(asyncio.get_running_loop(), {})
    for hub in hubs.values():
        try:
            await hub.aclose()
        except Exception:
            logger.exception(
                "%s: closing the broker failed", hub.config.url, extra={"broker": hub.config.url}
            )
