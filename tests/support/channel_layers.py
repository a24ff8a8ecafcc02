"""Shared by the tests of the channel layer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from django_sockets.deadlines import with_deadline
from django_sockets.integration.channel_layer import ChannelLayer

__all__ = ["MakeLayer", "numbered", "soon", "take"]

T = TypeVar("T")

MakeLayer = Callable[..., ChannelLayer]
PATIENCE_SECONDS = 10


async def soon(awaitable: Awaitable[T]) -> T:
    """Await what must happen soon."""
    return await with_deadline(PATIENCE_SECONDS, awaitable)


def numbered(*numbers: int) -> list[dict[str, Any]]:
    """One message for each number."""
    return [{"type": "test", "n": number} for number in numbers]


async def take(layer: ChannelLayer, channel: str, count: int) -> list[Any]:
    """Receive several messages."""
    return [await soon(layer.receive(channel)) for _ in range(count)]
