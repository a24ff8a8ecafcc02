"""Reads from several independent hosts, each for its own channels, as one result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ..errors import HistoryError, PresenceError
from ..url import BrokerURL
from .host_subscriptions import cause_of

__all__ = ["read_from_hosts"]

Found = TypeVar("Found")


async def read_from_hosts(
    url: BrokerURL,
    channels: Sequence[str],
    by_part: Callable[[Iterable[str]], Mapping[int, list[int]]],
    read: Callable[[int, list[str]], Awaitable[Mapping[str, Found]]],
    error: type[HistoryError] | type[PresenceError],
) -> dict[str, Found]:
    """Read channels from all hosts at once.

    Args:
        url: names all hosts.
        by_part: returns the index of a part -> indexes in the channels.
        read: reads some channels from the part with an index; raises `error`.

    Returns:
        channel -> what was read, in the order of `channels`.

    Raises:
        HistoryError, PresenceError: the `error`, if one host failed or several. It names them all,
            and the channels that could not be read.
    """
    reads = [
        read(number, [channels[place] for place in places])
        for number, places in by_part(channels).items()
    ]
    found: dict[str, Found] = {}
    failed: list[HistoryError | PresenceError] = []
    for answer in await asyncio.gather(*reads, return_exceptions=True):
        if isinstance(answer, error):
            failed.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.update(answer)
    if failed:
        problem = "; ".join(f"{one.url}: {one.reason}" for one in failed)
        missing = [channel for channel in channels if channel not in found]
        raise error(url, problem, channels=missing) from cause_of(failed[0])
    return {channel: found[channel] for channel in channels}
