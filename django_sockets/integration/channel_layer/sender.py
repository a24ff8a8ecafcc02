"""Sends the messages of one layer: to the owner of a channel, to a queue, or to a group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from channels.exceptions import ChannelFull, MessageTooLarge

from ...conf import Config
from ...errors import ConfigurationError, PayloadTooLarge, PublishError
from ...hub.hub import Hub
from ...runtime import (
    background_loop,
    can_publish_on_thread,
    publish,
    publish_on_thread,
)
from ...runtime.sync_calls import Calls
from .counters import LayerCounters
from .homes import Homes
from .names import DIRECT, RESERVED, GroupIds, base_of, direct, owner_of
from .options import LayerOptions
from .registry import endpoints

__all__ = ["Sender"]


class Sender:
    """Sends the messages of one layer, from any thread.

    Its methods raise ChannelFull, MessageTooLarge, PublishError and QueueError.
    """

    def __init__(self, options: LayerOptions, counters: LayerCounters, homes: Homes) -> None:
        self._options = options
        self._counters = counters
        self._homes = homes
        self._ids = GroupIds()

    async def to_channel(self, channel: str, data: bytes) -> None:
        """Send to one channel of any kind."""
        owner = owner_of(channel)
        if owner is None:
            await self._to_queue(channel, data)
        else:
            await self._to_owner(owner, channel, data)
        self._counters.add("sent")

    async def _to_owner(self, owner: str, channel: str, data: bytes) -> None:
        name = self._options.owner_channel(owner)
        local = endpoints.get(owner)
        if local is None:
            await self._publish(name, direct(DIRECT, channel, data))
            return
        if not local.boxes.reserve(channel):
            self._full(channel)
        try:
            await self._publish(name, direct(RESERVED, channel, data))
        except PublishError as exc:
            if exc.failed:
                local.boxes.release(channel)
            raise
        except MessageTooLarge:
            local.boxes.release(channel)
            raise

    async def _to_queue(self, channel: str, data: bytes) -> None:
        payload = direct(DIRECT, channel, data)
        _check_size(payload, self._options.config())

        async def push(hub: Hub) -> bool:
            if hub.queues is None:
                raise ConfigurationError(
                    f"{hub.config.url}: this broker has no queues, which channels without '!' such "
                    f"as {channel!r} need: use a broker of Redis, Valkey or memory://"
                )
            return await hub.queues.push(
                self._options.queue(base_of(channel)),
                payload,
                capacity=self._options.capacity_of(channel),
                expiry_seconds=self._options.expiry_seconds,
            )

        if not await self._homes.through_hub(push):
            self._full(channel)

    def _full(self, channel: str) -> NoReturn:
        self._counters.add("channel_full")
        raise ChannelFull(channel)

    async def to_group(self, group: str, data: bytes) -> None:
        """Send to a group."""
        await self._publish(self._options.group_channel(group), self._ids.pack(data))
        self._counters.add("group_sent")

    def to_group_from_thread(self, group: str, data: bytes) -> None:
        """Send to a group, on a thread without an event loop; returns when it is sent."""
        config = self._options.config()
        calls = Calls(background_loop(), config.settings.sync_call_timeout_seconds)
        if can_publish_on_thread(config, calls):
            payload = self._ids.pack(data)
            _check_size(payload, config)
            name = self._options.group_channel(group)
            with _too_large():
                sent = publish_on_thread(config, calls, [name], payload, is_text=False)
            if sent:
                self._counters.add("group_sent")
                return
        calls.plain(lambda: self.to_group(group, data))

    async def _publish(self, name: str, payload: bytes) -> None:
        config = self._options.config()
        _check_size(payload, config)
        with _too_large():
            await publish(config, [name], payload, is_text=False)


@contextlib.contextmanager
def _too_large() -> Iterator[None]:
    """Raise MessageTooLarge in the place of our own error."""
    try:
        yield
    except PayloadTooLarge as exc:
        raise MessageTooLarge(str(exc)) from None


def _check_size(payload: bytes, config: Config) -> None:
    most = config.url.options.max_payload_bytes
    if len(payload) > most:
        raise MessageTooLarge(str(PayloadTooLarge(len(payload), most)))
