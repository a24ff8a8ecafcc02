"""Facts about servers, for `python -m django_sockets check`.

`look_at` asks one server. `describe` makes a report from the facts of one or several servers. The
module of each broker adds its own facts (slots, sentinels).
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import statistics
import time
from collections.abc import Sequence
from typing import Any

from ...broker import Report
from ...deadlines import with_deadline
from ...url import BrokerURL
from .connection import Connection, ConnectionLost, ask
from .identity import PRIMARY, read_role
from .parser import pairs

__all__ = ["NodeFacts", "describe", "look_at"]

COMMANDS: Sequence[tuple[bytes, ...]] = (
    (b"INFO",),
    (b"ROLE",),
    (b"COMMAND", b"INFO", b"SSUBSCRIBE"),
    (b"CONFIG", b"GET", b"client-output-buffer-limit"),
    (b"CONFIG", b"GET", b"maxclients"),
    (b"CONFIG", b"GET", b"timeout"),
)
"""The commands sent; a server may refuse any of them."""
ROUND_TRIPS = 5
CERTIFICATE_DAYS = 30
"""A certificate that expires sooner causes a warning."""
CLIENTS_SHARE = 0.8
"""A larger share of `maxclients` in use causes a warning."""
MEMORY_SHARE = 0.95
"""A larger share of `maxmemory` in use causes a warning. Buffers of clients count, so that a server
at its limit takes some writes and refuses others."""
LOOPBACK = ("127.", "localhost", "::1", "[::1]")


@dataclasses.dataclass
class NodeFacts:
    """The facts about one server; refused facts are empty.

    Attributes:
        where: the address.
        info: the fields of INFO.
        config: the directives of CONFIG GET.
        role: the role in the reply to ROLE.
        sharded: whether it has sharded pub/sub; None if unknown.
        round_trip_ms: the median round trip of a PING.
        protocol: the RESP version.
        tls: the state of the encrypted connection, or None.
    """

    where: str
    info: dict[str, str]
    config: dict[str, str]
    role: str
    sharded: bool | None
    round_trip_ms: float
    protocol: int
    tls: ssl.SSLObject | None

    @property
    def server(self) -> str:
        """Product and version."""
        product = "valkey" if "valkey_version" in self.info else "redis"
        version = self.info.get("valkey_version") or self.info.get("redis_version")
        return f"{product} {version or 'of unknown version'}"

    @property
    def is_cluster_node(self) -> bool:
        """Whether it is part of a cluster. Valkey 9 renamed the field."""
        return "cluster" in (self.info.get("redis_mode"), self.info.get("server_mode"))


async def look_at(connection: Connection, where: str, seconds: float) -> NodeFacts:
    """Ask a server over a new connection, and close it.

    Raises:
        ConnectionLost: the connection was lost, or a reply is missing after `seconds`.
    """
    try:
        return await with_deadline(seconds, _look_at(connection, where))
    except asyncio.TimeoutError:
        problem = f"no answer from {where} within {seconds:g} s"
    raise ConnectionLost(problem)


async def _look_at(connection: Connection, where: str) -> NodeFacts:
    try:
        info, role, sharded, *config = await ask(connection, COMMANDS)
        durations = []
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            await ask(connection, [(b"PING",)])
            durations.append(time.perf_counter() - started)
    finally:
        connection.abort()
    return NodeFacts(
        where=where,
        info=_fields(info),
        config={
            name.decode(): value.decode()
            for reply in config
            for name, value in pairs(reply).items()
        },
        role=read_role(role),
        sharded=any(sharded) if isinstance(sharded, list) else None,
        round_trip_ms=round(statistics.median(durations) * 1000, 3),
        protocol=connection.protocol,
        tls=connection.tls,
    )


def _fields(info: Any) -> dict[str, str]:
    if not isinstance(info, bytes):
        return {}
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def describe(url: BrokerURL, nodes: Sequence[NodeFacts], topology: str) -> Report:
    """The report of servers with the same task.

    Args:
        nodes: 1..n; facts that cannot differ are taken from the first.
        topology: such as "one node".
    """
    first = nodes[0]
    servers = ", ".join(dict.fromkeys(node.server for node in nodes))
    report = Report(server=servers, topology=topology)
    for node in nodes:
        role = {PRIMARY: "primary, ", "slave": "replica, "}.get(node.role, "")
        report.nodes[node.where] = f"{role}{node.server}, {node.round_trip_ms:.2f} ms"
        _check_role(node, report)
        _check_clients(node, report)
        _check_memory(node, report)
    if first.role:
        report.features["role"] = "primary" if first.role == PRIMARY else "replica"
    report.features["sharded pub/sub"] = {True: "yes", False: "no", None: "unknown"}[first.sharded]
    report.features["protocol"] = f"RESP{first.protocol}"
    report.features["auth"] = _auth(url)
    _check_tls(url, first, report)
    _check_buffers(url, nodes, report)
    if url.history:
        _check_history(nodes, report)
    return report


def _check_role(node: NodeFacts, report: Report) -> None:
    if not node.role:
        report.warnings.append(
            f"{node.where}: ROLE is not allowed: a demoted primary is noticed later"
        )
    elif node.role != PRIMARY:
        report.problem = (
            f"{node.where} is a replica, and messages published there reach only its own "
            "subscribers: point the URL at the primary"
        )


def _check_clients(node: NodeFacts, report: Report) -> None:
    most, now = node.config.get("maxclients"), node.info.get("connected_clients")
    if most and now and int(now) > CLIENTS_SHARE * int(most):
        report.warnings.append(
            f"{node.where}: {now} of at most {most} clients are connected: raise maxclients"
        )


def _check_memory(node: NodeFacts, report: Report) -> None:
    """Report a memory that is nearly full. With another policy, that is the usual state."""
    most = int(node.info.get("maxmemory", "0") or 0)
    used = int(node.info.get("used_memory", "0") or 0)
    used -= int(node.info.get("mem_not_counted_for_evict", "0") or 0)
    if node.info.get("maxmemory_policy") == "noeviction" and used > MEMORY_SHARE * most > 0:
        report.features["memory"] = "nearly full"
        report.warnings.append(
            f"{node.where}: the memory is nearly full, {used} of {most} bytes: writes fail with "
            "OOM, such as those of the history, of presence and of the channel layer: raise "
            "maxmemory"
        )


def _auth(url: BrokerURL) -> str:
    method = dict(url.extra).get("auth", "url")
    if method != "url":
        return method
    if not (url.password or url.driver_options.get("password")):
        return "none"
    return f"password of user {url.username!r}" if url.username else "password"


def _check_tls(url: BrokerURL, node: NodeFacts, report: Report) -> None:
    if node.tls is None:
        report.features["tls"] = "no"
        if report.features["auth"] != "none" and not node.where.startswith((*LOOPBACK, "/")):
            report.warnings.append(
                "the credentials travel unencrypted: use a scheme with TLS, such as rediss://"
            )
        return
    text = node.tls.version() or "yes"
    certificate = node.tls.getpeercert()
    if certificate:
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        day = time.strftime("%Y-%m-%d", time.gmtime(ends))
        text += f", certificate verified, valid until {day}"
        days = (ends - time.time()) / 86400
        if days < CERTIFICATE_DAYS:
            report.warnings.append(f"the server's certificate expires in {days:.0f} days: renew it")
    else:
        text += ", certificate not verified"
        report.warnings.append(
            "the server's certificate is not verified: an attacker in between can read and write; "
            "remove tls_verify=none"
        )
    report.features["tls"] = text


def _check_buffers(url: BrokerURL, nodes: Sequence[NodeFacts], report: Report) -> None:
    limits = [limit for node in nodes if (limit := _pubsub_buffer(node)) is not None]
    if not limits:
        return
    hard, soft, seconds = min(limits)
    report.limits["output buffer for a subscriber"] = (
        f"{hard} bytes" + (f", {soft} bytes for {seconds} s" if soft else "") if hard else "none"
    )
    if 0 < hard < url.options.max_payload_bytes:
        report.warnings.append(
            f"a payload over {hard} bytes makes the server disconnect the subscriber: raise its "
            "client-output-buffer-limit pubsub, or lower max_payload_bytes"
        )


def _check_history(nodes: Sequence[NodeFacts], report: Report) -> None:
    """Report the effect of `maxmemory-policy` on kept messages."""
    policies = {
        policy: int(node.info.get("maxmemory", "0") or 0)
        for node in nodes
        if (policy := node.info.get("maxmemory_policy"))
    }
    report.features["maxmemory-policy"] = ", ".join(policies) or "unknown"
    if policies.get("noeviction"):
        report.warnings.append(
            "maxmemory-policy is noeviction: if the memory is full, messages are published and not "
            "kept; use volatile-lru or volatile-ttl, or watch the memory"
        )
    if any(policy.startswith("allkeys") for policy in policies):
        report.warnings.append(
            "maxmemory-policy is allkeys-...: if the memory is full, histories are evicted, and so "
            "are all keys of other programs on this server; volatile-lru evicts only keys that "
            "expire"
        )
    if any(node.protocol < 3 for node in nodes):
        report.warnings.append(
            "the server has no RESP3, so subscribers cannot read the history on their own "
            "connection: after a lost connection they get a gap"
        )


def _pubsub_buffer(node: NodeFacts) -> tuple[int, int, int] | None:
    """Hard and soft limit in bytes, and the seconds of the soft limit; None if unknown."""
    words = node.config.get("client-output-buffer-limit", "").split()
    for start in range(0, len(words) - 3, 4):
        if words[start] == "pubsub":
            hard, soft, seconds = map(int, words[start + 1 : start + 4])
            return hard, soft, seconds
    return None
