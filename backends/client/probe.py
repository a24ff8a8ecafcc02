"""The delivery probe: shows again and again that published messages arrive on the same broker."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import NoReturn

from ...errors import BrokerClosed
from ...url import BrokerURL
from .commands import PubSubCommands, probe_name
from .connection import Connection, ConnectionLost
from .deadlines import await_reply
from .history_reads import HISTORY_CHANGED
from .identity import (
    INFO,
    NO_FORMER_HISTORY,
    PRIMARY,
    REPLICATION,
    ROLE,
    SERVER_CHANGED,
    IdentityCheck,
    differ,
    read_run_id,
)
from .parser import ReplyError
from .pipeline import NotSent, OutcomeUnknown, Pipeline
from .publisher import Publisher
from .subscriber import Subscriber

__all__ = ["DeliveryProbe"]


class DeliveryProbe:
    """Publishes to its own channel at intervals, and reports a message that does not arrive.

    A successful PUBLISH does not prove that the server is the primary: a replica accepts it and
    delivers it to its own subscribers only. The probe therefore checks the role as well, and
    compares the run ids of the publishing and the subscribing connection. Both checks also run if
    the server refuses the probe's channel.

    With history rules, the probe asks for the history id on the subscribing connection, in the same
    command as for the role. Another id means that the server has perhaps taken other messages than
    the one before, so that positions do not hold any more.

    Args:
        pipeline: the publishing connection.
        publisher: publishes instead of `pipeline`, if given.
    """

    def __init__(
        self,
        url: BrokerURL,
        pubsub: PubSubCommands,
        pipeline: Pipeline,
        publisher: Publisher | None,
    ) -> None:
        self._url = url
        self._pubsub = pubsub
        self._pipeline = pipeline
        self._publisher = publisher
        self._prefix = url.options.prefix.encode()
        self._id = os.urandom(8).hex().encode()
        self._names = itertools.count(1)
        self._numbers = itertools.count(1)
        self._arrived: asyncio.Future[None] | None = None
        self._payload = b""
        self._identity_check = IdentityCheck(REPLICATION if url.history else ROLE)

    def name(self, like: bytes) -> bytes:
        """See `subscriber.Probe`."""
        probe_id = b"%s.%d" % (self._id, next(self._names))
        return probe_name(self._prefix, probe_id, like if self._pubsub.by_slot else None)

    def received(self, payload: bytes) -> None:
        """See `subscriber.Probe`."""
        arrived = self._arrived
        if arrived is not None and payload == self._payload and not arrived.done():
            arrived.set_result(None)

    async def run(self, subscriber: Subscriber, connection: Connection) -> None:
        """See `subscriber.Probe`."""
        options, state = self._url.options, subscriber.state
        while True:
            await asyncio.sleep(options.probe_interval_seconds)
            if not state.subscriptions.delivering:
                continue
            await self._check_identity(subscriber, connection)
            name = state.probe.name
            if name is None or not state.probe.is_granted:
                continue  # A message would perhaps reach the server before the subscription does.
            arrived = self._arrived = asyncio.get_running_loop().create_future()
            self._payload = b"%d" % next(self._numbers)
            try:
                accepted = await self._publish(name)
            except (NotSent, OutcomeUnknown, BrokerClosed):
                continue  # The publishing connection failed, which says nothing about this one.
            self._compare(connection)
            if not accepted:
                continue
            try:
                await await_reply(
                    connection, arrived, options.dead_peer_seconds, "no delivery of our probe"
                )
            except ConnectionLost as exc:
                if state.probe.name == name:
                    if not self._same_server(connection):
                        self._leave(str(exc))
                    raise
                # Otherwise the subscription ended while the message was under way: no other channel
                # was subscribed for a moment, or the slot of the name moved.

    async def _check_identity(self, subscriber: Subscriber, connection: Connection) -> None:
        """Ask the server on the subscribing connection for its role and run id.

        Raises:
            ConnectionLost: the server was a primary and is a replica now, or the publishing
                connection leads to another server, or the server has another history.
        """
        was_primary = connection.identity.role == PRIMARY
        if connection.protocol > 2:  # With RESP2 a subscribed connection accepts no other commands.
            commands = self._identity_check.commands(connection.identity)
            if self._publisher is None and subscriber.state.probe.is_granted:
                # `_publish` asks for the role.
                commands = [command for command in commands if command is not ROLE]
            answers = [subscriber.state.ask(command) for command in commands]
            replies = [await answer for answer in answers]
            known = connection.identity
            connection.identity = self._identity_check.updated(known, commands, replies)
            if known.history_id not in (b"", connection.identity.history_id):
                await self._check_history(subscriber, connection)
        if was_primary and connection.identity.role != PRIMARY:
            self._leave("the server is a replica now")
        self._compare(connection)

    async def _check_history(self, subscriber: Subscriber, connection: Connection) -> None:
        """The history id has changed: find out whether the history has.

        A server takes a new id, too, when it gets its first replica. It then has no former id.

        Raises:
            ConnectionLost: the history may be another one.
        """
        run_id = read_run_id(await subscriber.state.ask(INFO))
        same_process = run_id == connection.identity.run_id != ""
        if connection.identity.former_history_id != NO_FORMER_HISTORY or not same_process:
            raise ConnectionLost(HISTORY_CHANGED)
        if subscriber.state.reads is not None:
            subscriber.state.reads.renamed(connection.identity.history_id)

    async def _publish(self, name: bytes) -> bool:
        """Whether the server accepted the message."""
        if self._publisher is not None:
            (published,) = await self._publisher.send([(name, self._payload)])
            if isinstance(published, Exception) and not isinstance(published, ReplyError):
                raise published
        else:
            command = (self._pubsub.publish, name, self._payload)
            published, *_ = await self._pipeline.submit([command], check_identity=True)
        return not isinstance(published, ReplyError)

    def _same_server(self, connection: Connection) -> bool:
        """Whether both connections are known to lead to the same server."""
        ours, publishing = connection.identity.run_id, self._pipeline.identity.run_id
        return self._publisher is None and ours == publishing != ""

    def _compare(self, connection: Connection) -> None:
        if differ(connection.identity, self._pipeline.identity):
            self._leave(SERVER_CHANGED)

    def _leave(self, problem: str) -> NoReturn:
        """Reset the publishing connection and end the subscribing one."""
        (self._publisher or self._pipeline).reset(problem)
        raise ConnectionLost(problem)
