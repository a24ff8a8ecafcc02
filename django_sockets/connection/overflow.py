"""The policy for broadcasts to a client that reads too slowly, and the queue before its hooks.

The policy is a class attribute of a socket. A message that a policy drops is counted, and the hole
that it leaves is a gap: `Gap(reason="overflow")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..delivery.events import OVERFLOW, Gap, Presence
from ..delivery.flow_control import Backlog
from ..delivery.hold import ClientEvent, Hold, HoldOwner, event_bytes, event_channels
from ..delivery.send_queue import SendQueue
from ..errors import ConfigurationError
from ..url import suggest

__all__ = [
    "CLOSE",
    "DROP_NEWEST",
    "DROP_OLDEST",
    "Inbox",
    "InboxOwner",
    "Overflow",
    "check_policy",
]

CLOSE, DROP_OLDEST, DROP_NEWEST = POLICIES = ("close", "drop_oldest", "drop_newest")


def check_policy(policy: object) -> str:
    """Check an overflow policy and return it.

    Raises:
        ConfigurationError: the policy is not one of "close", "drop_oldest", "drop_newest".
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

    def put(self, queue: SendQueue, item: Any, size_bytes: int) -> list[Any]:
        """Queue an item. Returns the items that the policy dropped, which may include it."""
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
        self._dropped(sum(not isinstance(one, (Gap, Presence)) for one in gone))
        if not self._in_hole:
            self._in_hole = True
            self._gap_began()
        return gone


class InboxOwner(HoldOwner, Protocol):
    """The delivery of one socket, as its inbox knows it.

    One object instead of several callables keeps an idle connection small.
    """

    async def take(self, event: ClientEvent) -> None:
        """Give one event to a hook; an exception ends the inbox."""

    def inbox_failed(self, exc: Exception) -> None:
        """Report that `take` raised this."""

    def inbox_rests(self, inbox: Inbox) -> None:
        """Called when an inbox has handled all that was queued."""

    def policy(self) -> Overflow:
        """The policy for a full inbox."""

    def new_backlog(self) -> Backlog:
        """Make the queue that events wait in."""


class Inbox(SendQueue):
    """Events on their way to the hooks of one socket, in order and bounded.

    Where messages were dropped, a `Gap` comes before the next message that is handled, or after all
    queued messages. While the hook `gap` or `presence` runs, new events wait in a `Hold`. A hook
    that takes long does not mean that the client is slow.

    Attributes:
        waiting: the events that wait while `gap` or `presence` runs; None at other times.
    """

    __slots__ = ("_hole", "waiting")

    owner: InboxOwner

    def __init__(self, owner: InboxOwner) -> None:
        super().__init__()
        self.owner = owner
        self._hole: dict[str, None] = {}
        self.waiting: Hold | None = None

    @property
    def holds(self) -> list[Hold]:
        """The hold, if there is one. For any thread."""
        hold = self.waiting
        return [] if hold is None else [hold]

    def offer(self, event: ClientEvent) -> None:
        """Queue an event by the policy."""
        if self.waiting is not None:
            self.waiting.put(event)
            return
        policy = self.owner.policy()
        if self._hole and policy.policy == DROP_NEWEST and not self.full:
            self.put(self._take_gap(), 0)
        for gone in policy.put(self, event, event_bytes(event)):
            self._hole.update(dict.fromkeys(event_channels(gone)))

    async def handle(self, event: ClientEvent) -> None:
        if self._hole and self.owner.policy().policy == DROP_OLDEST:
            await self._signal(self._take_gap())
        if isinstance(event, (Gap, Presence)):
            await self._signal(event)
        else:
            await self.owner.take(event)
        while self._hole and self.empty and self.owner.policy().policy != CLOSE:
            await self._signal(self._take_gap())

    async def _signal(self, event: Gap | Presence) -> None:
        """Give an event to its hook, and then queue the events that arrived meanwhile."""
        self.waiting = hold = Hold(self.owner)
        try:
            await self.owner.take(event)
        finally:
            self.waiting = None
            waiting: list[ClientEvent] = list(hold.take(len(hold)))
            if self._ended:
                self.dropped(waiting)
            elif waiting:
                if self._hole and self.owner.policy().policy == DROP_NEWEST:
                    waiting.insert(0, self._take_gap())  # The hole precedes these events.
                for one in waiting:
                    self._queue((one, None), event_bytes(one), force=True)

    def rest(self) -> None:
        super().rest()
        if self.idle and not self._ended:
            self.owner.inbox_rests(self)

    def failed(self, exc: Exception) -> None:
        self.owner.inbox_failed(exc)

    def dropped(self, items: list[Any]) -> None:
        self.owner.discarded(sum(not isinstance(one, (Gap, Presence)) for one in items))

    def new_backlog(self) -> Backlog:
        return self.owner.new_backlog()

    def _take_gap(self) -> Gap:
        gap = Gap(channels=tuple(self._hole), reason=OVERFLOW)
        self._hole.clear()
        return gap
