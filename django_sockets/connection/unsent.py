"""The messages that wait for one client in all its queues, for the counters of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..delivery.hold import Hold
from ..delivery.send_queue import SendQueue

__all__ = ["Unsent", "unsent_of"]


class Unsent(NamedTuple):
    """See `hub.connections.Unsent`."""

    items: int
    size_bytes: int
    slow: bool


def unsent_of(outbox: SendQueue, inbox: SendQueue, holds: Iterable[Hold]) -> Unsent:
    """The messages that wait for a client with an inbox or a hold. For any thread.

    Messages wait behind the hook that runs, and not in the outbox. The client is slow if they are
    dropped in one of the queues, or if the hook waits for a client that does not read.

    Args:
        inbox: the queue before the hooks; the outbox again if there is none.
        holds: the messages that wait for the end of a hook or of a subscription.
    """
    queues = [one for queue in {outbox, inbox} if (one := queue.unsent) is not None]
    holds = list(holds)
    items = sum(one.items for one in queues) + sum(len(hold) for hold in holds)
    return Unsent(
        items,
        sum(one.size_bytes for one in queues) + sum(hold.size_bytes for hold in holds),
        any(one.slow for one in queues)
        or any(hold.dropping for hold in holds)
        or (items > 0 and outbox.stuck),
    )
