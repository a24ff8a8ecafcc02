"""Broadcasting when the database has committed: nobody hears of what was rolled back."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction

from ..broker import check_channel
from ..codec import encode
from ..conf import Config, default_config
from ..errors import DjangoSocketsError, PayloadTooLarge
from ..log import LogThrottle
from ..runtime.background import background_loop, publish
from ..runtime.channel_api import Channels, channel_names
from ..runtime.sync_calls import Calls
from ..url import BrokerOptions

__all__ = ["broadcast_on_commit"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


def broadcast_on_commit(channel: Channels, data: Any, using: str | None = None) -> None:
    """Broadcast after the current transaction has committed; outside of one, at once.

    The data is encoded now: what is wrong with it is raised here, and what changes later is not
    sent. After the commit the thread waits until the broker has it, and goes on when it does not
    take it: the rows are committed by then, so that is logged and not raised. A rollback, also of
    a savepoint, drops the broadcast. Broadcasts go out in the order of the calls.

    Args:
        channel: one channel, or a list, tuple or set of them.
        data: anything with a JSON form, or bytes for a binary frame.
        using: the alias of the database, None for the default one.

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
            logging.ERROR, "on_commit", "a broadcast after a commit was not sent: %s", exc
        )
