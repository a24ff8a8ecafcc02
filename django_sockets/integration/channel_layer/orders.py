"""Orders between the owners of one layer, on any process, with replies.

An order is JSON on the hub channel of its receiver, or on the common one. The receiver carries it
out and replies to the sender. A sender waits for a bounded time.

    {"op": "add" | "discard", "group": ..., "channel": ..., "from": owner, "n": number}
    {"op": "flush" | "discard", ..., "from": owner, "n": number}          to all owners
    {"op": "done", "n": number, "by": owner, "error": text or null}       the reply
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Collection
from typing import Any

from ...deadlines import with_deadline
from ...errors import CallError
from ...hub.hub import Hub
from .names import ORDER
from .options import LayerOptions
from .serializer import Unreadable

__all__ = ["ORDER_SECONDS", "Orders", "read_order"]

ORDER_SECONDS = 5.0
"""How long the sender of an order to one owner waits for the reply."""
ALL_SECONDS = 2.0
"""The longest wait for the replies to an order to all owners."""
QUIET_SECONDS = 0.1
"""An order to all owners is done when no further reply has come for this time."""


class _Replies:
    """The replies to one order."""

    def __init__(self) -> None:
        self.by: dict[str, str | None] = {}
        self.came = asyncio.Event()


class Orders:
    """Sends the orders of one owner, and matches the replies."""

    def __init__(self, options: LayerOptions, hub: Hub, owner: str) -> None:
        self._options = options
        self._hub = hub
        self._owner = owner
        self._numbers = itertools.count()
        self._waiting: dict[int, _Replies] = {}

    async def tell(self, owner: str, order: dict[str, Any]) -> None:
        """Send an order to one owner and wait for its reply.

        Raises:
            CallError: the owner did not reply in time, or failed.
            PublishError: the order was not sent.
        """
        number, replies = self._new()
        try:
            await self._send(self._options.owner_channel(owner), {**order, "n": number})
            try:
                await with_deadline(ORDER_SECONDS, replies.came.wait())
            except asyncio.TimeoutError:
                raise CallError(
                    f"the owner of channel {order.get('channel')!r} did not reply within "
                    f"{ORDER_SECONDS:g} s: its process may have ended"
                ) from None
        finally:
            del self._waiting[number]
        for error in replies.by.values():
            if error is not None:
                raise CallError(f"the owner of channel {order.get('channel')!r} failed: {error}")

    async def tell_all(
        self, order: dict[str, Any], expected: Callable[[], Collection[str]], *, others: bool
    ) -> None:
        """Send an order to all owners, and wait for their replies for at most `ALL_SECONDS`.

        Args:
            expected: returns the present owners in this process, whose replies are waited for.
            others: there may be owners in other processes. Their number is unknown, so that the
                order is done when no reply has come for `QUIET_SECONDS`.

        Raises:
            PublishError: the order was not sent.
        """
        number, replies = self._new()
        loop = asyncio.get_running_loop()
        try:
            await self._send(self._options.common_channel, {**order, "n": number})
            give_up = loop.time() + ALL_SECONDS
            quiet = False
            while loop.time() < give_up:
                if replies.by.keys() >= set(expected()) and (quiet or not others):
                    return
                replies.came.clear()
                try:
                    await with_deadline(QUIET_SECONDS, replies.came.wait())
                except asyncio.TimeoutError:
                    quiet = True
                else:
                    quiet = False
        finally:
            del self._waiting[number]

    async def reply(self, order: dict[str, Any], error: str | None) -> None:
        """Reply to an order.

        Raises:
            PublishError: the reply was not sent.
        """
        target = self._options.owner_channel(str(order["from"]))
        answer = {"op": "done", "n": order["n"], "by": self._owner, "error": error}
        await self._send(target, answer)

    def take_reply(self, reply: dict[str, Any]) -> None:
        """Match a reply with its order."""
        replies = self._waiting.get(reply.get("n", -1))
        if replies is not None:
            error = reply.get("error")
            replies.by[str(reply.get("by"))] = None if error is None else str(error)
            replies.came.set()

    def _new(self) -> tuple[int, _Replies]:
        number, replies = next(self._numbers), _Replies()
        self._waiting[number] = replies
        return number, replies

    async def _send(self, channel: str, order: dict[str, Any]) -> None:
        data = json.dumps({"from": self._owner, **order}).encode()
        await self._hub.publish(channel, ORDER + self._options.serializer.seal(data))


def read_order(options: LayerOptions, payload: bytes) -> dict[str, Any]:
    """The order in a payload that begins with `ORDER`.

    Raises:
        ValueError: it is none.
    """
    try:
        order = json.loads(options.serializer.unseal(payload[1:]))
    except Unreadable as exc:
        raise ValueError(str(exc)) from None
    if not isinstance(order, dict) or not isinstance(order.get("n"), int):
        raise ValueError("not an order")
    return order
