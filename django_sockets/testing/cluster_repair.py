"""Restores the roles and slots of a cluster after faults.

Used by `clusters`, also to build a new cluster, which is repaired like one that has lost all its
configuration. Keys are not moved: a slot that holds keys cannot change its node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence

import redis

from .census import each
from .cluster_views import Views, owners
from .servers import CacheServer
from .slots import Line, Range, ranges, spread

__all__ = ["Repair", "Shard", "move_slots"]

_MEET_AGAIN_SECONDS = 1.0
_CONNECTIONS = 32


@dataclasses.dataclass(frozen=True)
class Shard:
    """The intended state of a shard: the ids of primary and replicas, and their slots."""

    primary: str
    replicas: tuple[str, ...]
    slots: tuple[Range, ...]


def move_slots(
    slots: Iterable[int], source: CacheServer, target: CacheServer, others: Iterable[CacheServer]
) -> None:
    """Move slots without keys as an administrator does; `others` are the other primaries.

    https://valkey.io/commands/cluster-setslot/. About 0.4 s for 1000 slots.

    Raises:
        redis.ResponseError: a node refused, for example because the slot is not the source's.
    """
    chosen = list(slots)
    here, there = source.execute("CLUSTER", "MYID"), target.execute("CLUSTER", "MYID")

    # Valkey (8 and newer) delays each command until a replica has stored it. Commands on several
    # connections wait at the same time.
    connections = _CONNECTIONS if "valkey_version" in source.execute("INFO", "server") else 1

    def set_slots(node: CacheServer, *words: str) -> None:
        commands: list[Sequence[str | bytes | float]] = [
            ("CLUSTER", "SETSLOT", slot, *words) for slot in chosen
        ]
        parts = [commands[i::connections] for i in range(min(connections, len(commands)))]
        each(node.execute_many, parts)

    set_slots(target, "IMPORTING", here)
    set_slots(source, "MIGRATING", there)
    for node in (target, source, *others):
        set_slots(node, "NODE", there)


class Repair:
    """Brings nodes into the intended state, step by step.

    Args:
        nodes: id -> node; all of them run, and none is paused.
        shards: the intended state.
    """

    def __init__(self, nodes: Mapping[str, CacheServer], shards: Sequence[Shard]) -> None:
        self._nodes = nodes
        self._shards = shards
        self._lines = {shard.primary: ("", shard.slots) for shard in shards}
        self._lines |= {name: (shard.primary, ()) for shard in shards for name in shard.replicas}
        self._met_at: dict[str, float] = {}

    def done(self, views: Views) -> bool:
        """Whether every node answers, is healthy, and knows the intended state of all nodes."""
        return views.keys() == self._nodes.keys() and all(
            view.ok
            and view.linked
            and not view.me.moving
            and view.served == self._nodes.keys()
            and all(line.well for line in view.lines.values())
            and {line.id: (line.primary, line.slots) for line in view.lines.values()} == self._lines
            for view in views.values()
        )

    def step(self, views: Views) -> None:
        """Do all repairs that are possible now.

        A node may refuse a command because it does not know of a change yet. The next step repeats
        the command.
        """
        if views.keys() != self._nodes.keys():
            return
        self._introduce(views)
        owner = owners(views)
        for shard in self._shards:
            with contextlib.suppress(redis.ResponseError):
                self._lead(shard, views[shard.primary].me, owner)
            for name in shard.replicas:
                with contextlib.suppress(redis.ResponseError):
                    self._follow(self._nodes[name], views[name].me, shard.primary)

    def _introduce(self, views: Views) -> None:
        """Introduce unknown nodes to the first node, which tells them about the others."""
        (host_name, host), *_ = self._nodes.items()
        for name, node in self._nodes.items():
            known = views[name].lines.keys() & views[host_name].lines.keys()
            # A handshake after MEET takes some time, so MEET is not repeated at once.
            fresh = time.monotonic() - self._met_at.get(name, -1e9) < _MEET_AGAIN_SECONDS
            if not known.issuperset({name, host_name}) and not fresh:
                self._met_at[name] = time.monotonic()
                _, bus_port = node.execute("CONFIG", "GET", "cluster-port")
                host.execute("CLUSTER", "MEET", node.host, node.port, bus_port)

    def _lead(self, shard: Shard, me: Line, owner: Mapping[int, str]) -> None:
        """The next step for the node that should be the primary of the shard."""
        node = self._nodes[shard.primary]
        if me.moving:
            node.execute_many([("CLUSTER", "SETSLOT", slot, "STABLE") for slot in me.moving])
        if me.primary in shard.replicas:
            node.execute("CLUSTER", "FAILOVER", "TAKEOVER")
            return
        if me.primary:
            # It replicates another shard's primary, and must not take over the slots of that one.
            node.execute("CLUSTER", "RESET", "SOFT")
            return
        missing: dict[str, list[int]] = {}
        for slot in spread(shard.slots):
            holder = owner.get(slot, "")
            if holder != shard.primary:
                missing.setdefault(holder, []).append(slot)
        for holder, slots in missing.items():
            if not holder:
                with contextlib.suppress(redis.ResponseError):
                    node.execute_many([("CLUSTER", "DELSLOTS", slot) for slot in slots])
                bounds = [bound for pair in ranges(slots) for bound in pair]
                node.execute("CLUSTER", "ADDSLOTSRANGE", *bounds)
            elif spread(me.slots).isdisjoint(slots):
                self._bring_back(slots, holder, shard.primary)
            # Otherwise the node does not know yet that it was replaced. It will become a replica,
            # and can then take over.

    def _bring_back(self, slots: Sequence[int], holder: str, primary: str) -> None:
        source = self._nodes[holder]
        bounds = [bound for pair in ranges(slots) for bound in pair]
        try:
            # Valkey 9 takes 0.1 s for any number of slots. While it migrates, it refuses another
            # such command.
            source.execute("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *bounds, "NODE", primary)
        except redis.ResponseError as exc:
            if "unknown subcommand" not in str(exc).lower():
                raise
            leading = {shard.primary for shard in self._shards} - {holder, primary}
            others = [self._nodes[name] for name in leading]
            move_slots(slots, source, self._nodes[primary], others)

    def _follow(self, node: CacheServer, me: Line, primary: str) -> None:
        """The next step for a node that should follow this primary."""
        if me.primary == primary and me.moving:
            # Valkey (8 and newer) tells replicas about migrating slots. A replica that was down at
            # the end of the migration is told again.
            stable = [("CLUSTER", "SETSLOT", slot, "STABLE") for slot in me.moving]
            self._nodes[primary].execute_many(stable)
        if me.primary == primary or (not me.primary and me.slots):
            return
        if not me.primary:
            node.execute("FLUSHALL")
        node.execute("CLUSTER", "REPLICATE", primary)
