"""Closes sockets by their tags on every process, such as all sockets of user 7.

Middleware adds tags to `scope["django_sockets.tags"]`. An application adds tags with
`BaseSocketServer.tags`. The functions may be called from any code, such as a view or a signal.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

from .broker import check_channel
from .conf import Config, Source, load_config
from .connection.close_codes import UNAUTHORIZED
from .errors import ConfigurationError
from .hub.control import check_close_code, close_order, controls, on_missed_orders, tag_texts
from .hub.revocations import Revocation, revoke_order
from .runtime import through_hub
from .runtime.broadcaster_connection import BroadcasterConnection
from .runtime.channel_api import Channels, channel_names

__all__ = [
    "UNAUTHORIZED",
    "async_close_sockets",
    "async_revoke_channels",
    "close_local_sockets",
    "close_sockets",
    "on_missed_orders",
    "revoke_channels",
]


def close_sockets(*, code: int = UNAUTHORIZED, config: Source | None = None, **tags: Any) -> None:
    """Close all sockets that have all of the tags, on every process.

    Sockets of this process are closed first, even if publishing the order fails. The call returns
    when the order is published. Sockets of other processes close when the order reaches them.

    On a thread that runs an event loop, the publish is scheduled and a failure is logged. Await
    `async_close_sockets` there.

    Args:
        code: the close code, 1000 or 3000 to 4999.
        config: the configuration of the sockets. None means the default configuration, and in this
            process the sockets of all configurations.
        tags: at least one tag, such as user=7. The text of a tag is `str(value.pk)` for an object
            with a `pk`, else `str(value)`.

    Raises:
        ConfigurationError: no tag, a tag with the value None, or a wrong code. Nothing was closed.
        PublishError: the order may not have reached the other processes.
    """
    texts = _checked(code, tags)
    loaded = load_config(config)
    _close_local(texts, code, None if config is None else loaded)
    order = close_order(texts, code)
    _publisher(loaded).calls.plain(lambda: _publish(loaded, order))


async def async_close_sockets(
    *, code: int = UNAUTHORIZED, config: Source | None = None, **tags: Any
) -> None:
    """Like `close_sockets`. A cancelled call may or may not have published the order."""
    texts = _checked(code, tags)
    loaded = load_config(config)
    _close_local(texts, code, None if config is None else loaded)
    await _publish(loaded, close_order(texts, code))


def close_local_sockets(*, code: int = UNAUTHORIZED, **tags: Any) -> int:
    """Close all sockets of this process that have all of the tags.

    It may be called on any thread and does not wait. The sockets close on their own event loops.

    Returns:
        The number of sockets.

    Raises:
        ConfigurationError: see `close_sockets`.
    """
    return _close_local(_checked(code, tags), code, None)


def revoke_channels(channels: Channels, *, config: Source | None = None, **tags: Any) -> None:
    """Take the right to channels back from all sockets that have all of the tags, everywhere.

    The subscriptions that clients of the protocol `django-sockets.v1` have made to the channels end
    with the code "revoked". These clients cannot use an earlier token for the channels again. A new
    token, or `may_subscribe`, may admit them again. Subscriptions that the application has made for
    a socket, and sockets without the protocol, are not changed.

    Each process remembers the last 1000 calls while it has tagged sockets. A process that has none
    at the time of the call accepts the earlier tokens until they expire.

    Args:
        channels: one channel, or a list, tuple or set of them.
        config, tags: see `close_sockets`.

    Raises:
        ChannelError, ConfigurationError: nothing was revoked.
        PublishError: the order may not have reached the other processes.
    """
    revocation = _revocation(channels, tags)
    loaded = load_config(config)
    _revoke_local(revocation, None if config is None else loaded)
    order = revoke_order(revocation)
    _publisher(loaded).calls.plain(lambda: _publish(loaded, order))


async def async_revoke_channels(
    channels: Channels, *, config: Source | None = None, **tags: Any
) -> None:
    """Like `revoke_channels`. A cancelled call may or may not have published the order."""
    revocation = _revocation(channels, tags)
    loaded = load_config(config)
    _revoke_local(revocation, None if config is None else loaded)
    await _publish(loaded, revoke_order(revocation))


def _revocation(channels: Channels, tags: dict[str, Any]) -> Revocation:
    names = [check_channel(name) for name in channel_names(channels)]
    if not names:
        raise ConfigurationError("name at least one channel to revoke")
    return Revocation(_checked(UNAUTHORIZED, tags), frozenset(names), time.time())


def _revoke_local(revocation: Revocation, config: Config | None) -> None:
    for control in controls():
        if config is None or control.config.url == config.url:
            with contextlib.suppress(RuntimeError):  # The loop has ended, and so have its sockets.
                control.loop.call_soon_threadsafe(control.revoke, revocation)


def _checked(code: int, tags: dict[str, Any]) -> dict[str, str]:
    check_close_code(code)
    texts = tag_texts(tags)
    missing = [name for name in tags if name not in texts]
    if missing:
        raise ConfigurationError(f"tag {missing[0]}=None closes nothing: give it a value")
    if not texts:
        raise ConfigurationError("name at least one tag of the sockets to close, such as user=7")
    return texts


def _close_local(tags: dict[str, str], code: int, config: Config | None) -> int:
    count = 0
    for control in controls():
        if config is not None and control.config.url != config.url:
            continue
        matching = len(control.matching(tags))
        if matching:
            try:
                control.loop.call_soon_threadsafe(control.close, tags, code)
            except RuntimeError:
                continue  # The loop has ended, and so have its sockets.
            count += matching
    return count


async def _publish(config: Config, order: bytes) -> None:
    await through_hub(config, lambda hub: hub.publish_control(order))


@functools.lru_cache(maxsize=16)
def _publisher(config: Config) -> BroadcasterConnection:
    """The object that schedules the plain calls in order. It is kept for each configuration."""
    return BroadcasterConnection(config)
