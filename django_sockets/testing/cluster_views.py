"""Reads the views of all nodes of a cluster, and answers questions about them.

Used by `clusters` and `cluster_repair`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import redis

from .cache_server import CacheServer
from .census import answering
from .slots import View, spread

__all__ = ["Views", "are_primaries", "leads", "owners", "read_views", "works"]

Views = Mapping[str, View]
"""Id of a node that answers -> its view of the cluster."""


def read_views(nodes: Mapping[str, CacheServer]) -> Views:
    """The views of the nodes that answer; `nodes` is id -> node."""
    views = {}
    for name, node in nodes.items():
        if answering([node]):
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                views[name] = View.parse(*node.execute_many(View.COMMANDS))
    return views


def leads(node: CacheServer) -> bool:
    """Whether a node answers and reports that it is a primary."""
    if not answering([node]):
        return False
    with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
        return bool(node.execute("ROLE")[0] == "master")
    return False


def owners(views: Views) -> dict[int, str]:
    """Slot -> the node that claims it. Of several nodes the newest configuration wins."""
    owner: dict[int, str] = {}
    for view in sorted(views.values(), key=lambda view: view.me.epoch):
        if not view.me.primary:
            owner.update(dict.fromkeys(spread(view.me.slots), view.me.id))
    return owner


def works(views: Views) -> bool:
    """Whether every primary that answers is ok, and suspects no node that answers."""
    leading = [view for view in views.values() if not view.me.primary]
    return bool(leading) and all(
        view.ok and all(name in view.lines and view.lines[name].well for name in views)
        for view in leading
    )


def are_primaries(views: Views, names: Iterable[str], observers: Iterable[str]) -> bool:
    """Whether all these observers, ids of nodes, know the nodes `names` as primaries."""
    seen = [views[observer].lines for observer in observers if observer in views]
    return all(name in lines and not lines[name].primary for name in names for lines in seen)
