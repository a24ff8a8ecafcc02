"""Calling an application's hooks: `async def` on the event loop, `def` on a worker thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .conf import database_hygiene
from .workers import WorkerPool

__all__ = ["call_hook", "takes_code"]


async def call_hook(pool: WorkerPool, hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook where it belongs and return its result.

    Raises:
        What the hook raises.
    """
    if inspect.iscoroutinefunction(hook):
        return await hook(*args)
    result = await pool.run(_in_thread, hook, args)
    # A decorated `async def` may look like a `def`.
    return await result if inspect.isawaitable(result) else result


def _in_thread(hook: Callable[..., Any], args: Sequence[Any]) -> Any:
    with database_hygiene():
        return hook(*args)


@lru_cache(maxsize=1024)
def takes_code(disconnect: Callable[..., Any]) -> bool:
    """Whether a `disconnect` method takes anything besides `self`."""
    return len(inspect.signature(disconnect).parameters) > 1
