"""The backend of each URL scheme, and `open_broker`.

The table holds strings only, because the core imports no backend. Third parties add schemes through
the entry-point group `django_sockets.brokers` as `scheme = "module:Class"`. The class is called as
`Class(url, sink)` with a `BrokerURL` and a `Sink`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from .broker import Broker, Sink, SupportsHistory
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
_SHARDED = "django_sockets.backends.sharded:sharded_broker"
# Driver package -> the extra of django-sockets that installs it.
_EXTRAS = {"fakeredis": "fakeredis"}


class _DiscardSink:
    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        pass

    def lost(self, channels: Sequence[str], reason: str) -> None:
        pass


def schemes() -> dict[str, str]:
    """Every known scheme -> "module:Class". An entry point cannot replace a built-in scheme."""
    from importlib.metadata import entry_points  # It imports much that nothing else here needs.

    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **_BUILT_IN}


@frameless
def open_broker(url: str | BrokerURL, sink: Sink | None = None) -> Broker:
    """Make the broker of a URL. It belongs to the event loop that first uses it.

    Args:
        url: such as "redis://localhost:6379"; the README lists the schemes.
        sink: receives the messages; None discards them.

    Raises:
        ConfigurationError: an unknown scheme or option, a wrong value, a missing driver package, or
            history rules for a broker without `SupportsHistory`.
    """
    parsed = url if isinstance(url, BrokerURL) else BrokerURL.parse(url)
    if sink is None:
        sink = _DiscardSink()
    if parsed.shards:
        parts = [open_broker(shard, sink) for shard in parsed.shards]
        return _backend(parsed, _SHARDED)(parsed, parts)
    scheme = canonical_scheme(parsed.scheme)
    target = _BUILT_IN.get(scheme) or (known := schemes()).get(scheme)
    if target is None:
        raise ConfigurationError(
            f"{parsed}: unknown scheme {parsed.scheme!r}; {suggest(parsed.scheme, known)}"
        )
    broker = _backend(parsed, target)(parsed, sink)
    if parsed.history and not isinstance(broker, SupportsHistory):
        raise ConfigurationError(
            f"{parsed}: this broker cannot keep messages: remove the setting 'history' and the "
            "options history_messages and history_seconds"
        )
    return broker


def _backend(url: BrokerURL, target: str) -> Callable[..., Broker]:
    """Import the class that "module:Class" names."""
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
