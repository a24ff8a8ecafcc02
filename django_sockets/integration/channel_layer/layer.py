"""`ChannelLayer`: the channel layer specification of Channels, on any broker.

A message to a group or to a process-local channel is a message on a hub channel. A message to a
normal channel waits in a queue of the broker. `endpoint` receives; this module validates, finds the
event loop on which a call runs, and sends.
"""

from __future__ import annotations

import asyncio
import logging
import re
import weakref
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar

from asgiref.sync import markcoroutinefunction
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer

from ...conf import Source
from ...deadlines import with_deadline
from ...errors import CallError, ConfigurationError
from ...log import LogThrottle
from ...url import BrokerOptions
from .counters import LayerCounters
from .endpoint import Endpoint
from .handoff import receive_across
from .homes import Homes, has_main_loop
from .names import owner_of
from .options import LayerOptions, check_capacities, check_number, source_of, warn_of_ignored
from .orders import ORDER_SECONDS
from .registry import endpoints
from .sender import Sender
from .serializer import Serializer, Unreadable

__all__ = ["ChannelLayer"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

MOST_PREFIX_CHARACTERS = 60
MEMBERSHIP_SECONDS = 2 * ORDER_SECONDS
"""How long `group_add` waits for another event loop of this process."""


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer of Django Channels on any broker. docs/channels.md describes it.

    Any thread and any event loop may use it. Calls on an event loop without a hub of its own, such
    as those of `async_to_sync`, go through the hub of the library's background loop.

    Args:
        hosts: the servers as channels_redis takes them: a list of URLs, pairs of host and port, or
            dicts. Several hosts are independent of each other, and share the load.
        prefix: separates layers that share a broker.
        expiry: seconds that a message waits for its receiver.
        group_expiry: seconds that a channel stays in a group after its last `group_add`.
        capacity: the most messages that wait in a channel.
        channel_capacity: pattern (a glob or a compiled regular expression) -> capacity.
        symmetric_encryption_keys: keys that encrypt the messages. The first one encrypts, all of
            them decrypt.
        serializer_format: "msgpack" or "json".
        url: the broker, as in `open_hub`; None, without `hosts`, for the configured broker.
        gap_events: True if consumers have a method `broker_gap`.
        others: options of channels_redis without a meaning here. They are named in a warning.

    Raises:
        ConfigurationError: an option is wrong.
    """

    MAX_NAME_LENGTH = 100
    extensions: ClassVar[list[str]] = ["groups", "flush"]
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    channel_name_regex = re.compile(r"[a-zA-Z0-9\-_.]+(![a-zA-Z0-9\-_.]*)?\Z")
    group_name_regex = re.compile(r"[a-zA-Z0-9\-_.]+\Z")
    invalid_name_error = (
        "{} name must be a valid unicode string with length <= 100 containing only ASCII "
        "alphanumerics, hyphens, underscores, or periods."
    )

    def __init__(
        self,
        hosts: Sequence[Any] | None = None,
        prefix: str = "asgi",
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[Any, int] | None = None,
        symmetric_encryption_keys: Sequence[str | bytes] | None = None,
        serializer_format: str = "msgpack",
        *,
        url: Source | None = None,
        gap_events: bool = False,
        **others: object,
    ) -> None:
        warn_of_ignored(hosts, others)
        check_number("expiry", expiry)
        check_number("group_expiry", group_expiry)
        check_number("capacity", capacity, whole=True)
        if channel_capacity is not None:
            check_capacities(channel_capacity)
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.group_expiry = group_expiry
        self.prefix = prefix
        self._serializer = Serializer(serializer_format, symmetric_encryption_keys, expiry)
        self._counters = LayerCounters()
        self._options = LayerOptions(
            source=source_of(url, hosts),
            prefix=prefix,
            expiry_seconds=expiry,
            group_expiry_seconds=group_expiry,
            capacity_of=_capacity_of(weakref.WeakMethod(self.get_capacity), capacity),
            serializer=self._serializer,
            gap_events=gap_events,
        )
        self._homes = Homes(self._options, self._counters)
        self._sender = Sender(self._options, self._counters, self._homes)
        weakref.finalize(self, self._homes.close_soon).atexit = False

    def __repr__(self) -> str:
        try:
            broker = str(self._options.config().url)
        except ConfigurationError:
            broker = "a broker with a wrong configuration"
        return f"ChannelLayer({broker}, prefix={self.prefix!r})"

    __str__ = __repr__

    def match_type_and_length(self, name: object) -> bool:
        """Whether a name is a text of at most 100 characters."""
        return isinstance(name, str) and len(name) <= self.MAX_NAME_LENGTH

    def serialize(self, message: object) -> bytes:
        """Encode a message, and encrypt it if there are keys.

        Raises:
            EncodeError: it contains a type that a channel layer does not carry; also a TypeError.
        """
        return self._serializer.serialize(message)

    def deserialize(self, message: bytes) -> Any:
        """Decode what `serialize` has returned."""
        return self._serializer.deserialize(message)

    # Channels

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to one channel.

        Raises:
            TypeError: the name or the message is not valid.
            ChannelFull: the channel is at its capacity. A process-local channel of another process
                drops the message instead and counts it there.
            MessageTooLarge: nothing was sent.
            PublishError, QueueError: the message was not sent, or it is unknown whether it was.
        """
        self.require_valid_channel_name(channel)
        if owner_of(channel) is not None:
            _check_dict(message)
        await self._sender.to_channel(channel, self.serialize(message))

    async def new_channel(self, prefix: str = "specific") -> str:
        """A new process-local channel, for `receive` on this event loop.

        Args:
            prefix: the beginning of the name, at most 60 characters.

        Raises:
            TypeError: the prefix is too long, or has other characters than a channel name.
            SubscribeError: the broker did not acknowledge the first channel of this event loop.
        """
        self.require_valid_channel_name(prefix)
        if "!" in prefix or len(prefix) > MOST_PREFIX_CHARACTERS:
            raise TypeError(
                f"the prefix of a new channel has at most {MOST_PREFIX_CHARACTERS} characters, and "
                "no '!'"
            )
        home = await self._homes.receiving()
        return await home.call(lambda: home.new_channel(prefix))

    async def receive(self, channel: str) -> Any:
        """Wait for the next message of a channel.

        Messages come in the order in which they were sent. If several calls wait, each message goes
        to one of them. A cancelled call loses no message; but a process-local channel whose call
        was cancelled leaves its groups after 5 seconds without another call.

        Args:
            channel: a whole name; or a name up to and including its "!", for the messages of all
                channels that begin with it.

        Raises:
            TypeError: the name is not valid.
            CallError: the channel belongs to another process.
        """
        endpoint = self._homes.here(running_loop())
        if endpoint is not None:
            # The fast path: a channel that this event loop knows, so that its name is valid.
            boxes = endpoint.boxes
            box = boxes.known(channel)
            if box is not None and box.one_owner:
                while True:
                    item = (boxes.take(box) if box.items else None) or await boxes.receive_from(box)
                    try:
                        message = self._serializer.message(item.content)
                    except Unreadable as exc:
                        self._dropped(channel, exc)
                        continue
                    endpoint.counters.received += 1
                    return message
        self.require_valid_channel_name(channel)
        owner = owner_of(channel)
        home: Endpoint | None
        if owner is None:
            home = await self._homes.receiving()
        else:
            home = endpoints.get(owner)
            if home is None:
                raise CallError(
                    f"channel {channel!r} belongs to another process, or to an event loop that has "
                    "ended: only the event loop that made it can receive from it"
                )
        while True:
            item = await receive_across(home, channel)
            try:
                message = self._serializer.message(item.content)
            except Unreadable as exc:
                self._dropped(channel, exc)
                continue
            self._counters.add("received")
            return message

    def _dropped(self, channel: str, error: Unreadable) -> None:
        self._counters.add("dropped_unreadable")
        text = "a message for channel %r cannot be read: %s"
        _throttle.log(
            logging.WARNING,
            "unreadable",
            text,
            channel,
            error,
            extra={"channel": channel, "reason": error},
        )

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group. Returns when messages to the group reach the channel.

        A process-local channel of another process is added there, which is acknowledged. A normal
        channel stays in the group for as long as this process runs.

        Raises:
            TypeError: a name is not valid.
            SubscribeError: the broker did not acknowledge it.
            CallError: the process of the channel did not reply within 5 seconds.
        """
        await self._membership("add", group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group, if it is in it.

        Raises:
            TypeError: a name is not valid.
            CallError: the process of the channel did not reply within 5 seconds.
        """
        await self._membership("discard", group, channel)

    async def _membership(self, operation: str, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        owner = owner_of(channel)
        home = endpoints.get(owner)
        if home is None:
            home = await self._homes.sending()
        endpoint = home

        def change() -> Awaitable[None]:
            if owner is not None and owner != endpoint.owner:
                order = {"op": operation, "group": group, "channel": channel}
                return endpoint.tell(owner, order)
            if operation == "add":
                return endpoint.group_add(group, channel)
            return endpoint.group_discard(group, channel)

        if asyncio.get_running_loop() is endpoint.loop:
            await change()
            return
        try:
            await with_deadline(MEMBERSHIP_SECONDS, endpoint.call(change))
        except asyncio.TimeoutError:
            raise CallError(
                f"the event loop of channel {channel!r} did not reply within "
                f"{MEMBERSHIP_SECONDS:g} s: it is blocked, or does not run"
            ) from None

    @markcoroutinefunction
    def group_send(self, group: str, message: dict[str, Any]) -> Coroutine[Any, Any, None]:
        """Send a message to all channels of a group. Full channels drop it.

        `async_to_sync` makes this call on the thread of its caller, and then an event loop on a
        thread of its own to await the result. Therefore the call itself sends if its thread has no
        event loop: the message then need not pass through that thread. The result, or the error,
        is that of the coroutine in any case.

        Raises:
            TypeError: the name or the message is not valid.
            MessageTooLarge: nothing was sent.
            PublishError: the message was not sent, or it is unknown whether it was.
        """
        if running_loop() is not None or has_main_loop():
            return self._group_send(group, message)
        try:
            self._sender.to_group_from_thread(group, self._group_data(group, message))
        except Exception as exc:
            return _outcome(exc)
        return _outcome(None)

    async def _group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._sender.to_group(group, self._group_data(group, message))

    def _group_data(self, group: str, message: dict[str, Any]) -> bytes:
        self.require_valid_group_name(group)
        _check_dict(message)
        return self._serializer.serialize(message)

    # Flush, the end, counters

    async def flush(self) -> None:
        """Remove all messages and groups of this layer, on all processes.

        It waits until the processes have replied, for at most 2 seconds. Channels can be used
        afterwards, and have to be added to their groups again.

        Raises:
            PublishError, QueueError: some may remain.
        """
        home = await self._homes.sending()
        await home.call(home.flush)

    async def close(self) -> None:
        """Close the part of the layer on this event loop. Later calls open it again.

        This is not necessary: it happens when the event loop ends.
        """
        await self._homes.close()

    close_pools = close

    def stats(self) -> dict[str, int]:
        """The counters of this layer in this process, and the numbers of what it holds now.

        It may be called on any thread. docs/channels.md explains each number.
        """
        return self._homes.stats()


async def _outcome(error: Exception | None) -> None:
    """A coroutine with an outcome that is known already."""
    if error is not None:
        raise error


def _capacity_of(get: weakref.WeakMethod[Any], default: int) -> Callable[[str], int]:
    """The capacity of a channel, by a method of a layer that may be gone."""

    def capacity_of(channel: str) -> int:
        method = get()
        return default if method is None else method(channel)

    return capacity_of


def _check_dict(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict with a 'type', not a {type(message).__name__}")
