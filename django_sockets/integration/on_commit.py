"""Broadcasting after the database has committed, so that a rollback also drops the broadcast."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction

from ..broker import check_channel
from ..codec import encode
from ..conf import Config, default_config
from ..errors import DjangoSocketsError, PayloadTooLarge
from ..log import LogThrottle
from ..runtime import background_loop, publish
from ..runtime.channel_api import Channels, channel_names
from ..runtime.sync_calls import Calls
from ..url import BrokerOptions

__all__ = ["broadcast_on_commit"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


def broadcast_on_commit(channel: Channels, data: Any, using: str | None = None) -> None:
    """Broadcast after the current transaction has committed; outside a transaction, at once.

    The data is encoded by this call: it raises the errors of the data, and later changes to the
    data are not sent. After the commit the thread waits until the broker has the broadcast. A
    failure is then logged and not raised, because the rows are committed already. A rollback, also
    of a savepoint, drops the broadcast. Broadcasts are sent in the order of the calls.

    Args:
        channel: one channel, or a list, tuple or set of them.
        data: anything with a JSON form, or bytes for a binary frame.
        using: the alias of the database; None for the default one.

    Raises:
        ChannelError, EncodeError, PayloadTooLarge: nothing will be sent.
    """
    config = default_config()
    names = [check_channel(name) for name in channel_names(channel)]
    payload, is_text = encode(data)
    limit = config.url.options.max_payload_bytes
    if len(payload) > limit:
        raise PayloadTooLarge(len(payload), limit)
    transaction.on_commit(lambda: _publish(config, names, payload, is_text), using, robust=True)


def _publish(config: Config, names: list[str], payload: bytes, is_text: bool) -> None:
    try:
        calls = Calls(background_loop(), config.settings.sync_call_timeout_seconds)
        calls.plain(lambda: publish(config, names, payload, is_text=is_text))
    except DjangoSocketsError as exc:
        _throttle.log(
            logging.ERROR,
            "on_commit",
            "a broadcast after a commit was not sent: %s",
            exc,
            extra={"reason": exc},
        )
