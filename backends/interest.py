"""Which callers want a channel: subscribe calls under way, and whether one has succeeded.

A subscribe call that fails or is cancelled withdraws only the channels that no other call asked
for. An unsubscribe call supersedes the subscribe calls before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["Interest", "keep", "withdraw"]


class Interest(msgspec.Struct, eq=False):
    """The interest in one channel.

    Attributes:
        kept: whether a subscribe call for the channel has succeeded.
        calls: the subscribe calls that have not returned yet, acknowledged or not.
    """

    kept: bool = False
    calls: tuple[Any, ...] = ()

    def begin(self, call: object) -> None:
        """Note that a subscribe call for the channel has begun."""
        self.calls += (call,)

    def end(self, call: object) -> bool:
        """Note that a call has ended; False if an unsubscribe superseded it."""
        if call not in self.calls:
            return False
        if len(self.calls) == 1:  # True for nearly every call.
            self.calls = ()
        else:
            self.calls = tuple(other for other in self.calls if other is not call)
        return True


def keep(interests: Mapping[str, Interest], channels: Iterable[str], call: object) -> None:
    """A subscribe call has succeeded: keep its channels, except those unsubscribed meanwhile."""
    for channel in channels:
        interest = interests.get(channel)
        if interest is not None and interest.end(call):
            interest.kept = True


def withdraw(interests: Mapping[str, Interest], channels: Iterable[str], call: object) -> list[str]:
    """A subscribe call has failed: returns the channels that only this call asked for."""
    orphans = []
    for channel in channels:
        interest = interests.get(channel)
        if interest is not None and interest.end(call) and not (interest.kept or interest.calls):
            orphans.append(channel)
    return orphans
