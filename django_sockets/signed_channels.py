"""Signed channels: tokens with which a page subscribes, and positions to read before the state.

    def order(request, pk):
        since = position([f"order:{pk}"])  # before the query
        order = get_object_or_404(Order, pk=pk, customer=request.user)
        return render(request, "order.html", {"order": order, "since": since})

    {% load django_sockets %}
    <body data-token="{% channel_token channel since=since %}">

docs/security.md describes what a token allows, and docs/client-protocol.md how clients use it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .broker import check_channel
from .conf import Config, Source, load_config
from .deadlines import with_deadline
from .errors import BrokerError, CallError, ConfigurationError, PositionError
from .forks import PerProcess
from .history import Position
from .log import LogThrottle
from .middleware.tags import digest
from .protocol.tokens import ChannelToken, write_token
from .registry import open_broker
from .runtime.background import background_loop, through_hub
from .runtime.channel_api import channel_name, channel_names
from .runtime.sync_calls import Calls, running_loop
from .url import BrokerOptions

__all__ = ["async_position", "channel_token", "position"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

POSITION_SECONDS = 0.2
"""The longest time that a page waits for its positions."""
DOWN_SECONDS = 1.0
"""For this time after a broker has not answered, pages do not ask it again."""
MAX_EXPIRES_SECONDS = 7 * 24 * 3600


def channel_token(
    channel: str | int,
    *,
    user: Any,
    session: Any = None,
    expires_seconds: float = 600,
    presence: bool = False,
    since: str | Mapping[str, str] | None = None,
) -> str:
    """A signed text with which a client of the protocol subscribes to one channel.

    The class of the socket is not asked: `may_subscribe` is not called. Make a token only where you
    have checked that the user may read the channel. A token never allows to publish.

    Args:
        channel: the channel.
        user: the user that may use it: a logged-in user, or the primary key of one. None has to be
            written: then anybody who has the token may use it, or the `session` alone.
        session: the session that may use it, such as `request.session`; None for no such bound.
        expires_seconds: the time until it expires, at most seven days. Its subscriptions end then,
            unless the client renews them.
        presence: whether the client may take part in the presence of the channel.
        since: the position of the channel when the state was read, or the result of `position`.

    Returns:
        A text of letters, digits and `-_:`.

    Raises:
        ChannelError: the name of the channel is not valid.
        PositionError: `since` is not a position.
        ConfigurationError: the user is anonymous, the session has no key yet, the time is not
            valid, or Django has no SECRET_KEY.
    """
    name = check_channel(channel_name(channel))
    seconds: Any = expires_seconds
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or not 0 < seconds <= MAX_EXPIRES_SECONDS:
        raise ConfigurationError(
            f"expires_seconds={seconds!r}: use a number of seconds over 0, at most seven days"
        )
    at = since.get(name) if isinstance(since, Mapping) else since
    if at is not None:
        if not isinstance(at, str):
            raise PositionError
        Position.parse(at)
    now = time.time()
    token = ChannelToken(
        channel=name,
        expires_at=now + seconds,
        issued_at=now,
        user=_user_text(user),
        session=_session_text(session),
        presence=presence,
        since=at,
    )
    return write_token(token)


def _user_text(user: Any) -> str | None:
    if user is None:
        return None
    if getattr(user, "is_anonymous", False) is True:
        raise ConfigurationError(
            "channel_token got an anonymous user: write user=None for a token that anybody may "
            "use, and session=request.session to bind it to the session"
        )
    key = getattr(user, "pk", user)
    if key is None or isinstance(key, bool) or key == "":
        raise ConfigurationError(f"channel_token got the user {user!r}, which has no primary key")
    return str(key)


def _session_text(session: Any) -> str | None:
    if session is None:
        return None
    key = session if isinstance(session, str) else session.session_key
    if not key:
        raise ConfigurationError(
            "the session has no key yet: call request.session.create() before channel_token"
        )
    return digest(key)


# Positions


class _Down:
    """The brokers that have not answered, and until when they are not asked."""

    def __init__(self) -> None:
        self.until: dict[Config, float] = {}
        self.lock = threading.Lock()

    def is_down(self, config: Config) -> bool:
        return time.monotonic() < self.until.get(config, -math.inf)

    def mark(self, config: Config, problem: object) -> None:
        with self.lock:
            if len(self.until) >= 16:
                self.until.clear()
            self.until[config] = time.monotonic() + DOWN_SECONDS
        text = "pages are rendered without positions, because the broker does not answer: %s"
        _throttle.log(
            logging.WARNING,
            f"position {config.url}",
            text,
            problem,
            extra={"broker": config.url, "reason": problem},
        )


_down = PerProcess(_Down)


@functools.lru_cache(maxsize=16)
def _load_backend(config: Config) -> None:
    """Import the backend, so that the time limit of a page is that of its broker alone.

    Without a server that did so at its start, the first page of a process does it. For redis://,
    it takes 0.14 s of CPU time.
    """
    if config.open_broker is open_broker:
        open_broker(config.url)  # It does not connect.


def position(
    channels: str | int | Iterable[str | int], *, config: Source | None = None
) -> dict[str, str]:
    """The positions of channels in their histories, for `channel_token`. Call it in a view.

    Read the positions before the state. A change between the two then comes twice, as a part of the
    state and as a message, but never not at all: give the state a version, or make the messages
    such that a repetition changes nothing.

    It takes one round trip to the broker, and at most 0.2 s. If the broker does not answer, the
    result has no positions, and later calls return at once for a second. A client without a
    position loads the state again when it has subscribed. The first call of a process also imports
    the backend of the broker, unless the server did so at its start; the 0.2 s begin afterwards.

    Args:
        channels: one channel, or a list, tuple or set of them.
        config: the broker; None for the configured one.

    Returns:
        A dict of channel -> position.

    Raises:
        ChannelError: the name of a channel is not valid, or the channel has no history rule.
        CallError: this thread runs an event loop: await `async_position`.
    """
    if running_loop() is not None:
        raise CallError("this thread runs an event loop: await async_position instead")
    names, loaded = channel_names(channels), load_config(config)
    if _down.current.is_down(loaded):
        return {}
    _load_backend(loaded)
    try:
        calls = Calls(background_loop(), POSITION_SECONDS)
        return calls.result(lambda: _ask(names, loaded))
    except (BrokerError, CallError) as exc:
        _down.current.mark(loaded, exc)
        return {}


async def async_position(
    channels: str | int | Iterable[str | int], *, config: Source | None = None
) -> dict[str, str]:
    """See `position`. For async views."""
    names, loaded = channel_names(channels), load_config(config)
    if _down.current.is_down(loaded):
        return {}
    _load_backend(loaded)
    try:
        return await with_deadline(POSITION_SECONDS, _ask(names, loaded))
    except (BrokerError, CallError) as exc:
        _down.current.mark(loaded, exc)
    except asyncio.TimeoutError:
        _down.current.mark(loaded, f"no answer within {POSITION_SECONDS:g} s")
    return {}


async def _ask(names: list[str], config: Config) -> dict[str, str]:
    return await through_hub(config, lambda hub: hub.position(names))
