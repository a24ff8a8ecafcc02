"""One survey of all processes for all open live pages of an event loop.

The pictures reach the pages by a broker inside the process, which nothing else uses. So the page
also works while the real broker does not answer, its messages are in no history and no counter of
the real broker, and no client can guess its channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time

from django.http import HttpRequest

from ...broker import Broker, Sink
from ...conf import Config, load_config
from ...deadlines import with_deadline
from ...errors import BrokerClosed
from ...hub.survey.asking import WINDOW_SECONDS
from ...observability.live.watching import INTERVAL_SECONDS, snapshots
from ...registry import open_broker
from ...runtime.shared_hubs import shared_hub
from ...url import BrokerURL
from .pictures import picture_of
from .viewers import CHECK_SECONDS, Viewers

__all__ = ["CHANNEL", "Feed", "FeedEnded", "private_broker"]

logger = logging.getLogger("django_sockets")

CHANNEL = "live page"
LINGER_SECONDS = 15.0
"""A feed ends when nobody has looked for this time. It is longer than the start of a stream."""
FIRST_PICTURE_SECONDS = 10.0
"""The longest wait for the first picture. It takes 1 s, or the timeout of the broker."""


class FeedEnded(Exception):
    """There is no picture, because the process shuts down or the broker hangs."""


def _open_private(url: BrokerURL, sink: Sink | None = None) -> Broker:
    return open_broker(url, sink)


def private_broker() -> Config:
    """The broker for the pages of this process. A new page gets the last picture at once."""
    rules = {CHANNEL: {"messages": 1, "seconds": 2 * INTERVAL_SECONDS}}
    config = load_config({"url": f"memory://live-page-{os.urandom(8).hex()}", "history": rules})
    # It is not announced in the log as the broker of the application.
    return dataclasses.replace(config, open_broker=_open_private)


class Feed:
    """Asks the processes while somebody looks. Its methods run on one event loop.

    Args:
        config: the broker whose processes are shown.
        pages: the broker of the pages; see `private_broker`.
    """

    def __init__(self, config: Config, pages: Config) -> None:
        self.config = config
        self.viewers = Viewers(CHANNEL)
        self._pages = pages
        self._task: asyncio.Task[None] | None = None
        self._picture: bytes | None = None
        self._changed = asyncio.Event()
        self._looked_at = 0.0

    def watch(self, request: HttpRequest) -> str:
        """The channel of the pictures, for a stream of the user of this request."""
        self.viewers.add(request)
        self._start()
        return CHANNEL

    async def picture(self) -> bytes:
        """The newest picture. The first one takes a second.

        Raises:
            FeedEnded: there is none.
        """
        self._start()
        with contextlib.suppress(asyncio.TimeoutError):
            await with_deadline(FIRST_PICTURE_SECONDS, self._changed.wait())
        if self._picture is None:
            raise FeedEnded
        return self._picture

    def _start(self) -> None:
        self._looked_at = time.monotonic()
        if self._task is None:
            self._changed = asyncio.Event()
            self._task = asyncio.create_task(self._run(), name="django_sockets live page")

    async def _run(self) -> None:
        """Make pictures until nobody looks. The end of the event loop cancels this, too."""
        feed = os.urandom(8).hex()
        checking = asyncio.create_task(
            self._check_viewers(), name="django_sockets live page viewers"
        )
        try:
            hub = shared_hub(self.config)
            hub.surveys.stay()  # The process that serves the page is one of those that it shows.
            times = {"interval_seconds": INTERVAL_SECONDS, "window_seconds": WINDOW_SECONDS}
            async with contextlib.aclosing(snapshots(hub, **times)) as found:
                async for snapshot in found:
                    self._picture = picture_of(snapshot, feed)
                    self._changed.set()
                    if not await self._shown(self._picture):
                        return
        except BrokerClosed:
            logger.debug("the live page ends with the hub")
        except Exception:
            logger.exception("the live page failed")
        finally:
            self._task = self._picture = None
            self._changed.set()
            checking.cancel()
            await asyncio.wait([checking])

    async def _shown(self, picture: bytes) -> bool:
        """Send a picture to the open pages; False if there have been none for a while."""
        pages = shared_hub(self._pages)
        if pages.connections.draining:
            return False
        watched = pages.subscriptions.channels.get(CHANNEL)
        is_watched = watched is not None and watched.subscriber_count > 0
        if is_watched:
            self._looked_at = time.monotonic()
        await pages.publish(CHANNEL, picture, is_text=True)
        return is_watched or time.monotonic() - self._looked_at < LINGER_SECONDS

    async def _check_viewers(self) -> None:
        """Check the users again and again, also while the broker hangs and there is no picture."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.viewers.check(shared_hub(self._pages))
            except Exception:
                # The check of the session closes the streams if the database stays away.
                logger.warning("the users of the live page could not be checked", exc_info=True)
