"""Calling an application's hooks: `async def` on the event loop, `def` on a worker thread."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

from .conf import Settings, database_hygiene
from .runtime import worker_pool
from .tidying import tidied

__all__ = ["call_hook", "call_in_thread", "is_coroutine_function", "takes_code"]

is_coroutine_function = lru_cache(maxsize=1024)(inspect.iscoroutinefunction)
"""Whether a hook belongs on the event loop; of a method, ask for its function."""


def call_hook(
    settings: Settings, hook: Callable[..., Any], *args: Any, handshake: bool = False
) -> Awaitable[Any]:
    """Call a hook where it belongs; await what this returns for its result.

    Args:
        settings: for the worker threads, if they are still to be made.
        handshake: see `WorkerPool.run`.

    Raises:
        What the hook raises.
    """
    if is_coroutine_function(getattr(hook, "__func__", hook)):
        return tidied(hook(*args))
    return call_in_thread(settings, hook, args, handshake=handshake)


async def call_in_thread(
    settings: Settings, hook: Callable[..., Any], args: Sequence[Any], *, handshake: bool = False
) -> Any:
    """Call a `def` on a worker thread; raises what it raises."""
    result = await worker_pool(settings).run(_in_thread, hook, args, handshake=handshake)
    # A decorated `async def` may look like a `def`.
    return await tidied(result) if inspect.isawaitable(result) else result


def _in_thread(hook: Callable[..., Any], args: Sequence[Any]) -> Any:
    with database_hygiene():
        return hook(*args)


@lru_cache(maxsize=1024)
def takes_code(disconnect: Callable[..., Any]) -> bool:
    """Whether a `disconnect` method takes anything besides `self`."""
    return len(inspect.signature(disconnect).parameters) > 1
