"""The ASGI extension `websocket.frames`: a server that takes complete frames for a connection.

docs/server-extension.md specifies it; `django_sockets.servers` adds it to uvicorn.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..log import LogThrottle
from ..url import BrokerOptions, suggest

__all__ = ["EXTENSION", "ServerFrames", "check_frames", "server_frames", "wrapper_of"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

EXTENSION = "websocket.frames"
AUTO, ALWAYS, NEVER = FRAMES = ("auto", "always", "never")


class ServerFrames(NamedTuple):
    """The extension as the server of one connection offers it.

    Attributes:
        write: takes complete frames at once and returns True, or takes nothing and returns False.
        drain: returns when `write` takes frames again; raises OSError when the connection has
            ended.
        window_bits: the window of a compressor without context; 0 if the connection has no
            compression that can be shared.
    """

    write: Callable[[bytes], bool]
    drain: Callable[[], Awaitable[None]]
    window_bits: int


def check_frames(value: object) -> str:
    """Return it.

    Raises:
        ConfigurationError: it is none of "auto", "always" and "never".
    """
    if isinstance(value, str) and value in FRAMES:
        return value
    raise ConfigurationError(f"frames = {value!r}; {suggest(str(value), FRAMES)}")


def server_frames(scope: Mapping[str, Any], send: object, frames: str) -> ServerFrames | None:
    """The extension of a connection; None if the server has none, or it must not be used.

    Middleware that wraps `send` wants to see the events. Frames would pass it by, so they are not
    used then, unless the class asks for them.

    Args:
        send: the ASGI callable that the application has got.
        frames: the option of the class, "auto", "always" or "never".
    """
    offer = (scope.get("extensions") or {}).get(EXTENSION)
    if offer is None or frames == NEVER:
        return None
    # Bound methods of one object are equal, but not identical.
    if frames == AUTO and offer["send"] != send:
        wrapper = _name_of(send)
        text = (
            "%s wraps the server's send, so messages are sent one by one; "
            'frames = "always" on the socket class passes it by'
        )
        _throttle.log(logging.INFO, wrapper, text, wrapper, extra={"reason": wrapper})
        return None
    return ServerFrames(offer["write"], offer["drain"], offer["deflate"])


def wrapper_of(scope: Mapping[str, Any], send: object) -> str | None:
    """The name of the callable that wraps the server's `send`, such as "sentry_sdk...".

    Returns:
        None if nothing wraps it, or if the server does not offer prepared frames.
    """
    offer = (scope.get("extensions") or {}).get(EXTENSION)
    return None if offer is None or offer["send"] == send else _name_of(send)


def _name_of(send: object) -> str:
    function = getattr(send, "func", send)  # functools.partial
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{name}"
