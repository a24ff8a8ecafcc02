"""Closing sockets by their tags: "all sockets of user 7", on every process.

Middleware tags sockets through `scope["django_sockets.tags"]`, an application through
`BaseSocketServer.tags`. What is here may be called from anywhere: a view, a task, a signal.
"""

from __future__ import annotations

import functools
from typing import Any

from .conf import Config, Source, load_config
from .connection.close_codes import UNAUTHORIZED
from .errors import ConfigurationError
from .hub.control import check_close_code, close_order, controls, on_missed_orders, tag_texts
from .runtime.background import through_hub
from .runtime.broadcaster_connection import BroadcasterConnection

__all__ = [
    "UNAUTHORIZED",
    "async_close_sockets",
    "close_local_sockets",
    "close_sockets",
    "on_missed_orders",
]


def close_sockets(*, code: int = UNAUTHORIZED, config: Source | None = None, **tags: Any) -> None:
    """Close every socket that carries all of the tags, on every process.

    Those of this process are closed first, whatever happens to the order for the others. It returns
    when that order is published; the others close when it reaches them. On a thread that runs an
    event loop it is scheduled, and a failure is logged: await `async_close_sockets` there.

    Args:
        code: the close code, 1000 or 3000 to 4999.
        config: where the sockets are; None for the default configuration, and in this process for
            sockets of any.
        tags: at least one, such as user=7. An object that has a `pk` stands for that, anything
            else for its `str()`.

    Raises:
        ConfigurationError: no tag, a tag that is None, or a wrong code; nothing was closed.
        PublishError: the order may not have reached the other processes.
    """
    texts = _checked(code, tags)
    loaded = load_config(config)
    _close_local(texts, code, None if config is None else loaded)
    order = close_order(texts, code)
    _publisher(loaded).calls.plain(lambda: _publish(loaded, order))


async def async_close_sockets(
    *, code: int = UNAUTHORIZED, config: Source | None = None, **tags: Any
) -> None:
    """See `close_sockets`; a cancelled call may or may not have published the order."""
    texts = _checked(code, tags)
    loaded = load_config(config)
    _close_local(texts, code, None if config is None else loaded)
    await _publish(loaded, close_order(texts, code))


def close_local_sockets(*, code: int = UNAUTHORIZED, **tags: Any) -> int:
    """Close every socket of this process that carries all of the tags.

    It may be called on any thread and does not wait: the sockets close on their own event loops.

    Returns:
        How many.

    Raises:
        ConfigurationError: see `close_sockets`.
    """
    return _close_local(_checked(code, tags), code, None)


def _checked(code: int, tags: dict[str, Any]) -> dict[str, str]:
    check_close_code(code)
    texts = tag_texts(tags)
    missing = [name for name in tags if name not in texts]
    if missing:
        raise ConfigurationError(f"tag {missing[0]}=None closes nothing: give it a value")
    if not texts:
        raise ConfigurationError("name at least one tag of the sockets to close, such as user=7")
    return texts


def _close_local(tags: dict[str, str], code: int, config: Config | None) -> int:
    count = 0
    for control in controls():
        if config is not None and control.config.url != config.url:
            continue
        matching = len(control.matching(tags))
        if matching:
            try:
                control.loop.call_soon_threadsafe(control.close, tags, code)
            except RuntimeError:
                continue  # That loop has ended, and its sockets with it.
            count += matching
    return count


async def _publish(config: Config, order: bytes) -> None:
    await through_hub(config, lambda hub: hub.publish_control(order))


@functools.lru_cache(maxsize=16)
def _publisher(config: Config) -> BroadcasterConnection:
    """Makes the plain calls where there is a connection, in order."""
    return BroadcasterConnection(config)
