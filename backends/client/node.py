"""One server: the connection that publishes, the one that subscribes, and the probe through both.

Both connections are made when they are first needed and again after a loss. Where the service ends
connections of a certain age, new ones take over before that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import random
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from ...broker import Sink
from ...errors import BrokerClosed, ConnectError
from ...log import LogThrottle
from ...url import BrokerURL
from .commands import Verbs, probe_name
from .connection import PRIMARY, ROLE, Identity, Link, LinkLost, Opener, ReplyError
from .credentials import rotation_delay_seconds
from .deadlines import expect
from .inquiry import Inquiry
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .publisher import Publisher
from .rotation import Understudy, give_back, take_over
from .subscriber import Reader
from .subscription_state import Owner
from .supervision import Supervisor

__all__ = ["Node"]

logger = logging.getLogger("django_sockets")

ROTATION_RETRY = 0.02
"""A renewal that failed is tried again after this part of the greatest age."""
MOVED = "another server answers at this address now"
COMPARE_SECONDS = 1.0
"""A new connection ends the other one, if that leads to another server, at most this often."""
RETIRE_SECONDS = 1.0
"""How long a server that is needed no more may take for its last answers."""


class Node:
    """One server of a broker.

    Args:
        owner: takes what the subscribing connection reports.
        open_link: connects; raises ConnectError.
        open_publishing: connects to publish, where that needs more than to subscribe.
        publisher: what publishes in the place of this node's own connection, if something does.
        max_age_seconds: gives the age that connections must not reach, None for any; asked after
            each connect.

    Attributes:
        pipeline: the publishing connection.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_link: Opener,
        open_publishing: Opener | None = None,
        verbs: Verbs,
        publisher: Publisher | None = None,
        max_age_seconds: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.pipeline = Pipeline(
            url,
            partial(self._open_publishing, open_publishing or open_link),
            on_replica=self.reset,
        )
        self._url = url
        self._sink = sink
        self._owner = owner
        self._open_link = open_link
        self._verbs = verbs
        self._publisher = publisher
        self._max_age_seconds = max_age_seconds
        self._age: float | None = None
        self._compared_at = -math.inf
        self._supervisor = Supervisor(url)
        self._reader = self._new_reader(owner)
        self._successor: Reader | None = None
        self._rotation_due = math.inf
        self._rotation_timer: asyncio.TimerHandle | None = None
        self._rotating: asyncio.Task[None] | None = None
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    def _new_reader(self, owner: Owner, link: Link | None = None) -> Reader:
        return Reader(
            self._url,
            self._sink,
            owner,
            open_link=self._open_subscribing,
            probe=DeliveryProbe(self._url, self._verbs, self.pipeline, self._publisher),
            verbs=self._verbs,
            link=link,
        )

    # A place for subscriptions

    @property
    def trouble(self) -> ConnectError | None:
        """Why there is no subscribing connection, if one is wanted."""
        return self._reader.trouble

    @property
    def waiting(self) -> bool:
        """Whether a connection is needed and not there."""
        return self._reader.waiting or self.pipeline.waiting

    def want(self, channel: str, name: bytes) -> bool:
        """See `Place`."""
        if self._successor is None:
            return self._reader.want(channel, name)
        taken_over = self._successor.want(channel, name)
        return taken_over or self._reader.grants(name)

    def unwant(self, name: bytes) -> None:
        """See `Place`."""
        self._reader.unwant(name)
        if self._successor is not None:
            self._successor.unwant(name)

    def ask_again(self, name: bytes) -> None:
        """See `Place`."""
        self._reader.ask_again(name)
        if self._successor is not None:
            self._successor.ask_again(name)

    def reset(self, reason: str) -> None:
        """Drop both connections; what needs one connects anew."""
        self.pipeline.reset(reason)
        self._reader.reset(reason)
        if self._successor is not None:
            self._successor.reset(reason)

    # New connections

    async def _open_publishing(self, open_link: Opener) -> Link:
        link = await self._open(open_link)
        if self._is_elsewhere(link.identity, self._reader.link):
            self._reader.reset(MOVED)
        return link

    async def _open_subscribing(self) -> Link:
        link = await self._open(self._open_link)
        if self._is_elsewhere(link.identity, self.pipeline.link):
            self.pipeline.reset(MOVED)
        return link

    async def _open(self, open_link: Opener) -> Link:
        link = await open_link()
        try:
            self._age = self._max_age_seconds()
        except Exception as exc:  # Of a credential provider: the last known age applies.
            self._supervisor.failed("asking for the greatest age of a connection", exc)
        if self._age is not None:
            self._rotate_in(rotation_delay_seconds(self._age, random.random()))  # noqa: S311
        return link

    def _is_elsewhere(self, new: Identity, other: Link | None) -> bool:
        """Whether the new connection shows that the other one leads to a former server.

        While both are replaced in turn, they are compared at the end. A name that leads to several
        servers in turn must not cause connection after connection: the delivery probe compares,
        too.
        """
        rotating = self._rotating is not None and not self._rotating.done()
        if rotating or other is None or not differ(new, other.identity):
            return False
        now = asyncio.get_running_loop().time()
        if now - self._compared_at < COMPARE_SECONDS:
            return False
        self._compared_at = now
        return True

    # Young connections

    def _rotate_in(self, seconds: float) -> None:
        """Replace both connections after so long, if that is not to be done earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._closed or due >= self._rotation_due:
            return
        if self._rotation_timer is not None:
            self._rotation_timer.cancel()
        self._rotation_due = due
        self._rotation_timer = loop.call_at(due, self._start_rotation)

    def _start_rotation(self) -> None:
        self._rotation_due = math.inf
        self._rotation_timer = None
        if self._rotating is not None and not self._rotating.done():
            self._rotate_soon()  # One at a time: its own connections may be the ones that are due.
            return
        loop = asyncio.get_running_loop()
        self._rotating = loop.create_task(self._rotate(), name="django_sockets rotation")

    async def _rotate(self) -> None:
        try:
            await self.pipeline.rotate()
            await self._rotate_reader()
        except (ConnectError, LinkLost, asyncio.TimeoutError) as exc:
            self._throttle.log(
                logging.WARNING, "rotation", "%s: cannot renew a connection: %s", self._url, exc
            )
            self._rotate_soon()
        except Exception as exc:
            self._supervisor.failed("renewing a connection", exc)
            self._rotate_soon()
        link = self._reader.link
        if link is not None and differ(link.identity, self.pipeline.newest_identity):
            self.reset(MOVED)

    def _rotate_soon(self) -> None:
        self._rotate_in((self._age or math.inf) * ROTATION_RETRY)

    async def _rotate_reader(self) -> None:
        """Let a new subscribing connection take over without a hole.

        Raises:
            ConnectError, LinkLost, asyncio.TimeoutError: it cannot; the present one goes on.
        """
        old = self._reader
        replaced = old.link
        if replaced is None:
            return  # The next one will be young.
        link: Link | None = None
        if old.wanted:
            link = await self._open_subscribing()
            if old.link is not replaced or not old.wanted:
                link.abort()
                link = None
            if old.link is not replaced:
                return
        if link is None:
            new = self._new_reader(self._owner)
        else:
            new = self._successor = self._new_reader(Understudy(self._owner, old), link)
            try:
                await take_over(old, new, self._owner, self._url.options)
            except BaseException:
                self._successor = None
                give_back(old, new, self._owner)
                await new.aclose()
                raise
            if replaced.identity.run_id not in ("", link.identity.run_id):
                # Messages may have gone to either server while the other link listened.
                self._owner.lost([channel for channel, _ in new.carried], MOVED)
        self._reader, self._successor = new, None
        old.mute()
        new.release(self._owner)
        await old.aclose()

    async def retire(self) -> None:
        """Close both connections, once what was on its way to the server is answered or given up.

        What is given up ends as unknown.
        """
        try:
            if self.pipeline.busy:
                answer = self.pipeline.submit([(b"PING",)])
                await asyncio.wait([answer], timeout=RETIRE_SECONDS)
                answer.exception() if answer.done() else answer.cancel()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close both connections."""
        self._closed = True
        if self._rotation_timer is not None:
            self._rotation_timer.cancel()
        if self._rotating is not None:
            self._rotating.cancel()
            await asyncio.wait([self._rotating])
        if self._successor is not None:
            await self._successor.aclose()
        await self._reader.aclose()
        await self.pipeline.aclose()


def differ(one: Identity, other: Identity) -> bool:
    """Whether two links are known to lead to different servers."""
    return bool(one.run_id and other.run_id) and one.run_id != other.run_id


class DeliveryProbe:
    """Publishes to ourselves, again and again; LinkLost when it does not arrive.

    PUBLISH alone would be content with a replica, which accepts it and delivers it to its own
    subscribers only: ROLE tells, and the run ids at the two ends do. Both are also compared where
    the server refuses the probe's channel.
    """

    def __init__(
        self, url: BrokerURL, verbs: Verbs, pipeline: Pipeline, publisher: Publisher | None
    ) -> None:
        self._url = url
        self._verbs = verbs
        self._pipeline = pipeline
        self._publisher = publisher
        self._prefix = url.options.prefix.encode()
        self._id = os.urandom(8).hex().encode()
        self._numbers = itertools.count(1)
        self._arrived: asyncio.Future[None] | None = None
        self._payload = b""
        self._inquiry = Inquiry()

    def name(self, like: bytes) -> bytes:
        """See `reader.Probe`."""
        return probe_name(self._prefix, self._id, like if self._verbs.by_slot else None)

    def heard(self, payload: bytes) -> None:
        """See `reader.Probe`."""
        arrived = self._arrived
        if arrived is not None and payload == self._payload and not arrived.done():
            arrived.set_result(None)

    async def run(self, reader: Reader, link: Link) -> None:
        """See `reader.Probe`."""
        options = self._url.options
        while True:
            await asyncio.sleep(options.probe_interval_seconds)
            if reader.idle:
                continue
            await self._identify(reader, link)
            name = reader.probe_name
            if name is None:
                continue
            arrived = self._arrived = asyncio.get_running_loop().create_future()
            self._payload = b"%d" % next(self._numbers)
            try:
                published = await self._publish(name)
            except (NotSent, OutcomeUnknown, BrokerClosed):
                continue  # Says something of the publishing connection, nothing of this one.
            self._compare(link)
            if not published:
                continue
            try:
                await expect(link, arrived, options.dead_peer_seconds, "no delivery of our probe")
            except LinkLost as exc:
                if reader.probe_name == name:
                    if not self._same_server(link):
                        self._leave(str(exc))
                    raise  # Else it was on its way to another name, of another slot.

    async def _identify(self, reader: Reader, link: Link) -> None:
        """Ask the server on the subscribing link for what the probe does not tell.

        Raises:
            LinkLost: it was a primary and is none any more, or it is another server than the one
                that is published to.
        """
        was_primary = link.identity.role == PRIMARY
        if link.protocol > 2:  # With RESP2 a subscribed link takes no other commands.
            questions = self._inquiry.questions(link.identity)
            if self._publisher is None and reader.probe_name is not None:
                # The role is asked with the probe.
                questions = [question for question in questions if question is not ROLE]
            replies = [await reply for reply in [reader.ask(question) for question in questions]]
            self._inquiry.learn(link, questions, replies)
        if was_primary and link.identity.role != PRIMARY:
            self._leave("the server is a replica now")
        self._compare(link)

    async def _publish(self, name: bytes) -> bool:
        """Whether the server took it."""
        if self._publisher is not None:
            (published,) = await self._publisher.send([(name, self._payload)])
            if isinstance(published, Exception) and not isinstance(published, ReplyError):
                raise published
        else:
            command = (self._verbs.publish, name, self._payload)
            published, *_ = await self._pipeline.submit([command], inquire=True)
        return not isinstance(published, ReplyError)

    def _same_server(self, link: Link) -> bool:
        """Whether both connections are known to lead to one server."""
        here, there = link.identity.run_id, self._pipeline.identity.run_id
        return self._publisher is None and here == there != ""

    def _compare(self, link: Link) -> None:
        if differ(link.identity, self._pipeline.identity):
            self._leave(MOVED)

    def _leave(self, problem: str) -> NoReturn:
        (self._publisher or self._pipeline).reset(problem)
        raise LinkLost(problem)
