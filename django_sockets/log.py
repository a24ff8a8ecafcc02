"""Logging that cannot flood: each thing is said once per interval, with a count of the rest.

Anyone may import this module; it imports nothing of ours.
"""

from __future__ import annotations

import logging
import time

_KEYS_KEPT = 1024


class LogThrottle:
    """Passes a message on at most once per `interval_seconds` and key.

    Args:
        logger: where messages go.
        interval_seconds: at least this long between two messages of the same key.
    """

    def __init__(self, logger: logging.Logger, interval_seconds: float) -> None:
        self._logger = logger
        self._interval_seconds = interval_seconds
        self._seen: dict[str, tuple[float, int]] = {}

    def log(
        self,
        level: int,
        key: str,
        message: str,
        *args: object,
        exc_info: BaseException | None = None,
    ) -> None:
        """Log `message % args` unless `key` was logged within the interval; then only count it."""
        now = time.monotonic()
        last, kept_back = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._interval_seconds:
            self._seen[key] = (last, kept_back + 1)
            return
        if len(self._seen) >= _KEYS_KEPT:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if kept_back:
            message += f" ({kept_back} more like this since the last time)"
        self._logger.log(level, message, *args, exc_info=exc_info)
