"""The report about the broker, the one of `python -m django_sockets check`, for the live page."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from ...check import check
from ...conf import Config
from ...deadlines import with_deadline

__all__ = ["BrokerCheck"]

MOST_SECONDS = 20.0


class BrokerCheck:
    """Checks one broker, at most once at a time. Its methods run on one event loop."""

    def __init__(self, config: Config, source: str) -> None:
        self._config = config
        self._source = source
        self._running: asyncio.Task[dict[str, Any]] | None = None

    async def report(self) -> dict[str, Any]:
        """The fields of `Findings`. Calls at the same time share one check."""
        if self._running is None:
            self._running = asyncio.create_task(self._check(), name="django_sockets broker check")
        return await asyncio.shield(self._running)

    async def _check(self) -> dict[str, Any]:
        try:
            found = await with_deadline(MOST_SECONDS, check(self._config, self._source))
        except asyncio.TimeoutError:
            problem = f"there was no answer within {MOST_SECONDS:g} s"
            return {"ok": False, "broker": str(self._config.url), "problem": problem}
        finally:
            self._running = None
        return dataclasses.asdict(found)
