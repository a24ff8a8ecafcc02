"""One server of a broker: its publishing connection, its subscribing connection and the probe.

Each connection is opened when it is first needed, and again after a loss. If the service closes
connections of a certain age, new ones replace them before that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from functools import partial

from ...broker import Sink
from ...errors import ConnectError
from ...log import LogThrottle
from ...url import BrokerURL
from .commands import PubSubCommands
from .connection import Connection, ConnectionLost, Opener
from .credentials import rotation_delay_seconds
from .history_scripts import KEEP
from .identity import SERVER_CHANGED, Identity, differ
from .open_reads import OpenReads
from .pipeline import Pipeline
from .probe import DeliveryProbe
from .publisher import Publisher
from .rotation import StandbyOwner, roll_back, take_over
from .subscriber import Subscriber
from .subscription_state import Owner
from .supervision import Supervisor

__all__ = ["Node"]

# Not the state of `random`, which the application may have seeded.
_random = random.SystemRandom()

logger = logging.getLogger("django_sockets")

ROTATION_RETRY = 0.02
"""After a failed rotation, the next attempt follows after this share of the maximum age."""
COMPARE_SECONDS = 1.0
"""Minimum interval at which a new connection may reset the other one for leading elsewhere."""
RETIRE_SECONDS = 1.0
"""How long `retire` waits for the last replies of the server."""


class Node:
    """One server of a broker.

    Args:
        owner: receives the reports of the subscribing connection.
        open_connection: connects; raises ConnectError.
        open_publishing: connects to publish, if that differs from `open_connection`.
        publisher: publishes instead of this node's own connection, if given.
        max_age_seconds: returns the age that connections must not reach, or None; called after
            each connect.
        reads: the open reads of the broker.

    Attributes:
        pipeline: the publishing connection.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_connection: Opener,
        open_publishing: Opener | None = None,
        pubsub: PubSubCommands,
        publisher: Publisher | None = None,
        max_age_seconds: Callable[[], float | None] = lambda: None,
        reads: OpenReads | None = None,
    ) -> None:
        self._reads = reads
        self.pipeline = Pipeline(
            url,
            partial(self._open_publishing, open_publishing or open_connection),
            on_replica=self.reset,
            preamble=[KEEP.load] if url.history else (),
        )
        self._url = url
        self._sink = sink
        self._owner = owner
        self._open_connection = open_connection
        self._pubsub = pubsub
        self._publisher = publisher
        self._max_age_seconds = max_age_seconds
        self._age: float | None = None
        self._compared_at = -math.inf
        self._supervisor = Supervisor(url)
        self._subscriber = self._new_subscriber(owner)
        self._successor: Subscriber | None = None
        self._rotation_due = math.inf
        self._rotation_timer: asyncio.TimerHandle | None = None
        self._rotating: asyncio.Task[None] | None = None
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    def _new_subscriber(self, owner: Owner, connection: Connection | None = None) -> Subscriber:
        return Subscriber(
            self._url,
            self._sink,
            owner,
            open_connection=self._open_subscribing,
            probe=DeliveryProbe(self._url, self._pubsub, self.pipeline, self._publisher),
            pubsub=self._pubsub,
            connection=connection,
            reads=self._reads,
        )

    # `Place` of the subscriptions

    @property
    def trouble(self) -> ConnectError | None:
        """Why there is no subscribing connection, if one is needed."""
        return self._subscriber.trouble

    @property
    def waiting(self) -> bool:
        """Whether a connection is needed and missing."""
        return self._subscriber.state.waiting or self.pipeline.waiting

    def want(self, channel: str, name: bytes) -> bool:
        """See `Place`."""
        if self._successor is None:
            return self._subscriber.want(channel, name)
        taken_over = self._successor.want(channel, name)
        return taken_over or self._subscriber.state.subscriptions.has(name)

    def unwant(self, name: bytes) -> None:
        """See `Place`."""
        self._subscriber.unwant(name)
        if self._successor is not None:
            self._successor.unwant(name)

    def ask_again(self, name: bytes) -> None:
        """See `Place`."""
        self._subscriber.state.ask_again(name)
        if self._successor is not None:
            self._successor.state.ask_again(name)

    def read(self, name: bytes) -> None:
        """See `Place`."""
        subscriber = self._subscriber
        if self._successor is not None and not subscriber.state.subscriptions.has(name):
            subscriber = self._successor
        if subscriber.state.reads is not None:
            subscriber.state.reads.behind_requested(name)

    def reset(self, reason: str) -> None:
        """Drop both connections; each is opened again when it is needed."""
        self.pipeline.reset(reason)
        self._subscriber.reset(reason)
        if self._successor is not None:
            self._successor.reset(reason)

    # New connections

    async def _open_publishing(self, open_connection: Opener) -> Connection:
        connection = await self._open(open_connection)
        if self._is_elsewhere(connection.identity, self._subscriber.state.connection):
            self._subscriber.reset(SERVER_CHANGED)
        return connection

    async def _open_subscribing(self) -> Connection:
        connection = await self._open(self._open_connection)
        if self._is_elsewhere(connection.identity, self.pipeline.connection):
            self.pipeline.reset(SERVER_CHANGED)
        return connection

    async def _open(self, open_connection: Opener) -> Connection:
        connection = await open_connection()
        try:
            self._age = self._max_age_seconds()
        except Exception as exc:  # The credential provider failed: the last known age applies.
            self._supervisor.failed("asking for the greatest age of a connection", exc)
        if self._age is not None:
            self._rotate_in(rotation_delay_seconds(self._age, _random.random()))
        return connection

    def _is_elsewhere(self, new: Identity, other: Connection | None) -> bool:
        """Whether the new connection shows that the other one leads to a former server.

        During a rotation the two connections are compared at its end instead. The interval
        `COMPARE_SECONDS` prevents a reconnect loop if a name resolves to several servers in turn;
        the delivery probe compares as well.
        """
        rotating = self._rotating is not None and not self._rotating.done()
        if rotating or other is None or not differ(new, other.identity):
            return False
        now = asyncio.get_running_loop().time()
        if now - self._compared_at < COMPARE_SECONDS:
            return False
        self._compared_at = now
        return True

    # Rotation

    def _rotate_in(self, seconds: float) -> None:
        """Replace both connections after `seconds`, unless an earlier rotation is due."""
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
            self._rotate_soon()  # The running rotation may replace the connections that are due.
            return
        loop = asyncio.get_running_loop()
        self._rotating = loop.create_task(self._rotate(), name="django_sockets rotation")

    async def _rotate(self) -> None:
        try:
            await self.pipeline.rotate()
            await self._rotate_subscriber()
        except (ConnectError, ConnectionLost, asyncio.TimeoutError) as exc:
            self._throttle.log(
                logging.WARNING,
                "rotation",
                "%s: cannot renew a connection: %s",
                self._url,
                exc,
                extra={"broker": self._url, "reason": exc},
            )
            self._rotate_soon()
        except Exception as exc:
            self._supervisor.failed("renewing a connection", exc)
            self._rotate_soon()
        connection = self._subscriber.state.connection
        if connection is not None and differ(connection.identity, self.pipeline.newest_identity):
            self.reset(SERVER_CHANGED)

    def _rotate_soon(self) -> None:
        self._rotate_in((self._age or math.inf) * ROTATION_RETRY)

    async def _rotate_subscriber(self) -> None:
        """Let a new subscribing connection take over without losing a message.

        Raises:
            ConnectError, ConnectionLost, asyncio.TimeoutError: the takeover failed and the present
                connection continues.
        """
        old = self._subscriber
        replaced = old.state.connection
        if replaced is None:
            return  # The next connection will be new anyway.
        connection: Connection | None = None
        if old.state.subscriptions.wanted:
            connection = await self._open_subscribing()
            if old.state.connection is not replaced or not old.state.subscriptions.wanted:
                connection.abort()
                connection = None
            if old.state.connection is not replaced:
                return
        if connection is None:
            new = self._new_subscriber(self._owner)
        else:
            new = self._successor = self._new_subscriber(StandbyOwner(self._owner, old), connection)
            try:
                await take_over(old, new, self._owner, self._url.options)
            except BaseException:
                self._successor = None
                roll_back(old, new, self._owner)
                await new.aclose()
                _read_again(old)
                raise
            if replaced.identity.run_id not in ("", connection.identity.run_id):
                # Messages may have gone to one server while we listened on the other.
                carried = new.state.subscriptions.carried
                self._owner.lost([channel for channel, _ in carried], SERVER_CHANGED)
        self._subscriber, self._successor = new, None
        old.mute()
        new.release(self._owner)
        await old.aclose()
        _read_again(new)

    async def retire(self) -> None:
        """Close both connections after the requests under way are answered.

        Requests without a reply after `RETIRE_SECONDS` end as unknown.
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
        await self._subscriber.aclose()
        await self.pipeline.aclose()


def _read_again(subscriber: Subscriber) -> None:
    """Write the open reads, which another connection may have had."""
    if subscriber.state.reads is not None:
        subscriber.state.reads.behind_carried()
