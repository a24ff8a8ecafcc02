"""Which server a connection reached: its run id and its role, and how both are asked again.

A server may refuse ROLE or INFO for a while, because it runs a script or because an ACL still has
to be corrected. A refusal therefore never switches a check off. After an error of `NOT_NOW` the
command is sent again at the next turn. After any other error it is sent again after a pause that
doubles from 1 s to 30 s (`RefusalBackoff`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .deadlines import Backoff
from .parser import ConnectionLost, ReplyError

__all__ = [
    "IDENTIFY",
    "INFO",
    "NO_FORMER_HISTORY",
    "PRIMARY",
    "REPLICATION",
    "ROLE",
    "SERVER_CHANGED",
    "Identity",
    "IdentityCheck",
    "RefusalBackoff",
    "differ",
    "read_identity",
    "read_role",
    "read_run_id",
]

PRIMARY = "master"
"""The role of a server that accepts writes, as ROLE calls it."""
ROLE: tuple[bytes, ...] = (b"ROLE",)
INFO: tuple[bytes, ...] = (b"INFO", b"server")
REPLICATION: tuple[bytes, ...] = (b"INFO", b"replication")
"""Asks for the role and for the id of the data set."""
IDENTIFY = (ROLE, INFO)
NO_FORMER_HISTORY = bytes(8)
"""The former history id of a server that was never promoted."""
SERVER_CHANGED = "another server answers at this address now"
NOT_NOW = ("BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Prefixes of errors whose cause soon ends by itself."""


class Identity(NamedTuple):
    """The server at the other end of a connection.

    Attributes:
        run_id: changes with each start of the server; "" if INFO is not allowed.
        role: "master", "slave", ...; "" if ROLE is not allowed.
        peer: the numeric address that answered; "" for a unix socket.
        history_id: the first 8 bytes of `master_replid`; empty if it is unknown or hidden. It
            changes when the server is promoted, and when it gets its first replica.
        former_history_id: the history id before a promotion; empty if it is unknown.
    """

    run_id: str = ""
    role: str = ""
    peer: str = ""
    history_id: bytes = b""
    former_history_id: bytes = b""


def differ(one: Identity, other: Identity) -> bool:
    """Whether two connections are known to lead to different servers."""
    return bool(one.run_id and other.run_id) and one.run_id != other.run_id


def read_identity(replies: Sequence[Any]) -> Identity:
    """The identity in the replies to ROLE and `INFO server`.

    Raises:
        ConnectionLost: the number of replies is not two.
    """
    if len(replies) != len(IDENTIFY):
        raise ConnectionLost(f"{len(replies)} replies to {len(IDENTIFY)} commands")
    role, info = replies
    return Identity(read_run_id(info), read_role(role))


def read_role(reply: Any) -> str:
    """The role in a reply to ROLE; "" if the reply is an error or malformed."""
    if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
        return reply[0].decode(errors="replace")
    return ""


def read_run_id(reply: Any) -> str:
    """The run id in a reply to `INFO server`; "" if the reply is an error or malformed."""
    found = re.search(rb"run_id:(\w+)", reply) if isinstance(reply, bytes) else None
    return found[1].decode() if found else ""


def read_replication(identity: Identity, reply: Any) -> Identity:
    """The identity with the facts in a reply to `INFO replication`; missing ones are kept."""
    facts = {}
    if isinstance(reply, bytes):
        for line in reply.split(b"\r\n"):
            name, _, value = line.partition(b":")
            facts[name] = value
    role = facts.get(b"role", b"").decode(errors="replace")
    ids = []
    for name in (b"master_replid", b"master_replid2"):
        found = re.match(rb"[0-9a-f]{16}", facts.get(name, b""))
        ids.append(bytes.fromhex(found[0].decode()) if found else b"")
    return identity._replace(
        role=role or identity.role,
        history_id=ids[0] or identity.history_id,
        former_history_id=ids[1],
    )


class RefusalBackoff(Backoff):
    """When a command that the server refused may be sent again."""

    FIRST_SECONDS = 1.0
    CAP_SECONDS = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._until: float | None = None

    @property
    def over(self) -> bool:
        """Whether the command may be sent now."""
        return self._until is None or asyncio.get_running_loop().time() >= self._until

    def refused(self, error: ReplyError) -> float:
        """Note a refusal; returns the seconds until the command may be sent again."""
        if str(error).startswith(NOT_NOW):
            return 0.0
        seconds = self.increase()
        self._until = asyncio.get_running_loop().time() + seconds
        return seconds

    def succeeded(self) -> None:
        """Note that the server answered the command."""
        self.reset()
        self._until = None


class IdentityCheck:
    """Asks the servers of successive connections for their role and, if unknown, their run id.

    Args:
        ask_role: the command that asks for the role, `ROLE` or `REPLICATION`.
    """

    def __init__(self, ask_role: tuple[bytes, ...] = ROLE) -> None:
        self._ask_role = ask_role
        self._role, self._info = RefusalBackoff(), RefusalBackoff()

    def commands(self, identity: Identity) -> list[tuple[bytes, ...]]:
        """The commands to send now, 0 to 2.

        Args:
            identity: the known part of the server's identity.
        """
        commands: list[tuple[bytes, ...]] = []
        if self._role.over:
            commands.append(self._ask_role)
        if not identity.run_id and self._info.over:
            commands.append(INFO)
        return commands

    def updated(
        self, identity: Identity, commands: Sequence[tuple[bytes, ...]], replies: Sequence[Any]
    ) -> Identity:
        """The identity after the replies to `commands`; a malformed role changes nothing."""
        for command, reply in zip(commands, replies, strict=True):
            backoff = self._info if command is INFO else self._role
            if isinstance(reply, ReplyError):
                backoff.refused(reply)
                continue
            backoff.succeeded()
            if command is ROLE:
                identity = identity._replace(role=read_role(reply) or identity.role)
            elif command is REPLICATION:
                identity = read_replication(identity, reply)
            else:
                identity = identity._replace(run_id=read_run_id(reply))
        return identity
