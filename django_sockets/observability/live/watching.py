"""Successive surveys of one hub, as pictures of all processes; and taking part without sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from ...conf import Source, load_config
from ...errors import BrokerClosed, BrokerError
from ...hub.hub import Hub
from ...hub.survey.asking import WINDOW_SECONDS, Survey
from ...runtime import background_loop, shared_hub
from .overview import Overview, Snapshot

__all__ = ["INTERVAL_SECONDS", "answer_surveys", "snapshots"]

INTERVAL_SECONDS = 2.0
"""The default time from one question to the next one."""


async def snapshots(
    hub: Hub,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    window_seconds: float = WINDOW_SECONDS,
) -> AsyncGenerator[Snapshot, None]:
    """Ask all processes again and again, on the event loop of the hub.

    Without a connection to the broker, a snapshot has a `problem`, and the next one tries again.
    Close the generator when it is no longer needed: `async with contextlib.aclosing(...)`.

    Args:
        interval_seconds: the time from one question to the next one.
        window_seconds: the time for which answers are collected before a snapshot is made. Answers
            that arrive later are in the next one.

    Raises:
        BrokerClosed: the hub was closed.
    """
    overview = Overview(str(hub.config.url))
    while True:
        try:
            async with Survey(hub) as survey:
                while True:
                    began = time.monotonic()
                    overview.add(await survey.ask(window_seconds), time.monotonic())
                    yield overview.snapshot(time.monotonic(), time.time())
                    await asyncio.sleep(max(0.0, began + interval_seconds - time.monotonic()))
        except BrokerClosed:
            raise
        except BrokerError as exc:
            overview.failed(str(exc), time.monotonic())
        yield overview.snapshot(time.monotonic(), time.time())
        await asyncio.sleep(interval_seconds)


def answer_surveys(config: Source | None = None) -> None:
    """Let this process answer surveys although it may have no websockets or streams.

    A process with open websockets or streams answers without this call. A worker that only
    publishes, such as a WSGI process or a worker of a task queue, appears on the live page and in
    `sockets top` after it. It costs one subscription on a connection of its own. Call it once when
    the process starts, after a fork.

    Args:
        config: the broker; None for the configured one.

    Raises:
        ConfigurationError: the URL is wrong.
        ThreadError: the thread of the library's own event loop cannot be started.
    """
    loaded = load_config(config)
    loop = background_loop()
    with contextlib.suppress(RuntimeError):  # The interpreter exits.
        loop.call_soon_threadsafe(lambda: shared_hub(loaded).surveys.stay())
