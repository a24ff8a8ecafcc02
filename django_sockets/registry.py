"""Which backend serves which URL scheme, and opening one by URL.

The table holds strings only: nothing in the core imports a backend. Third parties add schemes
through the entry-point group `django_sockets.brokers`, `scheme = "module:Class"`; the class is
called as `Class(url, sink)` with a `BrokerURL` and a `Sink`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from .broker import Broker, Sink
from .errors import ConfigurationError, pip_command
from .redaction import frameless
from .url import BrokerURL, canonical_scheme, suggest

__all__ = ["open_broker", "schemes"]

ENTRY_POINT_GROUP = "django_sockets.brokers"

_BUILT_IN = {
    "memory": "django_sockets.backends.memory:MemoryBroker",
    "fakeredis": "django_sockets.backends.fakeredis:FakeredisBroker",
    "redis": "django_sockets.backends.redis:RedisBroker",
    "rediss": "django_sockets.backends.redis:RedisBroker",
    "redis+unix": "django_sockets.backends.redis:RedisBroker",
    "redis+sentinel": "django_sockets.backends.sentinel:SentinelBroker",
    "rediss+sentinel": "django_sockets.backends.sentinel:SentinelBroker",
    "redis+cluster": "django_sockets.backends.cluster.broker:ClusterBroker",
    "rediss+cluster": "django_sockets.backends.cluster.broker:ClusterBroker",
    "redis+serverless": "django_sockets.backends.serverless:ServerlessBroker",
    "rediss+serverless": "django_sockets.backends.serverless:ServerlessBroker",
}
_SHARDED = "django_sockets.backends.sharded:ShardedBroker"
# Driver package of a scheme -> the extra of ours that installs it.
_EXTRAS = {"fakeredis": "fakeredis"}


class _DiscardSink:
    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        pass

    def lost(self, channels: Sequence[str], reason: str) -> None:
        pass


def schemes() -> dict[str, str]:
    """Every known scheme -> "module:Class". A built-in scheme cannot be taken over."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **_BUILT_IN}


@frameless
def open_broker(url: str | BrokerURL, sink: Sink | None = None) -> Broker:
    """Make the broker for a URL. It belongs to the event loop that first uses it.

    Args:
        url: such as "redis://localhost:6379"; the README lists the schemes.
        sink: takes what the broker hears; without one, messages are discarded.

    Raises:
        ConfigurationError: unknown scheme or option, a bad value, or a missing driver package.
    """
    parsed = url if isinstance(url, BrokerURL) else BrokerURL.parse(url)
    if sink is None:
        sink = _DiscardSink()
    if parsed.shards:
        parts = [open_broker(shard, sink) for shard in parsed.shards]
        return _backend(parsed, _SHARDED)(parsed, parts)
    known = schemes()
    target = known.get(canonical_scheme(parsed.scheme))
    if target is None:
        raise ConfigurationError(
            f"{parsed}: unknown scheme {parsed.scheme!r}; {suggest(parsed.scheme, known)}"
        )
    return _backend(parsed, target)(parsed, sink)


def _backend(url: BrokerURL, target: str) -> Callable[..., Broker]:
    """The class that "module:Class" names."""
    module_name, _, class_name = target.partition(":")
    try:
        backend: Callable[..., Broker] = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as exc:
        extra = _EXTRAS.get(exc.name or "")
        if extra is None:
            raise
        raise ConfigurationError(
            f"{url}: the package {exc.name!r} is not installed: run {pip_command(extra)}"
        ) from exc
    return backend
