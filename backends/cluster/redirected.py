"""Publishes kept messages whose slot is moving to another server.

While a slot moves, the source redirects scripts on keys that it does not have (ASK). The target
keeps the message. Its own publish reaches nobody, because all subscribers are still at the source.
The message that the script returns is therefore published at the source as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import BrokerClosed
from ..client.connection import ReplyError
from ..client.history_scripts import KEEP
from ..client.pipeline import NotSent, OutcomeUnknown, PartlyRefused
from ..client.routes import Route, RoutedMessage
from ..client.scripts import surely_refused

__all__ = ["publish_redirected"]


async def publish_redirected(
    source: Route,
    target: Route,
    messages: Sequence[RoutedMessage],
    on_unkept: Callable[[], None],
) -> list[tuple[RoutedMessage, Exception]]:
    """Keep messages at the target of their slot and publish them at its source, in order.

    Returns:
        The messages that the target certainly refused, with its errors. All others are settled.
    """
    commands: list[tuple[bytes, ...]] = [KEEP.load]
    for message in messages:
        message.asked = None
        commands += [(b"ASKING",), message.command(target.pubsub.publish)]
    try:
        replies = (await target.pipeline.submit(commands))[2::2]
    except (NotSent, BrokerClosed) as exc:
        return [(message, NotSent(str(exc))) for message in messages]
    except OutcomeUnknown as exc:
        return _settle_all(messages, exc)
    refused: list[tuple[RoutedMessage, Exception]] = []
    accepted: list[tuple[RoutedMessage, bytes]] = []
    for message, reply in zip(messages, replies, strict=True):
        if message.kept is None:
            continue
        if isinstance(reply, ReplyError):
            if surely_refused(reply):
                refused.append((message, reply))
            else:
                message.settle(PartlyRefused(reply))
            continue
        try:
            published = message.kept.published(reply)
        except ValueError as exc:
            message.settle(OutcomeUnknown(str(exc)))
            continue
        if published is None:
            on_unkept()
        accepted.append((message, published or message.kept.header + message.payload))
    if accepted:
        await _publish_at(source, accepted)
    return refused


async def _publish_at(source: Route, accepted: Sequence[tuple[RoutedMessage, bytes]]) -> None:
    """Publish messages that the target has kept already."""
    verb = source.pubsub.publish
    try:
        replies = await source.pipeline.submit(
            [(verb, message.name, published) for message, published in accepted]
        )
    except (NotSent, OutcomeUnknown, BrokerClosed) as exc:
        _settle_all([message for message, _ in accepted], OutcomeUnknown(str(exc)))
        return
    for (message, _), reply in zip(accepted, replies, strict=True):
        # After MOVED, the subscribers have moved to the target as well, and read the history there.
        if isinstance(reply, ReplyError) and not str(reply).startswith("MOVED"):
            message.settle(PartlyRefused(reply, "kept, but not published"))
        else:
            message.settle(None)


def _settle_all(
    messages: Sequence[RoutedMessage], outcome: Exception
) -> list[tuple[RoutedMessage, Exception]]:
    for message in messages:
        message.settle(outcome)
    return []
