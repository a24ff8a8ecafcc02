"""Logging that a client can neither flood nor forge.

`LogThrottle` says each thing once per interval, with a count of the rest. `shown` is what a log
line has of a text that somebody else wrote. Every record of our logger is one line of bounded
length: a filter sees to it, also for what a server or an application's exception says.

Anyone may import this module; it imports nothing of ours.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import TypeAlias

__all__ = ["LogThrottle", "shown", "whereabouts"]

SHOWN_CHARACTERS = 200
LINE_CHARACTERS = 2000
_KEYS_KEPT = 1024

ExcInfo: TypeAlias = BaseException | None


class LogThrottle:
    """Passes a message on at most `burst` times per `interval_seconds` and key.

    Args:
        logger: where messages go.
        interval_seconds: how long messages of the same key are counted only, after the first one.
        burst: messages of the same key in that time.
    """

    def __init__(self, logger: logging.Logger, interval_seconds: float, burst: int = 1) -> None:
        self._logger = logger
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._seen: dict[str, tuple[float, int]] = {}

    def log(
        self, level: int, key: str, message: str, *args: object, exc_info: ExcInfo = None
    ) -> None:
        """Log `message % args` unless `key` was logged within the interval; then only count it.

        Args:
            key: never a text that a client gives: with ever new keys it could flood the log.
            exc_info: an exception to log with its traceback.
        """
        now = time.monotonic()
        first, count = self._seen.get(key, (float("-inf"), 0))
        if now - first < self._interval_seconds:
            self._seen[key] = (first, count + 1)
            if count < self._burst:
                self._logger.log(level, message, *args, exc_info=exc_info)
            return
        if len(self._seen) >= _KEYS_KEPT:
            self._seen.clear()
        self._seen[key] = (now, 1)
        if count > self._burst:
            message += f" ({count - self._burst} more like this since the last time)"
        self._logger.log(level, message, *args, exc_info=exc_info)


def shown(value: object, most_characters: int = SHOWN_CHARACTERS) -> str:
    """What a log line has of a value that a client gave: its `repr`, cut.

    Args:
        value: a text, bytes, or anything else with a repr.
    """
    if isinstance(value, (str, bytes)) and len(value) > most_characters:
        return f"{value[:most_characters]!r}... ({len(value)} in all)"
    text = repr(value)
    return text if len(text) <= 4 * most_characters + 3 else f"{text[:most_characters]}..."


def whereabouts(exc: BaseException) -> str:
    """The type of an exception and the line that raised it: a key for `LogThrottle`."""
    trace: TracebackType | None = exc.__traceback__
    if trace is None:
        return type(exc).__name__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(exc).__name__} {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class _OneLine(logging.Filter):
    """Writes control characters as escapes, and cuts what is too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # The handlers report wrong arguments, and do not raise.
            return True
        if len(message) > LINE_CHARACTERS:
            # A reason stands at the end.
            half = LINE_CHARACTERS // 2
            record.msg, record.args = f"{message[:half]} ... {message[-half:]}", None
            message = record.msg
        if not message.isprintable():
            record.msg, record.args = "".join(map(_printable, message)), None
        return True


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


logging.getLogger("django_sockets").addFilter(_OneLine())
