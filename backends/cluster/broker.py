"""`redis+cluster://`, `rediss+cluster://` and their `valkey` spellings: a cluster.

With sharded pub/sub, a message stays on the nodes of its slot. Servers before Redis 7 get the plain
commands. Each primary that owns a slot in use has a `Node`: one connection that publishes and one
that subscribes. One task keeps the slot map up to date. It wakes on any sign of a change and on a
timer, asks for the owners of the slots, and moves the channels whose owner has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...broker import HANDED_OVER, Report, Sink
from ...deadlines import with_deadline
from ...errors import AuthError, BrokerClosed, ConfigurationError, ConnectError
from ...log import LogThrottle
from ...url import Address, BrokerURL
from ..client.base import ServerBroker
from ..client.commands import PLAIN, SHARDED, slot_of
from ..client.connection import ConnectionLost, ask
from ..client.connector import DEFAULT_PORT, Connector
from ..client.deadlines import ignore_result
from ..client.driver_options import DRIVER_OPTIONS
from ..client.node import Node
from ..client.pipeline import NotSent, OutcomeUnknown, Pipeline
from ..client.publisher import Publisher
from ..client.queries import Queries
from ..client.routes import Route
from ..client.scripts import not_sent
from ..client.subscriptions import Place, Subscriptions
from ..client.supervision import Supervisor
from ..glide.publisher import glide_publisher
from .inspection import inspect_cluster
from .router import Router
from .scripts import ClusterScripts
from .topology import QUESTIONS, SlotMap, Topology

__all__ = ["ClusterBroker"]

logger = logging.getLogger("django_sockets")

REFRESH_SECONDS = 10.0
"""Interval between two refreshes of the slot map without a sign of a change."""
SOONEST_SECONDS = 0.1
"""Minimum interval between two refreshes, for any number of signs."""
MOVED = "moved to another server"
"""Reason of a loss: the slot of a channel belongs to another server now."""
TROUBLED_SECONDS = 0.5
"""Maximum interval between two refreshes while a server or an owner is missing."""


class ClusterBroker(ServerBroker):
    """A broker on a cluster. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        super().__init__(url, sink)
        if not url.addresses:
            raise ConfigurationError(f"{url}: name one host or more: redis+cluster://host1,host2")
        if url.path not in ("", "0"):
            raise ConfigurationError(f"{url}: a cluster has no databases: leave {url.path!r} out")
        self._sink = sink
        self._connector = Connector(url, DRIVER_OPTIONS)
        seeds = [Address(a.host, a.port or DEFAULT_PORT) for a in url.addresses]
        self._topology = Topology(url, seeds, self._ask, self._seems_reachable)
        self._nodes: dict[Address, Node] = {}
        self._routes: dict[Address, Route] = {}
        self._no_place = _NoPlace(self)
        self._subscriptions = Subscriptions(
            url,
            server_name=self._name,
            place_for=self._place_for,
            displaced=self._on_displaced,
        )
        self._router = Router(
            url,
            route_for=self._route_for,
            refresh=self._refreshed,
            on_moved=self._on_moved,
            on_waiting=self.refresh_soon,
            route_at=self._route_at,
            on_unkept=self._on_unkept,
        )
        self._keeper = self._router
        self._queries = Queries(
            url, route_for=self._route_for, route_at=self._route_at, refresh=self._refreshed
        )
        self._scripts = ClusterScripts(
            url,
            route_for=self._route_for,
            route_at=self._route_at,
            refresh=self._refreshed,
            on_moved=self._on_moved,
            primaries=self._primaries,
        )
        self._glide = (
            glide_publisher(self._connector, sharded=True, cluster=True)
            if self._connector.glide
            else None
        )
        self._publisher: Publisher = self._glide or self._router
        self._displaced: dict[bytes, None] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], Node] = {}
        self._supervisor = Supervisor(url)
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    # Owners of slots

    def _owner(self, slot: int) -> Address | None:
        slot_map = self._topology.slot_map
        return None if slot_map is None else slot_map.owners[slot]

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            slot_map = self._topology.slot_map
            pubsub = PLAIN if slot_map is None else slot_map.pubsub
            node = self._nodes[address] = Node(
                self.url,
                self._sink,
                _NodeOwner(self._subscriptions, self.refresh_soon),
                open_connection=partial(self._connector.open, address, need_primary=True),
                pubsub=pubsub,
                publisher=self._glide,
                max_age_seconds=self._connector.max_age_seconds,
                reads=self._reads,
            )
            self._routes[address] = Route(node.pipeline, pubsub, address)
        return node

    def _place_for(self, name: bytes) -> Place:
        address = self._owner(slot_of(name))
        return self._no_place if address is None else self._node(address)

    def _route_for(self, slot: int) -> Route | None:
        address = self._owner(slot)
        return None if address is None else self._route_at(address)

    def _route_at(self, address: Address) -> Route:
        route = self._routes.get(address)
        if route is None:
            self._node(address)
            route = self._routes[address]
        return route

    def _primaries(self) -> list[Pipeline]:
        slot_map = self._topology.slot_map
        return [] if slot_map is None else [self._node(a).pipeline for a in slot_map.primaries]

    async def _publish_command(self) -> bytes:
        if self._topology.slot_map is None:
            try:
                await self._refreshed()
            except ConnectError as exc:
                raise not_sent(exc.problem, exc) from exc
        slot_map = self._topology.slot_map
        return SHARDED.publish if slot_map is None else slot_map.pubsub.publish

    def _on_moved(self, slot: int, address: Address) -> None:
        """A server redirected a publish. The subscriptions of that slot have moved as well."""
        former = self._owner(slot)
        self._topology.hint(slot, address)
        if self._owner(slot) != former:
            self._hold([slot], former)
        self.refresh_soon()

    def _on_displaced(self, names: Sequence[bytes]) -> None:
        self._displaced.update(dict.fromkeys(names))
        self.refresh_soon()

    # Refreshing the slot map

    def _seems_reachable(self, address: Address) -> bool:
        node = self._nodes.get(address)
        return node is not None and node.trouble is None and not node.pipeline.waiting

    async def _ask(self, address: Address) -> tuple[Sequence[Any], Address]:
        """Ask one server, over its publishing connection or over a temporary one."""
        node = self._nodes.get(address)
        if node is not None and self._seems_reachable(address):
            try:
                return await node.pipeline.submit(QUESTIONS), address
            except (NotSent, OutcomeUnknown) as exc:
                raise ConnectError(self.url, f"{address}: {exc}") from exc
        connection = await self._connector.open(address)
        # A name may resolve to several servers, and one of them has answered. With TLS the name is
        # kept, because the certificate is made for it.
        peer = "" if self._connector.tls else connection.identity.peer
        try:
            return await ask(connection, QUESTIONS), Address(peer or address.host, address.port)
        except ConnectionLost as exc:
            raise ConnectError(self.url, f"{address}: {exc}") from exc
        finally:
            connection.abort()

    def refresh_soon(self) -> None:
        """Refresh the slot map soon, because it may have changed."""
        if self._closed:
            return
        self._wake.set()
        if self._task is None:
            loop = asyncio.get_running_loop()
            work = self._supervisor.keep("refreshing the slot map", self._reconcile)
            self._task = loop.create_task(work, name="django_sockets cluster")

    async def _refreshed(self) -> None:
        """Return after the next refresh of the slot map. Raises ConnectError."""
        if self._closed:
            raise BrokerClosed(self.url)
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.refresh_soon()
        await answer

    async def _reconcile(self) -> None:
        pause = SOONEST_SECONDS
        while True:
            seconds = pause if self._is_incomplete() else REFRESH_SECONDS
            with contextlib.suppress(asyncio.TimeoutError):
                await with_deadline(seconds, self._wake.wait())
            pause = SOONEST_SECONDS if self._wake.is_set() else min(2 * pause, TROUBLED_SECONDS)
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await self._refresh(waiting)
            except Exception as exc:
                self._wake.set()
                error = ConnectError(self.url, f"cannot refresh the slot map: {exc!r}")
                for answer in waiting:
                    if not answer.done():
                        answer.set_exception(error)
                raise
            await asyncio.sleep(SOONEST_SECONDS)

    async def _refresh(self, waiting: Sequence[asyncio.Future[None]]) -> None:
        """Refresh the slot map, apply it, and wake the callers that wait for it."""
        former = self._topology.slot_map
        owners = [] if former is None else former.owners
        try:
            slot_map = await self._topology.refresh()
        except ConnectError as exc:
            self._on_unknown(exc)
            for answer in waiting:
                if not answer.done():
                    answer.set_exception(exc)
        else:
            self._on_known(former, owners, slot_map)
            for answer in waiting:
                if not answer.done():
                    answer.set_result(None)

    def _is_incomplete(self) -> bool:
        return bool(self._no_place.names) or any(node.waiting for node in self._nodes.values())

    def _on_unknown(self, error: ConnectError) -> None:
        self._no_place.trouble = error
        self._throttle.log(
            logging.WARNING,
            "topology",
            "cannot ask the cluster: %s",
            error,
            extra={"broker": self.url, "reason": error},
        )
        if isinstance(error, AuthError):
            self._subscriptions.unreachable(list(self._no_place.names.values()), error)

    def _on_known(
        self, former: SlotMap | None, owners: Sequence[Address | None], slot_map: SlotMap
    ) -> None:
        """Apply a new slot map."""
        self._no_place.trouble = ConnectError(
            self.url, "no server of the cluster serves the slot of the channel"
        )
        if former is None and slot_map.pubsub is PLAIN:
            logger.warning(
                "%s: the servers have no sharded pub/sub (it came with Redis 7.0): with the plain "
                "commands every message goes to every node of the cluster",
                self.url,
                extra={"broker": self.url},
            )
        if former is not None and former.pubsub is not slot_map.pubsub:
            self._retire(list(self._nodes))  # After an upgrade, subscribe to everything again.
        moved: dict[Address, list[int]] = {}
        for slot, (before, now) in enumerate(zip(owners, slot_map.owners, strict=False)):
            if before is not None and before != now:
                moved.setdefault(before, []).append(slot)
        for address, slots in moved.items():
            self._hold(slots, address)
        serving = {self._nodes.get(address) for address in slot_map.primaries}
        # A server that still has other slots has given these away, and has not been replaced.
        self._subscriptions.relocate(lambda former: HANDED_OVER if former in serving else MOVED)
        displaced, self._displaced = self._displaced, {}
        self._subscriptions.ask_again(displaced)
        self._retire([a for a in self._nodes if a not in slot_map.primaries])

    def _hold(self, slots: Sequence[int], former: Address | None) -> None:
        route = None if former is None else self._routes.get(former)
        if route is not None:
            self._router.hold(slots, route)

    def _retire(self, addresses: Sequence[Address]) -> None:
        """Close the connections to servers without slots, after their last replies."""
        for address in addresses:
            node = self._nodes.pop(address)
            del self._routes[address]
            task = asyncio.get_running_loop().create_task(
                node.retire(), name="django_sockets retiring"
            )
            self._retiring[task] = node
            task.add_done_callback(self._retiring.pop)

    async def inspect(self) -> Report:
        """Ask every primary about itself; facts that it refuses to tell are left out."""
        slot_map = await self._topology.refresh()
        return await inspect_cluster(self.url, slot_map, self._connector.open)

    async def aclose(self) -> None:
        """See `Broker.aclose`."""
        self._closed = True
        await self._subscriptions.aclose()
        await self._reads.aclose()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(BrokerClosed(self.url))
                ignore_result(answer)
        await self._publisher.aclose()
        if self._publisher is not self._router:
            await self._router.aclose()
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        if retiring:
            await asyncio.wait(list(retiring))
        # A cancelled task may not have closed its node yet.
        nodes = [*self._nodes.values(), *retiring.values()]
        await asyncio.gather(*(node.aclose() for node in nodes))


class _NoPlace:
    """The place of channels whose server is unknown or missing."""

    def __init__(self, broker: ClusterBroker) -> None:
        self._broker = broker
        self.names: dict[bytes, str] = {}
        self.trouble: ConnectError | None = None

    def want(self, channel: str, name: bytes) -> bool:
        self.names[name] = channel
        self._broker.refresh_soon()
        return False

    def unwant(self, name: bytes) -> None:
        self.names.pop(name, None)

    def ask_again(self, name: bytes) -> None:
        """Nothing to do without a server."""

    def read(self, name: bytes) -> None:
        """The read follows behind the subscription, once there is a server."""


class _NodeOwner:
    """The owner of a node: forwards its reports, and refreshes the slot map after a loss."""

    def __init__(self, subscriptions: Subscriptions, refresh_soon: Any) -> None:
        self.granted = subscriptions.granted
        self.refused = subscriptions.refused
        self.displaced = subscriptions.displaced
        self._subscriptions = subscriptions
        self._refresh_soon = refresh_soon

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self._subscriptions.lost(channels, reason)
        self._refresh_soon()

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        self._subscriptions.unreachable(channels, error)
        self._refresh_soon()
