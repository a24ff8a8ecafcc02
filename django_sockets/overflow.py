"""What becomes of broadcasts for a client that reads too slowly, and the queue before its hooks.

The policy is a class attribute of a socket. A message that a policy drops is counted, and the hole
that it leaves is a gap: `Gap(reason="overflow")`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .codec import Delivery
from .errors import ConfigurationError
from .events import OVERFLOW, Gap
from .lane import Lane
from .mailbox import Mailbox
from .url import suggest

__all__ = ["CLOSE", "DROP_NEWEST", "DROP_OLDEST", "Inbox", "Overflow", "check_policy"]

CLOSE, DROP_OLDEST, DROP_NEWEST = POLICIES = ("close", "drop_oldest", "drop_newest")


def check_policy(policy: object) -> str:
    """Return it.

    Raises:
        ConfigurationError: it is none of "close", "drop_oldest" and "drop_newest".
    """
    if isinstance(policy, str) and policy in POLICIES:
        return policy
    raise ConfigurationError(f"overflow = {policy!r}; {suggest(str(policy), POLICIES)}")


class Overflow:
    """The policy of one socket.

    Args:
        policy: "close", "drop_oldest" or "drop_newest".
        too_slow: called with an item that does not fit under "close".
        dropped: called with the number of messages that were dropped.
        gap_began: called once for each hole.
    """

    def __init__(
        self,
        policy: str,
        too_slow: Callable[[Any], None],
        dropped: Callable[[int], None],
        gap_began: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._too_slow = too_slow
        self._dropped = dropped
        self._gap_began = gap_began
        self._in_hole = False

    def put(self, queue: Lane, item: Any, size_bytes: int) -> list[Any]:
        """Queue an item by the policy; returns what was dropped for it, perhaps the item itself."""
        if queue.put(item, size_bytes):
            self._in_hole = False
            return []
        if self.policy == CLOSE:
            self._too_slow(item)
            return [item]
        gone = []
        if self.policy == DROP_OLDEST:
            while True:
                oldest = queue.evict()
                if oldest is None:
                    gone.append(item)
                    break
                gone.append(oldest)
                if queue.put(item, size_bytes):
                    break
        else:
            gone.append(item)
        self._dropped(sum(not isinstance(one, Gap) for one in gone))
        if not self._in_hole:
            self._in_hole = True
            self._gap_began()
        return gone


class Inbox(Lane):
    """Broadcasts and gaps on their way to the hooks of one socket, in order and bounded.

    Where messages were dropped, a `Gap` comes before the next one that is handled, or once all that
    was queued is handled.

    Args:
        take: awaited with one event at a time.
        trouble: called with what it raised, which ends the inbox.
        overflow: what is done when it is full.
        new_mailbox: makes what events wait in.
        discarded: called with the number of messages that were queued when the inbox ended.
    """

    def __init__(
        self,
        take: Callable[[Delivery | Gap], Awaitable[None]],
        trouble: Callable[[Exception], object],
        overflow: Overflow,
        *,
        new_mailbox: Callable[[], Mailbox],
        discarded: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._take = take
        self._trouble = trouble
        self._overflow = overflow
        self._new_mailbox = new_mailbox
        self._discarded = discarded
        self._hole: dict[str, None] = {}

    def offer(self, event: Delivery | Gap, size_bytes: int) -> None:
        """Queue an event by the policy."""
        overflow = self._overflow
        if self._hole and overflow.policy == DROP_NEWEST and not self.full:
            self.put(self._take_gap(), 0)
        for gone in overflow.put(self, event, size_bytes):
            self._hole.update(dict.fromkeys(_channels(gone)))

    async def handle(self, event: Delivery | Gap) -> None:
        if self._hole and self._overflow.policy == DROP_OLDEST:
            await self._take(self._take_gap())
        await self._take(event)
        while self._hole and self.empty and self._overflow.policy != CLOSE:
            await self._take(self._take_gap())

    def failed(self, exc: Exception) -> None:
        self._trouble(exc)

    def dropped(self, items: list[Any]) -> None:
        self._discarded(sum(not isinstance(one, Gap) for one in items))

    def new_mailbox(self) -> Mailbox:
        return self._new_mailbox()

    def _take_gap(self) -> Gap:
        gap = Gap(channels=tuple(self._hole), reason=OVERFLOW)
        self._hole.clear()
        return gap


def _channels(event: Delivery | Gap) -> Sequence[str]:
    return event.channels if isinstance(event, Gap) else [event.channel]
