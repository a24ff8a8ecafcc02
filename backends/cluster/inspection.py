"""Facts about the servers of a cluster, for `python -m django_sockets check`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...broker import Report
from ...errors import ConnectError
from ...url import Address, BrokerURL
from ..client.commands import PLAIN, SLOTS
from ..client.connection import Connection, ConnectionLost
from ..client.inspection import NodeFacts, describe, look_at
from .topology import SlotMap

__all__ = ["inspect_cluster"]


async def inspect_cluster(
    url: BrokerURL,
    slot_map: SlotMap,
    open_connection: Callable[[Address], Awaitable[Connection]],
) -> Report:
    """Ask every primary about itself; facts that it refuses to tell are left out.

    Raises:
        ConnectError: no primary answers.
    """
    found, problems = await _ask_primaries(url, slot_map, open_connection)
    if not found:
        raise ConnectError(url, "; ".join(problems))
    report = describe(
        url,
        found,
        f"cluster of {len(slot_map.primaries)} primaries and {len(slot_map.replicas)} replicas, "
        f"{slot_map.covered} of {SLOTS} slots covered",
    )
    for address, replicas in slot_map.primaries.items():
        if str(address) in report.nodes:
            report.nodes[str(address)] += f", {slot_map.owners.count(address)} slots"
        if not replicas:
            report.warnings.append(f"{address} has no replica: if it is down, so are its channels")
    if slot_map.covered < SLOTS:
        report.warnings.append(
            f"{SLOTS - slot_map.covered} slots have no server: their channels neither send nor "
            "receive"
        )
    if slot_map.pubsub is PLAIN:
        report.warnings.append(
            "no sharded pub/sub, which came with Redis 7.0: every message goes to every node"
        )
    if problems and report.problem is None:
        report.problem = "; ".join(problems)
    return report


async def _ask_primaries(
    url: BrokerURL,
    slot_map: SlotMap,
    open_connection: Callable[[Address], Awaitable[Connection]],
) -> tuple[list[NodeFacts], list[str]]:
    seconds = url.options.publish_timeout_seconds
    opened = await asyncio.gather(*map(open_connection, slot_map.primaries), return_exceptions=True)
    found, problems = [], []
    for address, connection in zip(slot_map.primaries, opened, strict=True):
        if isinstance(connection, BaseException):
            problems.append(f"{address}: {connection}")
            continue
        try:
            found.append(await look_at(connection, str(address), seconds))
        except ConnectionLost as exc:
            problems.append(f"{address}: {exc}")
    return found, problems
