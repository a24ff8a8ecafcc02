"""What one server says about itself, for `python -m django_sockets check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..broker import Report
from ..url import BrokerURL
from .link import ReplyError

__all__ = ["COMMANDS", "make_report"]

COMMANDS: Sequence[tuple[bytes, ...]] = (
    (b"INFO", b"server"),
    (b"ROLE",),
    (b"CONFIG", b"GET", b"client-output-buffer-limit"),
    (b"COMMAND", b"INFO", b"SSUBSCRIBE"),
)
"""The questions; a server may refuse any of them."""


def make_report(replies: Sequence[Any], url: BrokerURL) -> Report:
    """Read the replies to `COMMANDS`; what was refused is left out."""
    info, role, limits, sharded = replies
    facts = {}
    if isinstance(info, bytes):
        for line in info.decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts[name] = value
    product = "valkey" if "valkey_version" in facts else "redis"
    version = facts.get("valkey_version") or facts.get("redis_version") or "of unknown version"
    report = Report(server=f"{product} {version}", topology="one node")
    if isinstance(role, list):
        kind = role[0].decode()
        report.features["role"] = "primary" if kind == "master" else "replica"
        if kind != "master":
            report.problem = (
                "this server is a replica: what is published here reaches only its own "
                "subscribers; point the URL at the primary"
            )
    else:
        report.warnings.append("ROLE is not allowed: a demoted primary is noticed later")
    report.features["tls"] = "yes" if url.scheme == "rediss" else "no"
    report.features["sharded pub/sub"] = (
        "yes" if isinstance(sharded, list) and sharded and sharded[0] else "no"
    )
    if facts.get("redis_mode") == "cluster":
        report.warnings.append("the server is part of a cluster: this scheme uses one node of it")
    buffer = _pubsub_buffer(limits)
    if buffer is not None:
        report.limits["output buffer for a subscriber"] = f"{buffer} bytes" if buffer else "none"
        if 0 < buffer < url.options.max_payload_bytes:
            report.warnings.append(
                f"a payload over {buffer} bytes makes the server cut the subscriber: raise its "
                "client-output-buffer-limit pubsub, or lower max_payload_bytes"
            )
    return report


def _pubsub_buffer(limits: Any) -> int | None:
    """The hard limit of `client-output-buffer-limit pubsub` in bytes, if CONFIG told it."""
    pairs = list(limits.values()) if isinstance(limits, dict) else limits
    if isinstance(pairs, ReplyError) or not pairs:
        return None
    words = pairs[-1].split()
    for start in range(0, len(words) - 1, 4):
        if words[start] == b"pubsub":
            return int(words[start + 1])
    return None
