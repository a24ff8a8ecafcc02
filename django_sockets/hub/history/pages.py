"""Pages of the history of a channel, for applications: read without a subscription.

A page has the kept messages as receivers got them, and the position behind the last of them. With
this position, a program reads the next page, or subscribes without missing a message.

The hub imports this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec

from ...broker import SupportsHistory
from ...codec import decode_json
from ...delivery.envelope import IS_TEXT, NewerVersion, NotOurs, unpack, unpack_kept
from ...errors import BrokerError, ChannelError, ConfigurationError, HistoryError
from ...history import HistoryReply, HistoryStatus, Position, Start, position_of, tag_of
from ...url import BrokerURL

__all__ = ["MAX_LIMIT", "PAGE_BYTES", "HistoryPage", "HistoryPages", "KeptMessage"]

MAX_LIMIT = 10_000
"""The most messages of one page."""
RECENT = 100
"""Messages among which `places_of` looks for the one that was published."""
PAGE_BYTES = 16 * 1024 * 1024
"""A page with more bytes ends there; the rest is on the next page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptMessage:
    """A message in the history of a channel.

    Attributes:
        payload: the published bytes.
        is_text: the payload is JSON text in UTF-8; otherwise it is binary data.
        position: the place behind this message.
    """

    payload: bytes
    is_text: bool
    position: str

    @cached_property
    def data(self) -> Any:
        """The data as receivers get it: decoded JSON, or bytes for binary data."""
        return decode_json(self.payload) if self.is_text else self.payload


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryPage:
    """Kept messages of one channel.

    Attributes:
        messages: the oldest first.
        position: the place behind the last message, or behind the newest one if there is none.
            Read or subscribe with `since=position` to continue there.
        recovered: False if messages between `since` and `position` are missing, because the server
            does not keep them any more, or may be missing after a failover. The page has no
            messages then, and `position` is the newest one: fetch the state again. Without `since`
            it is True.
        more: messages behind `position` were kept at the time of reading.
    """

    messages: tuple[KeptMessage, ...]
    position: str
    recovered: bool = True
    more: bool = False


class HistoryPages:
    """Reads pages and positions through the broker of one hub, on its event loop.

    Args:
        broker: any broker. One without a history raises an error when it is read.
    """

    def __init__(self, broker: object, url: BrokerURL) -> None:
        self._broker = broker if isinstance(broker, SupportsHistory) else None
        self._url = url

    async def read(self, channel: str, since: str | None, limit: int) -> HistoryPage:
        """See `Hub.history`."""
        _check_limit(limit)
        start: Start = limit if since is None else Position.parse(since)
        broker = self._reader_of([channel])
        messages: list[KeptMessage] = []
        position: Position | None = None
        more, size = True, 0
        while more and len(messages) < limit and size < PAGE_BYTES:
            left = limit - len(messages)
            replies = await broker.read_history({channel: start}, messages=left)
            reply, whole = _readable(replies[channel])
            if not (whole and _follows(start, reply)):
                if position is not None:
                    break  # There is a hole behind the position. The next page will tell.
                if since is not None:
                    newest = await self.newest([channel])
                    return HistoryPage(messages=(), position=newest[channel], recovered=False)
            start = position = self._known(reply.position, channel)
            messages += _kept(reply.messages, position.history_id)
            size += sum(map(len, reply.messages))
            more = reply.status is HistoryStatus.CUT
        return HistoryPage(messages=tuple(messages), position=str(position), more=more)

    async def newest(self, channels: Sequence[str]) -> dict[str, str]:
        """See `Hub.position`."""
        if not channels:
            return {}
        replies = await self._reader_of(channels).read_history(dict.fromkeys(channels))
        return {name: str(self._known(replies[name].position, name)) for name in channels}

    async def places_of(
        self, channels: Sequence[str], headers: Sequence[bytes]
    ) -> list[tuple[str, str]]:
        """The positions behind messages that were just published, as pairs with their channels.

        Args:
            headers: the header of the message on each channel.

        Returns:
            Nothing for messages that were not kept, or that cannot be read.
        """
        tags = {
            name: tag_of(header)
            for name, header in zip(channels, headers, strict=True)
            if self._url.history.rule_for(name) is not None
        }
        if self._broker is None or not tags:
            return []
        try:
            replies = await self._broker.read_history(dict.fromkeys(tags, RECENT))
        except BrokerError:
            return []
        return [
            (name, str(position))
            for name, reply in replies.items()
            for message in reply.messages
            if tag_of(message) == tags[name]
            and reply.position is not None
            and (position := position_of(message, reply.position.history_id)) is not None
        ]

    def _reader_of(self, channels: Sequence[str]) -> SupportsHistory:
        check_rules(self._url, channels)
        if self._broker is None:
            raise ConfigurationError(
                f"{self._url}: this broker keeps no history (SupportsHistory): use another one, "
                "such as memory:// or redis://"
            )
        return self._broker

    def _known(self, position: Position | None, channel: str) -> Position:
        if position is None:
            problem = "the server has no memory for the history: raise maxmemory"
            raise HistoryError(self._url, problem, channels=[channel])
        return position


def _check_limit(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise ConfigurationError(
            f"limit={limit!r:.40} of a page of history: use a whole number from 1 to {MAX_LIMIT}, "
            "and read on with since=page.position"
        )


def check_rules(url: BrokerURL, channels: Sequence[str]) -> None:
    """Check that the configuration has a rule for each channel.

    Raises:
        ChannelError: there is none for a channel.
    """
    for channel in channels:
        if url.history.rule_for(channel) is None:
            head, colon, _ = channel.partition(":")
            raise ChannelError(
                channel,
                "has no history: add a rule for it to the setting 'history' of every process, "
                f"such as {{{head[:40] + colon!r}: {{'messages': 100, 'seconds': 300}}}}, or add "
                "history_messages=100&history_seconds=300 to the URL",
            )


def _readable(reply: HistoryReply) -> tuple[HistoryReply, bool]:
    """The reply with the messages behind the last one that this process cannot read.

    Returns:
        The reply, and False if messages were left out: of a newer version of the library, or
        written by another program.
    """
    for index in reversed(range(len(reply.messages))):
        try:
            unpack(reply.messages[index])
        except (NotOurs, NewerVersion):
            left = reply.messages[index + 1 :]
            return msgspec.structs.replace(reply, messages=left), False
    return reply, True


def _follows(start: Start, reply: HistoryReply) -> bool:
    """Whether a reply has every message behind a position, of the same history."""
    if not isinstance(start, Position):
        return True
    at = reply.position
    if at is None or at.history_id != start.history_id or reply.status is HistoryStatus.BROKEN:
        return False
    last = (start.epoch, start.offset, start.tag)
    for message in reply.messages:
        link = unpack_kept(message)[1]
        if link != (last[0], last[1] + 1, last[2]):
            return False
        last = (last[0], last[1] + 1, tag_of(message))
    return True


def _kept(messages: Sequence[bytes], history_id: bytes) -> list[KeptMessage]:
    """The messages that receivers got: a text that is not UTF-8 reaches none of them."""
    kept = []
    for message in messages:
        position = position_of(message, history_id)
        *_, flags, _, payload = unpack(message)
        is_text = flags & IS_TEXT != 0
        if position is not None and (not is_text or _is_utf8(payload)):
            kept.append(KeptMessage(payload=payload, is_text=is_text, position=str(position)))
    return kept


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
