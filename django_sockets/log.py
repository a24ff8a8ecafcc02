"""Logging that a client can neither flood nor forge.

`LogThrottle` logs each kind of message once per interval, with a count of the others. `shown` is
the form of a foreign text in a log line. A filter limits every record of the logger
`django_sockets` to one line of bounded length, also if it quotes a server or an exception. The
filter also gives every record the attributes in `FIELDS`. docs/logging.md lists the messages.

Any module may import this one. It imports nothing of this package.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TypeAlias

__all__ = ["FIELDS", "LogThrottle", "shown", "whereabouts"]

FIELDS = (
    "broker",
    "channel",
    "code",
    "count",
    "counter",
    "hook",
    "middleware",
    "path",
    "reason",
    "repeats",
    "seconds",
    "socket",
    "status",
    "template",
)
"""The attributes of every record of the logger `django_sockets`; None where one does not apply."""

SHOWN_CHARACTERS = 200
LINE_CHARACTERS = 2000
TRACEBACK_CHARACTERS = 20_000
_KEYS_KEPT = 1024
_EXCEPTION = re.compile(r"[\w.<>]+(: |$)")
"""The last line of a traceback: the class and the message."""

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
        self,
        level: int,
        key: str,
        message: str,
        *args: object,
        exc_info: ExcInfo = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log `message % args`, or only count it if `key` was logged often enough.

        Args:
            key: the kind of the message. It must not contain text of a client, who could flood the
                log with new keys.
            exc_info: an exception to log with its traceback.
            extra: attributes of the record; their names are in `FIELDS`.
        """
        now = time.monotonic()
        first, count = self._seen.get(key, (float("-inf"), 0))
        if now - first < self._interval_seconds:
            self._seen[key] = (first, count + 1)
            if count < self._burst:
                self._logger.log(level, message, *args, exc_info=exc_info, extra=extra)
            return
        if len(self._seen) >= _KEYS_KEPT:
            self._seen.clear()
        self._seen[key] = (now, 1)
        if count > self._burst:
            repeats = count - self._burst
            extra = {**(extra or {}), "repeats": repeats, "template": message}
            message += f" ({repeats} more like this since the last time)"
        self._logger.log(level, message, *args, exc_info=exc_info, extra=extra)


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
    """Escapes control characters and shortens long texts; adds the attributes in `FIELDS`."""

    def filter(self, record: logging.LogRecord) -> bool:
        values = record.__dict__
        values.setdefault("template", record.msg)
        for name in FIELDS:
            values[name] = _field(values.get(name))
        _escape_traceback(record)
        try:
            message = record.getMessage()
        except Exception:  # The log handlers report wrong arguments.
            return True
        line = _one_line(message)
        if line is not message:
            record.msg, record.args = line, None
        return True


def _field(value: object) -> object:
    """The value of an attribute: a number, None, or a text of one line."""
    if value is None or isinstance(value, (int, float)):
        return value
    return _one_line(str(value))


def _one_line(text: str) -> str:
    """A text with line breaks, control and invisible characters as escapes, and not too long."""
    text = _shortened(text)
    return text if text.isprintable() else _shortened("".join(map(_printable, text)))


def _shortened(text: str, most_characters: int = LINE_CHARACTERS) -> str:
    """A text without its middle if it is too long. The end often holds the reason."""
    if len(text) <= most_characters:
        return text
    half = most_characters // 2
    return f"{text[:half]} ... {text[-half:]}"


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _escape_traceback(record: logging.LogRecord) -> None:
    """Make sure that the text of an exception cannot look like other lines of the log.

    A formatter of its own, such as one for JSON, still formats a traceback without such a text.
    """
    if not record.exc_info or record.exc_info[1] is None or record.exc_text:
        return
    parts = traceback.format_exception(record.exc_info[1])
    clean = [_traceback_part(part) for part in parts]
    if clean == parts:
        return
    record.exc_text = _shortened("".join(clean).rstrip("\n"), TRACEBACK_CHARACTERS)


def _traceback_part(part: str) -> str:
    """One part of a traceback: a place in a file has several lines, a message has one."""
    part = part.removesuffix("\n")
    if not part.startswith((" ", "\n", "Traceback (")):
        text = _one_line(part)
        # A line of a note (PEP 678) may be any text.
        return f"{text}\n" if _EXCEPTION.match(text) else f"  {text}\n"
    return "\n".join(map(_one_line, part.split("\n"))) + "\n"


logging.getLogger("django_sockets").addFilter(_OneLine())
