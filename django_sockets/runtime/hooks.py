"""Calling an application's hooks: `async def` on the event loop, `def` on a worker thread."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from ..conf import Settings
from ..optional_django import database_hygiene
from .async_hygiene import tidied, with_hygiene
from .worker_threads import worker_pool

__all__ = [
    "ThreadCall",
    "call_hook",
    "call_in_thread",
    "keep_functions",
    "takes_code",
    "takes_position",
    "takes_updated",
]

is_coroutine_function = lru_cache(maxsize=1024)(inspect.iscoroutinefunction)
"""Whether a hook runs on the event loop. For a bound method, pass its `__func__`."""


ThreadCall: TypeAlias = Callable[[Callable[..., Any], Sequence[Any]], Awaitable[Any]]
"""Calls a `def` hook with its arguments on a worker thread; see `call_in_thread`."""


def call_hook(
    hook: Callable[..., Any], args: Sequence[Any], in_thread: ThreadCall
) -> Awaitable[Any]:
    """Call a hook: an `async def` on the running event loop, a `def` through `in_thread`.

    Every hook of an application is called here: those of sockets and those of middleware.

    Returns:
        An awaitable of the hook's result. It raises the hook's errors.
    """
    if is_coroutine_function(getattr(hook, "__func__", hook)):
        # As `tidied`, without one more call for each frame.
        return with_hygiene(hook(*args)) if "django.db" in sys.modules else hook(*args)
    return in_thread(hook, args)


async def call_in_thread(
    settings: Settings, hook: Callable[..., Any], args: Sequence[Any], *, handshake: bool = False
) -> Any:
    """Call a `def` on a worker thread and return its result; its errors are raised.

    Args:
        settings: the first call of the process takes the number of worker threads from it.
        handshake: see `WorkerPool.run`.
    """
    result = await worker_pool(settings).run(_in_thread, hook, args, handshake=handshake)
    # A decorator may hide that a hook is an `async def`.
    return await tidied(result) if inspect.isawaitable(result) else result


def _in_thread(hook: Callable[..., Any], args: Sequence[Any]) -> Any:
    with database_hygiene():
        return hook(*args)


@lru_cache(maxsize=1024)
def takes_code(disconnect: Callable[..., Any]) -> bool:
    """Whether a `disconnect` method takes an argument besides `self`."""
    return len(inspect.signature(disconnect).parameters) > 1


@lru_cache(maxsize=1024)
def takes_position(hook: Callable[..., Any]) -> bool:
    """Whether a hook for broadcasts has a parameter `position`, which can be passed by its name."""
    parameter = inspect.signature(hook).parameters.get("position")
    return parameter is not None and parameter.kind in _BY_NAME


def takes_updated(hook: Callable[..., Any]) -> bool:
    """Whether a `presence` method takes a fourth argument besides `self`."""
    parameters = list(inspect.signature(hook).parameters.values())
    several = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    return several or sum(one.kind in _POSITIONAL for one in parameters) > 4


def keep_functions(cls: type, names: Iterable[str]) -> None:
    """Wrap plain functions among a class's attributes in `staticmethod`.

    Without this, `ws_decoder = json.loads` would be called with the instance as its first argument.
    A function whose first parameter is `self`, or that needs two arguments, stays a method.
    """
    for name in names:
        value = inspect.getattr_static(cls, name, None)
        binds = callable(value) and hasattr(value, "__get__") and not isinstance(value, _WRAPPED)
        if binds and not _is_method(value):
            setattr(cls, name, staticmethod(value))


_WRAPPED = (staticmethod, classmethod)


def _is_method(function: Any) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # Some functions written in C have no signature.
        return False
    positional = [one for one in parameters if one.kind in _POSITIONAL]
    required = [one for one in positional if one.default is one.empty]
    return len(required) > 1 or bool(positional and positional[0].name == "self")


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
