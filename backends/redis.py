"""`redis://`, `rediss://`, `redis+unix://` and their `valkey` spellings: one node.

At most two connections, however many channels and callers there are: one that publishes
(`pipeline`) and one that subscribes (`reader`). The delivery probe runs from the first
through the server to the second.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..broker import Limits, Report, Sink
from ..errors import BrokerClosed, ConnectError, PublishError
from ..url import BrokerURL
from .connector import Connector
from .link import Link, LinkLost, ReplyError, expect, first_error, open_link
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .reader import Reader
from .report import COMMANDS, make_report
from .subscriptions import Subscriptions

__all__ = ["RedisBroker"]


class RedisBroker:
    """A broker on one Redis or Valkey node. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        self.url = url
        self.limits = Limits()
        open_link = self._opener()
        self._prefix = url.options.prefix.encode()
        self._pipeline = Pipeline(url, open_link)
        self._probe_name = self._prefix + b":probe:" + os.urandom(8).hex().encode()
        self._probe_numbers = itertools.count(1)
        self._probe_heard: asyncio.Future[None] | None = None
        self._probe_payload = b""
        self._ask_role = True
        self._subscriptions = Subscriptions(
            url, server_name=self._name, reader_for=lambda _: self._reader
        )
        self._reader = Reader(
            url,
            sink,
            self._subscriptions,
            open_link=open_link,
            probe=self._probe,
            probe_name=self._probe_name,
            on_probe=self._on_probe,
        )

    def _opener(self) -> Callable[[], Awaitable[Link]]:
        """What opens a link to the server."""
        return partial(open_link, self.url, Connector(self.url))

    def _name(self, channel: str) -> bytes:
        """`<prefix>:{<channel>}`: with one hash tag, so that later keys share the slot."""
        escaped = channel.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        return b"%s:{%s}" % (self._prefix, escaped.encode())

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        commands = [
            (b"PUBLISH", self._name(channel), headers[index] + payload if headers else payload)
            for index, channel in enumerate(channels)
        ]
        try:
            replies = await self._pipeline.execute(commands)
        except NotSent as exc:
            raise PublishError(self.url, str(exc), failed=channels) from exc.__cause__
        except OutcomeUnknown as exc:
            raise PublishError(self.url, str(exc), unknown=channels) from None
        error = first_error(replies)
        if error is not None:
            failed = [
                channel
                for channel, reply in zip(channels, replies, strict=True)
                if isinstance(reply, ReplyError)
            ]
            raise PublishError(self.url, f"the server refused it: {error}", failed=failed)

    async def subscribe(self, channels: Sequence[str]) -> None:
        await self._subscriptions.subscribe(channels)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        self._subscriptions.unsubscribe(channels)

    async def aclose(self) -> None:
        await self._subscriptions.aclose()
        await self._reader.aclose()
        await self._pipeline.aclose()

    # The delivery probe

    async def _probe(self, link: Link) -> None:
        """Publish to ourselves, again and again; LinkLost when it does not arrive.

        PUBLISH alone would be content with a replica, which accepts it and delivers it to its own
        subscribers only; ROLE in the same pipeline tells.
        """
        options = self.url.options
        while True:
            await asyncio.sleep(options.probe_interval_seconds)
            if not self._reader.can_probe or not self._reader.probing:
                continue
            heard = self._probe_heard = asyncio.get_running_loop().create_future()
            self._probe_payload = b"%d" % next(self._probe_numbers)
            commands: list[tuple[bytes, ...]] = [
                (b"PUBLISH", self._probe_name, self._probe_payload)
            ]
            if self._ask_role:
                commands.append((b"ROLE",))
            try:
                published, *role = await self._pipeline.execute(commands)
            except (NotSent, OutcomeUnknown, BrokerClosed):
                continue  # Says something of the publishing connection, nothing of this one.
            if role and isinstance(role[0], ReplyError):
                self._ask_role = False
            elif role and role[0][0] != b"master":
                self._pipeline.reset("the server is a replica")
                raise LinkLost("the server is a replica now")
            if not isinstance(published, ReplyError):
                await expect(link, heard, options.dead_peer_seconds, "no delivery of our probe")

    def _on_probe(self, payload: bytes) -> None:
        heard = self._probe_heard
        if heard is not None and payload == self._probe_payload and not heard.done():
            heard.set_result(None)

    # Looking at the server

    async def inspect(self) -> Report:
        """Ask the server what it is; what it does not allow to be asked is left out."""
        try:
            replies = await self._pipeline.execute(COMMANDS)
        except (NotSent, OutcomeUnknown) as exc:
            if isinstance(exc.__cause__, ConnectError):
                raise exc.__cause__ from None
            raise ConnectError(self.url, f"cannot ask the server: {exc}") from exc
        return make_report(replies, self.url)
