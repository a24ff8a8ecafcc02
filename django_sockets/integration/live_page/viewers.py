"""Users with an open live page, who must not keep it when they are not staff any more.

The session check of the stream notices a logout, an expired session, a new password and a user who
is not active. It does not know the rule of the admin, so that this module checks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.http import HttpRequest

from ...closing import async_revoke_channels
from ...conf import Config
from ...hub.control import control_of
from ...hub.hub import Hub
from ...optional_django import database_hygiene
from .access import may_see

__all__ = ["CHECK_SECONDS", "Viewers"]

logger = logging.getLogger("django_sockets")

CHECK_SECONDS = 4.0
"""The pause between two checks. With the time of a check, a page is closed after at most 5 s."""
START_SECONDS = 30.0
"""A stream begins within this time after its request."""


class Viewers:
    """The users who see the streams of one hub.

    Args:
        channel: the channel of the streams.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._requests: dict[str, tuple[HttpRequest, float]] = {}

    def add(self, request: HttpRequest) -> None:
        """A user begins to watch. Keeps the newest request of each user."""
        self._requests[str(request.user.pk)] = (request, time.monotonic())

    async def check(self, hub: Hub) -> None:
        """End the streams of users who may not see the page any more."""
        watching = control_of(hub).values("user")
        begun = time.monotonic() - START_SECONDS
        for pk, (_, at) in list(self._requests.items()):
            if pk not in watching and at < begun:
                del self._requests[pk]
        if not self._requests:
            return
        requests = {pk: request for pk, (request, _) in self._requests.items()}
        for pk in await asyncio.to_thread(self._without_right, requests):
            await self._end(hub.config, pk)

    def _without_right(self, requests: dict[str, HttpRequest]) -> list[str]:
        with database_hygiene():
            return [pk for pk, request in requests.items() if not _may_still_see(request)]

    async def _end(self, config: Config, pk: str) -> None:
        self._requests.pop(pk, None)
        logger.info("closing the live page of a user who is not staff any more")
        await async_revoke_channels(self._channel, config=config, user=pk)


def _may_still_see(request: HttpRequest) -> bool:
    """The rule of the admin, with the present row of the user."""
    with contextlib.suppress(ObjectDoesNotExist):
        user: Any = request.user  # Of any user model.
        user.refresh_from_db()
        return may_see(request)
    return False
