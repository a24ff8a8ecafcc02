"""Logging that a client can neither flood nor forge.

`LogThrottle` logs each kind of message once per interval, with a count of the others. `shown` is
the form of a foreign text in a log line. A filter limits every record of the logger
`django_sockets` to one line of bounded length, also if it quotes a server or an exception.

Any module may import this one. It imports nothing of this package.
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
    """Logs at most `burst` messages of the same key per interval.

    Args:
        logger: the logger.
        interval_seconds: the length of the interval, which begins with its first message.
        burst: the most messages of the same key in one interval; others are counted.
    """

    def __init__(self, logger: logging.Logger, interval_seconds: float, burst: int = 1) -> None:
        self._logger = logger
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._seen: dict[str, tuple[float, int]] = {}

    def log(
        self, level: int, key: str, message: str, *args: object, exc_info: ExcInfo = None
    ) -> None:
        """Log `message % args`, or only count it if `key` was logged often enough.

        Args:
            key: the kind of the message. It must not contain text of a client, who could flood the
                log with new keys.
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
    """The form of a client's value in a log line: its `repr`, shortened.

    Args:
        value: a text, bytes, or anything else with a repr.
    """
    if isinstance(value, (str, bytes)) and len(value) > most_characters:
        return f"{value[:most_characters]!r}... ({len(value)} in all)"
    text = repr(value)
    return text if len(text) <= 4 * most_characters + 3 else f"{text[:most_characters]}..."


def whereabouts(exc: BaseException) -> str:
    """The type of an exception and the line that raised it, as a key for `LogThrottle`."""
    trace: TracebackType | None = exc.__traceback__
    if trace is None:
        return type(exc).__name__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(exc).__name__} {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class _OneLine(logging.Filter):
    """Escapes control characters and shortens long messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # The log handlers report wrong arguments.
            return True
        if len(message) > LINE_CHARACTERS:
            # Keep the end, because it holds the reason.
            half = LINE_CHARACTERS // 2
            record.msg, record.args = f"{message[:half]} ... {message[-half:]}", None
            message = record.msg
        if not message.isprintable():
            record.msg, record.args = "".join(map(_printable, message)), None
        return True


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


logging.getLogger("django_sockets").addFilter(_OneLine())
