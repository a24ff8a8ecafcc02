"""The client that asks for a stream of server-sent events, and the channels that it may have."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from asgiref.sync import SyncToAsync, iscoroutinefunction, sync_to_async
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from ...broker import check_channel
from ...conf import Config
from ...errors import ConfigurationError
from ...hub.control import control_of
from ...middleware.stores import surviving
from ...middleware.tags import digest
from ...middleware.users import Login
from ...middleware.watch import Watched
from ...protocol.tokens import ChannelToken, Identity, read_token
from ...runtime.channel_api import channel_names
from ...runtime.shared_hubs import existing_hub
from .event_ids import MAX_CHANNELS

__all__ = [
    "Client",
    "Refused",
    "checked_names",
    "chosen_channels",
    "client_of",
    "release_thread",
    "tokens_of",
]

CHECK_SECONDS = 5.0
OUTAGE_SECONDS = 600.0
"""The bounds of `Watched`; the defaults of `SessionAuthMiddleware`."""


class Refused(Exception):
    """The request is answered, and no stream begins.

    Attributes:
        response: the answer.
    """

    def __init__(self, response: HttpResponseBase) -> None:
        self.response = response
        super().__init__(f"refused with {response.status_code}")

    @classmethod
    def because(cls, status: int, text: str) -> Refused:
        """Refuse with a status and a line of text."""
        return cls(HttpResponse(f"{text}\n", status=status, content_type="text/plain"))


@dataclasses.dataclass(frozen=True)
class Client:
    """The sender of a request.

    Attributes:
        identity: the user and the session.
        watched: the session, which must stay valid while the stream lasts; or None.
    """

    identity: Identity
    watched: Watched | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which `close_sockets` finds the stream: those of a websocket."""
        user, session = self.identity
        tags = {"user": user, "session": session, "auth": session and "session"}
        return {name: text for name, text in tags.items() if text}


async def client_of(request: HttpRequest) -> Client:
    """The client of a request, by `request.user` and `request.session`, if they are there."""
    if not hasattr(request, "user") and not hasattr(request, "session"):
        return Client(Identity(None, None))
    # Both are loaded when they are first used, which may query the database.
    return await sync_to_async(_read_client)(request)


def _read_client(request: HttpRequest) -> Client:
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY

    user, session = getattr(request, "user", None), getattr(request, "session", None)
    pk = None
    if user is not None and getattr(user, "is_authenticated", True):
        pk = getattr(user, "pk", None)
    name = None if pk is None else str(pk)
    if session is None or not session.session_key:
        return Client(Identity(name, None))
    data = dict(session.items())
    key = session.session_key  # Loading has removed it if there is no such session.
    if not key or not data:
        return Client(Identity(name, None))
    login = None
    if name is not None and str(data.get(SESSION_KEY)) == name and BACKEND_SESSION_KEY in data:
        login = Login(pk, data[BACKEND_SESSION_KEY], data.get(HASH_SESSION_KEY))
    watched = Watched(
        tag=("session", digest(key)),
        key=key,
        survivors=surviving,
        login=login,
        check_seconds=CHECK_SECONDS,
        outage_seconds=OUTAGE_SECONDS,
    )
    return Client(Identity(name, digest(key)), watched)


async def chosen_channels(
    choose: Callable[..., Any], request: HttpRequest, *args: Any, **kwargs: Any
) -> list[str]:
    """The channels that the function of the application names.

    Raises:
        Refused: it names none, or returns a response.
        ChannelError, ConfigurationError: its result is not valid.
        Exception: any error of the function.
    """
    is_async = iscoroutinefunction(choose) or iscoroutinefunction(type(choose).__call__)
    call = choose if is_async else sync_to_async(choose)
    found = await call(request, *args, **kwargs)
    if inspect.isawaitable(found):
        found = await found
    if isinstance(found, HttpResponseBase):
        raise Refused(found)
    if found is None or found is False or found == "":
        raise Refused.because(403, "You may not read these events.")
    names = checked_names(found)
    if not names:
        raise Refused.because(403, "You may not read these events.")
    return names


def checked_names(channels: object) -> list[str]:
    """The names in one channel, or in a list, tuple or set, without repetitions.

    Raises:
        ChannelError: a name is not valid.
        ConfigurationError: there are more than `MAX_CHANNELS`.
    """
    names = list(dict.fromkeys(check_channel(name) for name in channel_names(channels)))
    if len(names) > MAX_CHANNELS:
        raise ConfigurationError(
            f"{len(names)} channels in one stream of server-sent events: use at most "
            f"{MAX_CHANNELS}, or broadcast to one channel for all of them"
        )
    return names


def tokens_of(texts: Sequence[str], client: Client, config: Config) -> dict[str, ChannelToken]:
    """The tokens of signed channels in the query of a request, by channel.

    Raises:
        Refused: one of them is not valid for the client.
    """
    if len(texts) > MAX_CHANNELS:
        raise Refused.because(400, f"too many tokens: use at most {MAX_CHANNELS}")
    hub = existing_hub(asyncio.get_running_loop(), config)
    revocations = None if hub is None else control_of(hub).revocations
    found: dict[str, ChannelToken] = {}
    for text in texts:
        token = read_token(text)
        if token is None:
            raise Refused.because(403, "token_invalid")
        if not token.is_for(client.identity):
            raise Refused.because(403, "token_foreign")
        if token.seconds_left <= 0:
            raise Refused.because(403, "token_expired")
        tags, name = client.tags, token.channel
        if revocations is not None and revocations.cover(tags, name, token.issued_at):
            raise Refused.because(403, "forbidden")
        known = found.get(name)
        if known is None or known.expires_at < token.expires_at:
            found[name] = token
    return found


async def release_thread() -> None:
    """Close the database connections of the request, and end its thread.

    Django keeps both until the response has ended, and a stream may last for hours. Later `def`
    code of the request, such as a receiver of `request_finished`, gets a new thread.
    """
    if not await sync_to_async(_close_connections)():
        return
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is not None:  # Without one, the thread is shared, as in `AsyncClient`.
        executor = SyncToAsync.context_to_thread_executor.pop(context, None)
        if executor is not None:
            executor.shutdown(wait=False)


def _close_connections() -> bool:
    """Whether all connections are closed: within a test, one may have an open transaction."""
    found = list(connections.all(initialized_only=True))
    for connection in found:
        if not connection.in_atomic_block:
            connection.close()
    return not any(connection.in_atomic_block for connection in found)
