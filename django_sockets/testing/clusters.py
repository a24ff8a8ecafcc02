"""A real cluster for tests: faults are injected, and `restore` undoes them.

    with CacheCluster(ValkeyServer) as cluster:
        primary = cluster.primary_of(cluster.slot_of("room"))
        primary.kill()
        cluster.wait_promoted(primary)
        ...
        cluster.restore()

Use it in tests of this library and of applications. Its nodes are `CacheServer`s; the faults are
their methods `kill`, `start`, `pause` and `resume`. All calls block: use `asyncio.to_thread` on an
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from . import slots as _slots
from .census import count_channels, count_connections, each, until
from .cluster_repair import Repair, Shard, move_slots
from .cluster_views import Views, are_primaries, leads, owners, read_views, works
from .directives import certificates, cluster_directives
from .ports import free_port
from .processes import Startable
from .servers import CacheServer, ServerUnavailable, ValkeyServer
from .slots import SLOTS, Range

__all__ = ["SHARDED_COMMANDS", "CacheCluster"]

SHARDED_COMMANDS = ("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH")
"""The commands that a cluster before Redis 7 lacks: `without=(*SHARDED_COMMANDS, "HELLO")`."""

WAIT_SECONDS = 60.0
_START_ATTEMPTS = 5
_NAMED_NODES = 3


class CacheCluster(Startable):
    """Primaries with an equal share of the slots each, and their replicas.

    Args:
        server_class: the class of the nodes.
        primaries: number of primaries, at least 3: with fewer no replica is ever elected.
        replicas: number of replicas of each primary.
        tls: accept TLS only, also between the nodes, with certificates of one authority.
        username, password: as in `CacheServer`, the same on all nodes.
        node_timeout_ms: a node that is silent for this long is suspected. A replica is promoted
            about 0.3 s later.
        full_coverage: whether the whole cluster refuses commands while a slot has no primary.
        config: further directives for all nodes.
        without: commands that the nodes do not have; see `SHARDED_COMMANDS`.

    Attributes:
        nodes: the primaries first, then the first replica of each, and so on. The objects and their
            order never change, but their roles do.

    Raises:
        ServerUnavailable: see `CacheServer`.
    """

    def __init__(
        self,
        server_class: type[CacheServer] = ValkeyServer,
        *,
        primaries: int = 3,
        replicas: int = 1,
        tls: bool = False,
        username: str | None = None,
        password: str | None = None,
        node_timeout_ms: int = 500,
        full_coverage: bool = True,
        config: Mapping[str, str] | None = None,
        without: Iterable[str] = (),
    ) -> None:
        self._primaries = primaries
        self._tls = tls
        directives = cluster_directives(
            tls=tls,
            username=username,
            password=password,
            node_timeout_ms=node_timeout_ms,
            full_coverage=full_coverage,
        )
        try:
            shared = certificates() if tls else None
        except ImportError:
            raise ServerUnavailable("no certificates for TLS: run pip install trustme") from None

        def make() -> CacheServer:
            return server_class(
                tls=tls,
                username=username,
                password=password,
                config={**directives, "cluster-port": str(free_port()), **(config or {})},
                without=without,
                certificates=shared,
            )

        self._make = make
        self.nodes = [make() for _ in range(primaries * (1 + replicas))]
        self._by_id: dict[str, CacheServer] = {}
        self._shards: list[Shard] = []
        self._repair = Repair({}, [])

    # Life

    def start(self) -> None:
        """Start all nodes and make them a cluster: about 2.5 s.

        Raises:
            ServerUnavailable, RuntimeError: see `CacheServer.start`.
            TimeoutError: the nodes did not form a cluster.
        """
        each(self._start_new, range(len(self.nodes)))
        self._by_id = {node.execute("CLUSTER", "MYID"): node for node in self.nodes}
        names, count = list(self._by_id), self._primaries
        for epoch, node in enumerate(self.nodes[:count], 1):
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        bounds = [SLOTS * i // count for i in range(count + 1)]
        self._shards = [
            Shard(names[i], tuple(names[i + count :: count]), ((bounds[i], bounds[i + 1] - 1),))
            for i in range(count)
        ]
        self._repair = Repair(self._by_id, self._shards)
        self.restore()

    def _start_new(self, index: int) -> None:
        for attempt in range(_START_ATTEMPTS):
            try:
                self.nodes[index].start()
            except RuntimeError as exc:
                self.nodes[index].stop()
                # The port of the cluster bus was free when it was chosen, and may be in use now.
                if "Address already in use" not in str(exc) or attempt == _START_ATTEMPTS - 1:
                    raise
                self.nodes[index] = self._make()
            else:
                return

    def stop(self) -> None:
        """Stop all nodes. A repeated call has no effect."""
        self.kill_all()
        each(CacheServer.stop, self.nodes)

    def kill_all(self) -> None:
        """Send SIGKILL to every node."""
        each(CacheServer.kill, self.nodes)

    def start_all(self) -> None:
        """Start or resume each node that is down or paused, and wait until the cluster works.

        The nodes keep their last roles and slots.
        """
        self._revive()
        self.wait_ok()

    # Facts

    @property
    def url(self) -> str:
        """The broker URL, naming the first three nodes."""
        user, _, _ = self.nodes[0].url.partition("://")[2].rpartition("@")
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes[:_NAMED_NODES])
        where = f"{user}@{hosts}" if user else hosts
        if self._tls:
            ca = quote(str(self.nodes[0].tls_ca_file))
            return f"rediss+cluster://{where}?tls_ca_file={ca}"
        return f"redis+cluster://{where}"

    slot_of = staticmethod(_slots.slot_of)

    def primaries(self) -> list[CacheServer]:
        """The nodes that answer and serve slots now."""
        serving = set(owners(self._views()).values())
        return [node for name, node in self._by_id.items() if name in serving]

    def primary_of(self, slot: int) -> CacheServer:
        """The node that serves the slot now.

        Raises:
            LookupError: none that answers.
        """
        return self._by_id[owners(self._views())[slot]]

    def replicas_of(self, primary: CacheServer) -> list[CacheServer]:
        """The nodes that answer and report that they replicate this primary."""
        name = self._id(primary)
        views = self._views()
        return [self._by_id[other] for other, view in views.items() if view.me.primary == name]

    def slots_of(self, node: CacheServer) -> list[Range]:
        """The slots that a node serves now, as (first, last) ranges; [] for a replica."""
        name = self._id(node)
        owner = owners(self._views())
        return list(_slots.ranges(slot for slot, holder in owner.items() if holder == name))

    def connections(self) -> int:
        """The number of client connections, without those of the nodes and of this object."""
        return count_connections(self.nodes)

    def channels(self) -> int:
        """The number of users' channels that have a subscription, sharded or not."""
        return count_channels(self.nodes)

    # Acts

    def execute_on_all(self, *command: str | bytes | float) -> list[Any]:
        """Run a command on every node; see `CacheServer.execute`."""
        return [node.execute(*command) for node in self.nodes]

    def move_slots(self, slots: Iterable[int], source: CacheServer, target: CacheServer) -> None:
        """Move slots without keys between primaries, as an administrator does.

        Raises:
            redis.ResponseError: a node refused, for example because the source lacks the slot.
        """
        others = [node for node in self.primaries() if node not in (source, target)]
        if leads(source) and leads(target):
            # Some nodes may still take a primary that was just promoted for a replica.
            pair = {self._id(source), self._id(target)}
            observers = pair | set(map(self._id, others))
            until(
                lambda: are_primaries(self._views(), pair, observers),
                WAIT_SECONDS,
                "not every primary knows that the two are primaries",
            )
        move_slots(slots, source, target, others)

    def failover(self, replica: CacheServer, *, force: bool = False) -> None:
        """Make the replica the primary, and return when it reports this.

        Args:
            force: needed while its primary is down. Default: False.

        Raises:
            redis.ResponseError: the node is not a replica, or its primary is down.
            TimeoutError: the node did not become the primary.
        """
        replica.execute("CLUSTER", "FAILOVER", *(["FORCE"] if force else []))
        until(lambda: leads(replica), WAIT_SECONDS, "the replica was not promoted")

    def wait_promoted(
        self, killed: CacheServer, timeout_seconds: float = WAIT_SECONDS
    ) -> CacheServer:
        """Wait until a replica of a killed primary reports that it is the primary.

        Raises:
            TimeoutError: no replica does within `timeout_seconds`.
        """
        name = self._id(killed)
        shard = next(s for s in self._shards if name in (s.primary, *s.replicas))
        others = [self._by_id[n] for n in (shard.primary, *shard.replicas) if n != name]

        def promoted() -> CacheServer | None:
            return next((node for node in others if leads(node)), None)

        return until(promoted, timeout_seconds, "no replica was promoted")

    def wait_ok(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until every primary that answers reports `cluster_state:ok`, and suspects no other.

        Raises:
            TimeoutError: this did not happen within `timeout_seconds`.
        """

        until(lambda: works(self._views()), timeout_seconds, "the cluster is not ok")

    def restore(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Undo every fault: all nodes run with their first roles and slots, and know each other's.

        Nodes that were not killed keep the effects of CONFIG SET and ACL. Replicas that were
        promoted lose their data, and slots with keys do not move.

        Raises:
            TimeoutError: this did not succeed within `timeout_seconds`.
        """
        self._revive()

        def whole() -> bool:
            views = self._views()
            if self._repair.done(views):
                return True
            self._repair.step(views)
            return False

        until(whole, timeout_seconds, "the cluster cannot be restored")

    # Internal

    def _id(self, node: CacheServer) -> str:
        return next(name for name, known in self._by_id.items() if known is node)

    def _revive(self) -> None:
        for node in self.nodes:
            if node.paused:
                node.resume()
        each(CacheServer.start, [node for node in self.nodes if not node.running])

    def _views(self) -> Views:
        return read_views(self._by_id)
