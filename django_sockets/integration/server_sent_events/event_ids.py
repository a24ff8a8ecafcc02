"""The ids of server-sent events: the position of each channel of a stream, in one text.

A browser sends the id of the last event in the header Last-Event-ID when it connects again. The id
of a stream with one channel is its position. With several channels it is one part for each channel,
joined by dots: 8 characters that stand for the name of the channel, and its position. A part
without a position belongs to a channel whose position is not known, for example because it has no
history.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping

from ...errors import PositionError
from ...history import Position

__all__ = ["MAX_CHANNELS", "MAX_ID_CHARACTERS", "event_id", "is_position", "read_event_id"]

MAX_CHANNELS = 64
"""The most channels of one stream. Each event contains the positions of all of them: 63 characters
for each channel."""
MAX_ID_CHARACTERS = 4096
"""The longest id that is read. Servers and proxies take headers of 8 KiB."""
_LABEL_CHARACTERS = 8


def event_id(positions: Mapping[str, str | None]) -> str:
    """The id that stands for the positions of channels, for the `since` of a client.

    Args:
        positions: channel -> position, such as the result of `signed_channels.position`. None for a
            channel without a position.

    Returns:
        An empty text if there is no channel.
    """
    if len(positions) == 1:
        (position,) = positions.values()
        if position:
            return position
    return ".".join(_label(name) + (position or "") for name, position in positions.items())


def read_event_id(text: str, channels: Collection[str]) -> dict[str, str]:
    """The positions in an id, for those of the channels that have one in it.

    Nothing is raised: a text that is too long, was cut or made up has no position. The client then
    gets a gap, and loads the state again.
    """
    if len(text) > MAX_ID_CHARACTERS:
        return {}
    parts = text.split(".")
    if len(channels) == 1 and len(parts) == 1 and is_position(text):
        return dict.fromkeys(channels, text)
    by_label = {part[:_LABEL_CHARACTERS]: part[_LABEL_CHARACTERS:] for part in parts}
    found = {name: by_label.get(_label(name), "") for name in channels}
    return {name: position for name, position in found.items() if is_position(position)}


def _label(channel: str) -> str:
    digest = hashlib.blake2b(channel.encode(), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest).decode()


def is_position(text: str) -> bool:
    """Whether a text is a position of a channel."""
    try:
        Position.parse(text)
    except PositionError:
        return False
    return True
