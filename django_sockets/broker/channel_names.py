"""The rules for names of channels."""

from __future__ import annotations

import functools
import re

from ..errors import ChannelError
from .broker import Limits

__all__ = ["check_channel"]


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@functools.lru_cache(maxsize=4096)
def _size_bytes(channel: str) -> int:
    """The size of a channel name that is valid apart from its length.

    The limit is not an argument, because the cache is faster with a single argument.
    """
    try:
        size = len(channel.encode())
    except UnicodeEncodeError:
        raise ChannelError(channel, "cannot be written as UTF-8: use valid text") from None
    if not size:
        raise ChannelError(channel, "is empty: give it a name")
    if _CONTROL.search(channel):
        raise ChannelError(channel, "contains control characters: remove them")
    if "*" in channel:
        raise ChannelError(
            channel, "contains '*': there are no wildcard subscriptions, name each channel"
        )
    return size


def check_channel(channel: object, max_bytes: int = Limits.max_channel_bytes) -> str:
    """Return the channel if its name is valid.

    Args:
        channel: 1 to `max_bytes` bytes of UTF-8, without control characters and without `*`.
        max_bytes: the broker's limit.

    Raises:
        ChannelError: the name is not valid. The message says why and what to do.
    """
    if not isinstance(channel, str):
        raise ChannelError(channel, f"is {type(channel).__name__}, not str: use str(...)")
    size = _size_bytes(channel)
    if size > max_bytes:
        raise ChannelError(channel, f"has {size} bytes: use at most {max_bytes} bytes of UTF-8")
    return channel
