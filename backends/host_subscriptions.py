"""Subscriptions at several independent hosts: a call subscribes to all of its channels or to none.

`sharded.py` has one set of them for channels and one for watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from ..errors import SubscribeError
from ..url import BrokerURL
from .interest import Interest, keep, withdraw

__all__ = ["HostSubscriptions", "cause_of"]


class HostSubscriptions:
    """Which channels are wanted, at the host of each.

    Args:
        by_part: returns the index of a part -> indexes in the channels.
        end: ends subscriptions at the part with an index.
    """

    def __init__(
        self,
        url: BrokerURL,
        by_part: Callable[[Iterable[str]], Mapping[int, list[int]]],
        end: Callable[[int, list[str]], Awaitable[None]],
    ) -> None:
        self._url = url
        self._by_part = by_part
        self._end = end
        self._interests: dict[str, Interest] = {}

    async def subscribe(
        self, channels: Sequence[str], begin: Callable[[int, list[str]], Awaitable[None]]
    ) -> None:
        """Subscribe to channels.

        Args:
            begin: subscribes at the part with an index.

        Raises:
            SubscribeError: a host failed; none of the channels that this call requested first is
                subscribed to.
        """
        call = object()
        for channel in channels:
            self._interests.setdefault(channel, Interest()).begin(call)
        tasks = [
            asyncio.ensure_future(
                self._subscribe(number, [channels[place] for place in places], call, begin)
            )
            for number, places in self._by_part(channels).items()
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException as exc:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.unsubscribe(withdraw(self._interests, channels, call))
            if isinstance(exc, SubscribeError):
                problem = f"{exc.url}: {exc.reason}"
                raise SubscribeError(self._url, problem, channels=channels) from cause_of(exc)
            raise
        keep(self._interests, channels, call)

    async def _subscribe(
        self,
        number: int,
        channels: Sequence[str],
        call: object,
        begin: Callable[[int, list[str]], Awaitable[None]],
    ) -> None:
        """Subscribe at one host, except to channels that were unsubscribed meanwhile."""
        interests = (self._interests.get(channel) for channel in channels)
        wanted = [
            channel
            for channel, interest in zip(channels, interests, strict=True)
            if interest is not None and call in interest.calls
        ]
        if wanted:
            await begin(number, wanted)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe from channels, each at its host."""
        for channel in channels:
            self._interests.pop(channel, None)
        for number, places in self._by_part(channels).items():
            # A subscribe call may have begun while an earlier part was awaited, and it decides.
            ended = [channels[place] for place in places if channels[place] not in self._interests]
            if ended:
                await self._end(number, ended)


def cause_of(error: BaseException) -> BaseException:
    """The cause that the error of one host names, or else that error."""
    return error.__cause__ or error
