"""`events_view`: a Django view whose response is a stream of server-sent events."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import transaction
from django.http import (
    HttpRequest,
    HttpResponseBase,
    HttpResponseNotAllowed,
    StreamingHttpResponse,
)

from ...conf import Config, Source, load_config
from ...errors import ConfigurationError
from ...log import LogThrottle
from ...middleware.signals import connect_signals
from ...protocol.tokens import ChannelToken
from ...runtime.channel_api import Channels
from ...url import BrokerOptions
from .access import (
    Refused,
    checked_names,
    chosen_channels,
    client_of,
    release_thread,
    tokens_of,
)
from .event_ids import MAX_CHANNELS, is_position, read_event_id
from .stream import EventStream, StreamRequest

__all__ = ["EVENTS_VIEW", "EventSource", "events_view"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

EVENTS_VIEW = "is_django_sockets_events_view"
"""An attribute of the view. Decorators that use `functools.wraps` copy it."""
LAST_EVENT_ID = "last_event_id"
"""The key of the query that replaces the header Last-Event-ID."""
NEEDS_ASGI = (
    "Server-sent events need an ASGI server, and this request came through WSGI, where each open "
    "page would occupy a worker. Serve ASGI_APPLICATION with uvicorn, hypercorn, daphne or granian."
)
HEADERS = {
    "Cache-Control": "no-store, no-transform",
    # nginx and servers that copy its header: pass each event on at once.
    "X-Accel-Buffering": "no",
    # Django's GZipMiddleware would make each chunk a gzip file of its own, and Chromium reads only
    # the first one.
    "Content-Encoding": "identity",
}

View = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


def events_view(
    channels: Channels | Callable[..., Any] | None = None,
    *,
    tokens: bool = False,
    require_user: bool = False,
    replay: int = 0,
    config: Source | None = None,
    keepalive_seconds: float = 15.0,
    retry_seconds: float = 3.0,
) -> View:
    """An async Django view that streams channels as server-sent events.

    It needs an ASGI server. docs/server-sent-events.md describes the events and the costs.

    A client that connects again gets the messages since the id that it sends, if the channels have
    a history; otherwise the stream begins with a gap.

    Args:
        channels: a channel, or a list, tuple or set of them, which everybody may read. Or a
            function, `def` or `async def`, which gets the request and the arguments of the URL, and
            returns the channels of this client. It refuses by `raise PermissionDenied`, by
            returning None, or by returning a response. At most 64 channels.
        tokens: clients name channels by signed tokens in the query, as `?token=...&token=...`; see
            `channel_token`. They are added to `channels`.
        require_user: answer 401 if the user is not logged in.
        replay: number of the last messages that a client gets first, if it sends no id.
        config: the broker; None for the configured one.
        keepalive_seconds: a comment is sent after this time without an event, so that proxies do
            not close the connection.
        retry_seconds: the mean time after which a browser connects again. Each stream gets a random
            time between half and one and a half of it.

    Raises:
        ChannelError: the name of a channel is not valid.
        ConfigurationError: an argument is not valid.
    """
    if channels is None and not tokens:
        raise ConfigurationError(
            "events_view needs channels: name them, pass a function that returns them, or "
            "use tokens=True for signed channels"
        )
    source = EventSource(
        *_choice(channels),
        tokens=tokens,
        require_user=require_user,
        replay=_whole("replay", replay),
        config=None if config is None else load_config(config),
        keepalive_seconds=_seconds("keepalive_seconds", keepalive_seconds),
        retry_seconds=_seconds("retry_seconds", retry_seconds),
    )
    if apps.apps_ready and apps.is_installed("django.contrib.auth"):
        connect_signals()

    async def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return await source.respond(request, args, kwargs)

    setattr(view, EVENTS_VIEW, True)
    for alias in settings.DATABASES:  # ATOMIC_REQUESTS would refuse an async view.
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@dataclasses.dataclass(frozen=True)
class EventSource:
    """The arguments of one `events_view`, checked; and its answers to requests.

    Attributes:
        choose: returns the channels of a client.
        fixed: channels of all clients.
    """

    choose: Callable[..., Any] | None
    fixed: tuple[str, ...]
    tokens: bool
    require_user: bool
    replay: int
    config: Config | None
    keepalive_seconds: float
    retry_seconds: float

    async def respond(
        self, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponseBase:
        """The stream, or the reason for which there is none."""
        try:
            stream = await self._stream(request, args, kwargs)
        except Refused as refused:
            return refused.response
        await stream.begin()
        return StreamingHttpResponse(stream, content_type="text/event-stream", headers=HEADERS)

    async def _stream(
        self, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> EventStream:
        if getattr(request, "scope", None) is None:
            _throttle.log(logging.ERROR, "events wsgi", NEEDS_ASGI, extra={"path": request.path})
            raise Refused.because(501, NEEDS_ASGI)
        if request.method != "GET":
            raise Refused(HttpResponseNotAllowed(["GET"]))
        config = load_config(self.config)
        client = await client_of(request)
        if self.require_user and client.identity.user is None:
            raise Refused.because(401, "Log in first.")
        names = [*self.fixed]
        if self.choose is not None:
            names += await chosen_channels(self.choose, request, *args, **kwargs)
        signed: dict[str, ChannelToken] = {}
        if self.tokens:
            found = tokens_of(request.GET.getlist("token"), client, config)
            signed = {name: token for name, token in found.items() if name not in names}
            names += signed
        if not names:
            raise Refused.because(403, "There is no token in the address.")
        if len(names) > MAX_CHANNELS:
            raise Refused.because(400, f"too many channels: use at most {MAX_CHANNELS}")
        since, resync = _start(request, names, signed)
        return EventStream(
            StreamRequest(
                config=config,
                channels=tuple(names),
                since=since,
                resync=resync,
                replay=0 if resync else self.replay,
                tags=client.tags,
                watched=client.watched,
                expires={name: token.seconds_left for name, token in signed.items()},
                prepare=release_thread,
                keepalive_seconds=self.keepalive_seconds,
                retry_seconds=self.retry_seconds,
            )
        )


def _choice(channels: object) -> tuple[Callable[..., Any] | None, tuple[str, ...]]:
    """The fields `choose` and `fixed`."""
    if callable(channels):
        return channels, ()
    return None, () if channels is None else tuple(checked_names(channels))


def _start(
    request: HttpRequest, names: list[str], signed: dict[str, ChannelToken]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The positions at which the stream begins, and the channels that begin with a gap.

    A browser sends the header when it connects again by itself. Scripts can only set the query.
    """
    text = request.headers.get("Last-Event-ID") or request.GET.get(LAST_EVENT_ID)
    if text:
        since = read_event_id(text, names)
        return since, tuple(name for name in names if name not in since)
    positions = {name: token.since for name, token in signed.items()}
    return {name: at for name, at in positions.items() if at is not None and is_position(at)}, ()


def _seconds(name: str, value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= 3600:  # type: ignore[arg-type, operator]
        raise ConfigurationError(f"{name}={value!r}: use a number of seconds over 0, at most 3600")
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name}={value!r}: use a whole number of messages, 0 for none")
    return value
