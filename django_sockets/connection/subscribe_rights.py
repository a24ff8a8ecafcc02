"""The hook `may_subscribe`, which decides about each channel that a client asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .socket_class import Socket

__all__ = ["may_subscribe_hook"]


def may_subscribe_hook(socket: Socket, presence: bool) -> Callable[[str], Any]:
    """The hook of a socket, to be called with the name of a channel.

    Args:
        presence: the client asks for the members of the channel, too. A hook that has a parameter
            of this name is told so.
    """
    hook: Any = socket.may_subscribe
    return partial(hook, presence=True) if presence and _takes_presence(type(socket)) else hook


@lru_cache(maxsize=1024)
def _takes_presence(cls: type[Any]) -> bool:
    return "presence" in inspect.signature(cls.may_subscribe).parameters
