"""Removes the entries of dead processes from the channels that a hub watches.

Every hub that watches a channel finds out by itself that a process is dead. Rendezvous hashing
gives the hubs an order, without a message between them: the first one removes the entries at once,
and the others follow half a second apart, unless the diff of the removal has come before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice

from .context import Context
from .own_entries import FIELDS_AT_ONCE
from .replica import Replica

__all__ = ["Reaper", "place_in_order"]

STEP_SECONDS = 0.5
"""Time between two hubs in the order."""
LATEST_PLACE = 3
"""All hubs behind this place in the order act at the same time."""


def place_in_order(channel: str, dead: str, own: str, others: Iterable[str]) -> int:
    """The place of this process among those that may remove the entries of a dead one: 0 to n.

    Args:
        own: the id of this process.
        others: the ids of the others.
    """

    def weight(process: str) -> bytes:
        text = f"{channel}\0{dead}\0{process}"
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()

    mine = weight(own)
    return sum(weight(other) < mine for other in others if other != own)


class Reaper:
    """Removes entries of dead processes. A removal that fails is begun again by the next look.

    Args:
        outdated: called with a channel whose replica has entries that the server has not.
    """

    def __init__(self, context: Context, outdated: Callable[[str], None]) -> None:
        self._context = context
        self._outdated = outdated
        self._due: set[tuple[str, str]] = set()

    def forget(self, channel: str) -> None:
        """The channel is not watched any more."""
        self._due = {key for key in self._due if key[0] != channel}

    def look(self, channel: str, replica: Replica, dead: Collection[str], own: str) -> None:
        """Remove the entries of the dead on a channel, each in its turn.

        Args:
            dead: the processes whose lease has ended.
            own: the id of this process.
        """
        for process in [one for one in replica.processes if one in dead and one != own]:
            key = channel, process
            if key in self._due:
                continue
            self._due.add(key)
            living = [one for one in replica.processes if one not in dead]
            place = min(LATEST_PLACE, place_in_order(channel, process, own, living))
            remove = partial(self._begin, channel, process, replica)
            if place:
                self._context.after(place * STEP_SECONDS, remove)
            else:
                remove()

    def _begin(self, channel: str, process: str, replica: Replica) -> None:
        self._context.spawn(
            self._remove(channel, process, replica), "remove the entries of a dead process"
        )

    async def _remove(self, channel: str, process: str, replica: Replica) -> None:
        try:
            fields = list(replica.fields_of.get(process, ()))
            left = iter(fields)
            removed = 0
            while part := list(islice(left, FIELDS_AT_ONCE)):
                result = await self._context.broker.change_presence(
                    channel, dict.fromkeys(part, b"")
                )
                removed += result.changed
                self._context.counters.presence_reaped += result.changed
            if not removed and any(field in replica.values for field in fields):
                # No diff will remove them: the server has lost them in another way.
                self._outdated(channel)
        finally:
            self._due.discard((channel, process))
