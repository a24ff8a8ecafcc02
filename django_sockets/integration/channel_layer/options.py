"""The options of a channel layer: the names of channels_redis, `url` and `gap_events`."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...broker import check_channel
from ...conf import Config, Source, load_config
from ...errors import ChannelError, ConfigurationError
from ...redaction import frameless
from ...registry import open_broker
from ...url import suggest
from .serializer import Serializer

__all__ = ["LayerOptions", "check_capacities", "check_number", "source_of", "warn_of_ignored"]

logger = logging.getLogger("django_sockets")

MOST_PREFIX_BYTES = 64
_IGNORED = {
    "random_prefix_length": "messages need no random prefix",
    "on_disconnect": "set gap_events=True and write a method broker_gap",
    "on_reconnect": "set gap_events=True and write a method broker_gap",
}
"""Options of channels_redis that have no meaning here -> what to do instead."""
_IGNORED_OF_HOSTS = {
    "health_check_interval": "the URL option dead_peer_seconds does this",
    "max_connections": "a process has at most two connections to a server",
    "retry": "connections are made again at once",
    "retry_on_error": "connections are made again at once",
    "retry_on_timeout": "connections are made again at once",
    "single_connection_client": "a process has at most two connections to a server",
    "socket_connect_timeout": "the URL option connect_timeout_seconds does this",
    "socket_timeout": "the URL option publish_timeout_seconds does this",
}
"""Options of redis-py in a `hosts` entry that have no meaning here -> what to do instead."""
_VALID = (
    "hosts url prefix expiry group_expiry capacity channel_capacity symmetric_encryption_keys "
    "serializer_format gap_events"
).split()
_warned: set[str] = set()


@dataclasses.dataclass(frozen=True, eq=False)
class LayerOptions:
    """The options of one layer.

    Attributes:
        source: the broker; None for the configured one.
        prefix: the beginning of the hub channels of this layer.
        expiry_seconds: how long a message waits for its receiver.
        group_expiry_seconds: how long a channel stays in a group after its last `group_add`.
        capacity_of: the most messages that wait in a channel, by its name.
        serializer: encodes the messages.
        gap_events: consumers get `broker.gap` events.
    """

    source: Source | None
    prefix: str
    expiry_seconds: float
    group_expiry_seconds: float
    capacity_of: Callable[[str], int]
    serializer: Serializer
    gap_events: bool

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)
        if not isinstance(self.gap_events, bool):
            raise ConfigurationError(f"gap_events={self.gap_events!r}: use True or False")

    def config(self) -> Config:
        """The configuration of the broker at this moment."""
        return load_config(self.source)

    # Names of hub channels

    def owner_channel(self, owner: str) -> str:
        """The hub channel for messages to the process-local channels of one owner."""
        return f"{self.prefix}:p:{owner}"

    @property
    def common_channel(self) -> str:
        """The hub channel for orders to all owners."""
        return f"{self.prefix}:all"

    def group_channel(self, group: str) -> str:
        """The hub channel of a group."""
        return f"{self.prefix}:g:{group}"

    def queue(self, channel: str) -> str:
        """The queue of a normal channel."""
        return f"{self.prefix}:q:{channel}"


def _check_prefix(prefix: object) -> None:
    try:
        check_channel(prefix, MOST_PREFIX_BYTES)
    except ChannelError as exc:
        raise ConfigurationError(f"the option prefix of the channel layer: {exc}") from None


def check_number(name: str, value: object, *, whole: bool = False) -> None:
    """Raise ConfigurationError unless the value is a number over 0."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{name}={value!r}: use {kind} over 0")


def check_capacities(capacities: object) -> None:
    """Raise ConfigurationError unless it is a dict of pattern -> whole number over 0."""
    if not isinstance(capacities, Mapping):
        raise ConfigurationError(
            "channel_capacity is a dict of pattern -> capacity: channel_capacity={'http.*': 200}"
        )
    for pattern, value in capacities.items():
        if not isinstance(pattern, (str, re.Pattern)):
            raise ConfigurationError(
                f"channel_capacity: the pattern {pattern!r} is neither a str nor a compiled "
                "regular expression"
            )
        check_number(f"channel_capacity[{pattern!r}]", value, whole=True)


@frameless
def source_of(url: Source | None, hosts: Sequence[Any] | None) -> Source | None:
    """The broker of a layer, from `url` or from the `hosts` of channels_redis.

    Raises:
        ConfigurationError: both are given, or one of them is wrong.
    """
    if url is not None and hosts:
        raise ConfigurationError("a channel layer has either 'url' or 'hosts', not both")
    source: Source | None = url
    if hosts:
        if isinstance(hosts, (str, bytes)) or not isinstance(hosts, Sequence):
            raise ConfigurationError(
                "'hosts' is a list, also for one host: hosts=[\"redis://localhost:6379\"]"
            )
        source = {"hosts": [_host(host) for host in hosts]}
    if source is not None:
        source = load_config(source)
        open_broker(source.url)  # This validates all options. It does not connect.
    return source


def _host(host: object) -> object:
    """A `hosts` entry of channels_redis as one of ours."""
    if isinstance(host, str):
        return _address(host)
    if isinstance(host, (tuple, list)):
        if len(host) != 2:
            raise ConfigurationError("a host is a pair such as ('localhost', 6379)")
        return {"host": host[0], "port": host[1]}
    if isinstance(host, Mapping):
        entry = {name: value for name, value in host.items() if name not in _IGNORED_OF_HOSTS}
        if isinstance(entry.get("address"), str):
            entry["address"] = _address(entry["address"])
        return entry
    return host


def _address(address: str) -> str:
    return re.sub(r"^unix://", "redis+unix://", address)


def warn_of_ignored(hosts: object, others: Mapping[str, object]) -> None:
    """Name the options that have no meaning here in one warning, each once in a process.

    Args:
        others: the keyword arguments that the layer does not know.

    Raises:
        ConfigurationError: one of them is no option of channels_redis either.
    """
    found: dict[str, str] = {}
    for name in others:
        if name not in _IGNORED:
            raise ConfigurationError(
                f"unknown option {name!r} of the channel layer; {suggest(name, _VALID)}"
            )
        found[name] = _IGNORED[name]
    if isinstance(hosts, (list, tuple)):
        for host in hosts:
            if isinstance(host, Mapping):
                found.update({n: _IGNORED_OF_HOSTS[n] for n in host if n in _IGNORED_OF_HOSTS})
    new = {name: advice for name, advice in found.items() if name not in _warned}
    _warned.update(new)
    if new:
        logger.warning(
            "these options of the channel layer have no meaning here and are ignored: %s",
            "; ".join(f"{name} ({advice})" for name, advice in new.items()),
        )
