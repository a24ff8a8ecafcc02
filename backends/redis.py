"""`redis://`, `rediss://`, `redis+unix://` and their `valkey` spellings: a broker on one server.

It has at most two connections for any number of channels and callers: one publishes and one
subscribes (`client.node`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..broker import Report, Sink
from ..errors import ConfigurationError, ConnectError
from ..url import BrokerURL
from .client.base import ServerBroker
from .client.commands import PLAIN, PubSubCommands
from .client.connection import ConnectionLost, Opener
from .client.connector import Connector
from .client.direct import DirectPublisher
from .client.driver_options import DRIVER_OPTIONS, database
from .client.inspection import NodeFacts, describe, look_at
from .client.node import Node
from .client.publisher import PipelinePublisher, Publisher
from .client.queries import Queries
from .client.routes import Route
from .client.script_runner import ScriptRunner
from .client.subscriptions import Subscriptions
from .cluster.router import Router
from .glide.publisher import glide_publisher

__all__ = ["RedisBroker", "SingleNodeBroker"]


class SingleNodeBroker(ServerBroker):
    """A broker whose channels are all on one server.

    Args:
        open_connection, open_publishing: see `Node`.
        publisher: publishes instead of the node's own connection, if given.
        max_age_seconds: see `Node`.
        no_scripts: why the server has no Lua scripts; empty if it has.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        *,
        open_connection: Opener,
        open_publishing: Opener | None = None,
        pubsub: PubSubCommands = PLAIN,
        publisher: Publisher | None = None,
        max_age_seconds: Callable[[], float | None] = lambda: None,
        no_scripts: str = "",
    ) -> None:
        super().__init__(url, sink)
        self._opener = open_connection
        self._pubsub = pubsub
        self._subscriptions = Subscriptions(
            url, server_name=self._name, place_for=lambda _: self._node
        )
        self._node = Node(
            url,
            sink,
            self._subscriptions,
            open_connection=open_connection,
            open_publishing=open_publishing,
            pubsub=pubsub,
            publisher=publisher,
            max_age_seconds=max_age_seconds,
            reads=self._reads,
        )
        self._publisher = publisher or PipelinePublisher(self._node.pipeline, pubsub)
        if publisher is None and not url.history:
            # A kept message is published by a script, which only the event loop does.
            self.thread_publisher = DirectPublisher(url, self._node.pipeline, pubsub, self._name)
        self._scripts = ScriptRunner(
            url, lambda _: self._node.pipeline, lambda: [self._node.pipeline], no_scripts
        )
        route = Route(self._node.pipeline, pubsub)
        self._queries = Queries(url, route_for=lambda _: route)
        if url.history:
            self._keeper = Router(
                url,
                route_for=lambda _: route,
                refresh=_nothing_to_refresh,
                on_moved=lambda *_: None,
                on_waiting=lambda: None,
                on_unkept=self._on_unkept,
            )

    async def _publish_command(self) -> bytes:
        return self._pubsub.publish

    async def aclose(self) -> None:
        """See `Broker.aclose`."""
        await self._subscriptions.aclose()
        await self._reads.aclose()
        if self.url.history:
            await self._keeper.aclose()
        await self._node.aclose()
        await self._publisher.aclose()

    async def inspect(self) -> Report:
        """Ask the server about itself; facts that it refuses to tell are left out."""
        try:
            facts = await look_at(
                await self._opener(), self._where(), self.url.options.publish_timeout_seconds
            )
        except ConnectionLost as exc:
            raise ConnectError(self.url, f"cannot ask the server: {exc}") from exc
        return self._describe(facts)

    def _where(self) -> str:
        """The address of the server."""
        return ", ".join(map(str, self.url.addresses)) or f"/{self.url.path}"

    def _describe(self, facts: NodeFacts) -> Report:
        return describe(self.url, [facts], "one node")


async def _nothing_to_refresh() -> None:
    """There is only one server."""


class RedisBroker(SingleNodeBroker):
    """A broker on one Redis or Valkey node. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        publisher: Publisher | None = None
        if url.scheme == "redis+unix":
            if url.addresses or not url.path:
                raise ConfigurationError(
                    f"{url}: write redis+unix:///path/to/socket, with three slashes"
                )
            connector = Connector(url)
            open_connection = partial(connector.open_socket, "/" + url.path)
        else:
            if len(url.addresses) != 1:
                raise ConfigurationError(
                    f"{url}: {url.scheme}:// takes exactly one host, not {len(url.addresses)}"
                )
            connector = Connector(url, DRIVER_OPTIONS, database=database(url, url.path))
            open_connection = partial(connector.open, url.addresses[0])
            if connector.glide:
                publisher = glide_publisher(
                    connector,
                    sharded=False,
                    open_connection=partial(open_connection, need_primary=True),
                )
        super().__init__(
            url,
            sink,
            open_connection=open_connection,
            # A replica accepts messages, but delivers them to its own subscribers only.
            open_publishing=partial(open_connection, need_primary=True),
            publisher=publisher,
            max_age_seconds=connector.max_age_seconds,
        )

    def _describe(self, facts: NodeFacts) -> Report:
        report = super()._describe(facts)
        if facts.is_cluster_node:
            report.warnings.append(
                "the server is part of a cluster, and this scheme uses only one node of it: write "
                f"{self.url.scheme}+cluster://"
            )
        return report
