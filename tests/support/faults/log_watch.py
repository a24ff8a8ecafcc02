"""Detects errors in the log, exceptions that no code retrieved, and tasks that did not end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Iterator
from typing import Any

__all__ = ["Watch", "watching"]


class Watch(logging.Handler):
    """Keeps the log records of the library.

    Attributes:
        records: (loop time, record), warnings and above.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[tuple[float, logging.LogRecord]] = []
        self._loop = asyncio.get_running_loop()
        self._unhandled: list[dict[str, Any]] = []
        self._before = asyncio.all_tasks()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((self._loop.time(), record))

    def unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._unhandled.append(context)

    def logged(self, words: str, since: float = 0.0) -> list[float]:
        """Return the loop times at which a message with these words was logged."""
        return [at for at, r in self.records if at >= since and words in r.getMessage()]

    def check(self) -> None:
        """Check the records and tasks. Call it after everything was closed.

        Raises:
            AssertionError: an error was logged or not retrieved, or a task still runs.
        """
        errors = [r.getMessage() for _, r in self.records if r.levelno >= logging.ERROR]
        assert not errors, f"logged as errors: {errors[:3]}"
        gc.collect()
        assert not self._unhandled, f"nobody handled: {self._unhandled[:3]}"
        left = {task for task in asyncio.all_tasks() - self._before if not task.done()}
        # A proxy belongs to the test, which may still need it.
        left = {task for task in left if "FaultProxy" not in repr(task.get_coro())}
        assert not left, f"tasks left: {left}"


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch inside a `with`."""
    watch, loop = Watch(), asyncio.get_running_loop()
    loggers = [logging.getLogger(name) for name in ("django_sockets", "asyncio")]
    former = loop.get_exception_handler()
    loop.set_exception_handler(watch.unhandled)
    for logger in loggers:
        logger.addHandler(watch)
    try:
        yield watch
    finally:
        for logger in loggers:
            logger.removeHandler(watch)
        loop.set_exception_handler(former)
